"""FIFOs, sockets and devices under the names of files: no reader waits for them, or takes all memory."""

import ast
import fcntl
import json
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from helpers.cli_runner import run, tool
from PIL import Image

from shards.build.exclusion import ExclusionFilter
from shards.build.shard_task import read_entry_bytes as load_image
from shards.edit.remove import read_list, read_removal_log
from shards.edit.upload import Upload
from shards.entry import Entry, Rejected
from shards.errors import UserError
from shards.format.external_tars import scan_tar
from shards.format.index import index_tar, read_index
from shards.format.manifest import FORMAT, Manifest, ShardInfo, read_manifest, write_manifest
from shards.imaging.codec import ImageRejected
from shards.io.atomic import RefusedFileError, open_regular, read_bytes, read_text, regular_path
from shards.io.urls import read_url
from shards.reading.cache import Cache
from shards.sources import corpus_files
from shards.sources.containers import byte_range, matlab, tars, zips
from shards.sources.corpora import cofw, ferplus, ffhq, recordio
from shards.sources.generic import archive, rows
from simfle.api.backbone import read_image
from simfle.config.schema import PretrainConfig, load, load_yaml
from simfle.data.storage.stores import LocalStore
from simfle.eval.analysis.results import read_result
from simfle.eval.backbones.external import read_tensors
from simfle.eval.backbones.load import load_backbone, read_metadata
from simfle.eval.features.ffcv_format import find_ffcv_files
from simfle.plan.hardware import load_constants
from simfle.report.load_runs import read_runs
from simfle.runtime.run_files import planned_steps
from simfle.slurm import events
from simfle.train.checkpointing import checkpoint

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[4]


@contextmanager
def no_waiting() -> Iterator[None]:
    """End what waits for a file that never comes."""

    def end(number: int, frame: FrameType | None) -> None:
        raise TimeoutError("it waits forever")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(20)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def fifo(path: Path) -> None:
    os.mkfifo(path)


def listening(path: Path) -> None:
    short = Path("s")  # an address has at most 108 letters
    with socket.socket(socket.AF_UNIX) as held:
        held.bind(str(short))
    short.rename(path)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


KINDS: list[Callable[[Path], None]] = [fifo, listening, endless]

INFO = ShardInfo("train-000000.tar", "train", 0, 0, "0" * 64)


def one_tar(folder: Path) -> Manifest:
    return Manifest(FORMAT, "c", "", (), 0, {}, (INFO,), {})


def cached(folder: Path) -> Any:
    cache = Cache(folder, 10**9)
    return cache.open(f"file://{folder}/far.tar", INFO)


def uploaded(folder: Path) -> None:
    (folder / "train-000000.idx").write_text("v1.2 0\n")
    (folder / "rejected.jsonl").write_text("")
    write_manifest(folder, one_tar(folder))
    Upload(folder, f"file://{folder}-far", folder / "record").run(lambda *_: None)


def walked(items: Any) -> list[Any]:
    return list(items)


# What is read: the name of the file, and the reader, which gets the folder.
READERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "an image of a build": ("a.jpg", lambda f: load_image(Entry("a", "a", f / "a.jpg"))),
    "an image of a backbone": ("a.jpg", lambda f: read_image(f / "a.jpg")),
    "a piece of a pack": ("a.rec", lambda f: byte_range.read_range(f / "a.rec", 0, 10)),
    "a manifest": ("manifest.json", read_manifest),
    "an index": ("a.idx", lambda f: read_index(f / "a.idx")),
    "a tar": ("a.tar", lambda f: index_tar(f / "a.tar")),
    "a foreign tar": ("a.tar", lambda f: scan_tar(f / "a.tar")),
    "a tar of a run": (INFO.file, lambda f: LocalStore(f, one_tar(f)).open(INFO)),
    "a tar of an upload": (INFO.file, uploaded),
    "a tar of a cache": (f"{INFO.sha256}.tar", cached),
    "a file URL": ("a.json", lambda f: read_url(f"file://{f}/a.json")),
    "a list of keys": ("keys.txt", lambda f: read_list(f / "keys.txt")),
    "a record of removals": ("removed.jsonl", read_removal_log),
    "what is excluded": ("exclude.json", lambda f: ExclusionFilter(f / "exclude.json")),
    "a compressed tar": ("a.tar.gz", lambda f: walked(tars.read_tar(f / "a.tar.gz"))),
    "a zip": ("a.zip", lambda f: walked(zips.read_zip(f / "a.zip"))),
    "an archive": ("a.zip", lambda f: walked(archive.Archive(f))),
    "CSV": ("a.csv", lambda f: rows.columns_of(f / "a.csv")),
    "JSON lines": ("a.jsonl", lambda f: walked(rows.read_rows(f / "a.jsonl", ["a"]))),
    "Parquet": ("a.parquet", lambda f: rows.columns_of(f / "a.parquet")),
    "a list of a corpus": ("a.txt", lambda f: walked(corpus_files.lines(f / "a.txt"))),
    "FERPlus": ("a.csv", lambda f: walked(ferplus._votes_of(f / "a.csv"))),
    "FFHQ": ("a.json", lambda f: walked(ffhq.members(f / "a.json"))),
    "MATLAB 5": ("a.mat", lambda f: matlab.read_variables(f / "a.mat", ["a"], [])),
    "MATLAB 7.3": ("COFW_train_color.mat", lambda f: walked(cofw.COFW(f))),
    "an image of MATLAB 7.3": ("a.mat", lambda f: cofw.read_image(f / "a.mat", "Is", 0)),
    "RecordIO": ("a.rec", lambda f: walked(recordio.RecordIO(f))),
    "a configuration": ("c.yaml", lambda f: load(PretrainConfig, f / "c.yaml")),
    "a run's configuration": ("config.yaml", lambda f: load_yaml(f / "config.yaml")),
    "a run in a report": ("config.yaml", lambda f: read_runs([f])),
    "the steps of a run": ("run.json", planned_steps),
    "events": ("slurm/events.jsonl", events.events),
    "a checkpoint's marker": ("COMPLETE", checkpoint.read),
    "a card of a backbone": ("backbone.json", lambda f: read_metadata(f / "backbone.json")),
    "a backbone": ("backbone.safetensors", load_backbone),
    "weights of others": ("w.safetensors", lambda f: read_tensors(f / "w.safetensors")),
    "weights of torch": ("w.pth", lambda f: read_tensors(f / "w.pth")),
    "a result": ("seed-0.json", lambda f: read_result(f / "seed-0.json")),
    "a beton": ("a.beton.json", lambda f: find_ffcv_files([f / "a.beton"])),
    "constants": ("c.json", lambda f: load_constants([f / "c.json"])),
}


def outcome(read: Callable[[Path], Any], folder: Path) -> Any:
    try:
        return read(folder)
    except (UserError, RefusedFileError, ImageRejected) as error:
        return error


@pytest.mark.parametrize("make", KINDS, ids=lambda make: make.__name__)
@pytest.mark.parametrize("what", READERS)
def test_only_regular_files_are_read(
    what: str, make: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name, read = READERS[what]
    folder = tmp_path / "in"
    (folder / name).parent.mkdir(parents=True)
    make(folder / name)
    with no_waiting():
        found = outcome(read, folder)
    # If it is not an error, the file counts as missing or corrupt.
    assert "\n" not in str(found)
    assert found in (0, []) or isinstance(found, Exception) or all(isinstance(item, Rejected) for item in found)


@pytest.mark.parametrize("make", KINDS, ids=lambda make: make.__name__)
def test_commands_tell_them_in_one_line(
    make: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("manifest.json", "list.csv", "c.yaml", "keys.txt", "faces/a.jpg", "faces.zip", "faces.tar.gz"):
        Path(name).parent.mkdir(exist_ok=True)
        make(Path(name))
    commands = [
        [*tool("verify_shards"), "."],
        [*tool("build_shards"), "csv", "list.csv", "out"],
        [*tool("build_shards"), "folder", "faces", "out"],
        [*tool("build_shards"), "archive", "faces.zip", "out"],
        [*tool("build_shards"), "archive", "faces.tar.gz", "out"],
        [*tool("remove_samples"), ".", "--list", "keys.txt"],
        [*tool("plan_run"), "c.yaml"],
    ]
    with no_waiting():
        for command in commands:
            done = run(*command)
            assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
            assert done.stderr.startswith("error: ")
    assert not Path("out").exists()


def test_images_that_are_no_files_cost_themselves_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("faces").mkdir()
    Image.new("RGB", (32, 32)).save("faces/good.png")
    for make in KINDS:
        make(Path(f"faces/{make.__name__}.jpg"))
    with no_waiting():
        assert run(*tool("build_shards"), "folder", "faces", "out").returncode == 0
    rejected = [json.loads(line) for line in Path("out/rejected.jsonl").read_text().splitlines()]
    assert {item["source"]: item["detail"] for item in rejected} == {
        "fifo.jpg": "not a regular file but a FIFO",
        "listening.jpg": "not a regular file but a socket or a device",
        "endless.jpg": "not a regular file but a device",
    }


def test_the_open_file_is_asked_not_its_name(tmp_path: Path) -> None:
    """If a file is repeatedly swapped for a FIFO, a reader gets the file's bytes or an error, and never waits."""
    path, spare = tmp_path / "a", tmp_path / "b"
    done = threading.Event()

    def swap() -> None:
        while not done.is_set():
            for make in (lambda: spare.write_bytes(b"good"), lambda: os.mkfifo(spare)):
                make()
                spare.replace(path)

    path.write_bytes(b"good")
    thread = threading.Thread(target=swap)
    thread.start()
    seen = set()
    try:
        with no_waiting():
            for turn in count():
                if turn >= 200 and len(seen) == 2:
                    break
                try:
                    with regular_path(path) as same:
                        seen.add(same.read_bytes())
                    seen.add(read_bytes(path))
                except RefusedFileError:
                    seen.add(b"refused")
    finally:
        done.set()
        thread.join()
    assert seen == {b"good", b"refused"}


def test_what_opens_files_reads_them_as_python_does(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"a\r\nb\rc\xff\n")
    (tmp_path / "link").symlink_to(path)
    assert read_text(tmp_path / "link", errors="replace") == path.read_text(errors="replace")
    with open_regular(path, "rb", buffering=0) as file:
        assert file.read() == path.read_bytes()
    with pytest.raises(RefusedFileError, match="larger than 5 bytes"):
        read_bytes(path, most=5)
    with pytest.raises(IsADirectoryError):
        open_regular(tmp_path)
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "absent")


# Files that only the program itself or the kernel writes.
OWN = {
    "shards/io/atomic.py",
    "shards/io/urls.py",  # fsspec's open
    "simfle/runtime/provenance.py",
    "simfle/eval/features/extractor.py",
}
READING = ("read_bytes", "read_text", "open", "load_file", "safe_open", "memmap", "fromfile", "ParquetFile")


def bare_reads(file: Path) -> Iterator[str]:
    """Calls that open a file for reading by its path, and not by shards.io.atomic."""
    tree = ast.parse(file.read_text())
    held = {
        ast.unparse(item.optional_vars)
        for node in ast.walk(tree)
        if isinstance(node, ast.With)
        for item in node.items
        if item.optional_vars and "regular_path" in ast.unparse(item.context_expr)
    }
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        words = ast.unparse(call)
        name = ast.unparse(call.func)
        last = name.rpartition(".")[2]
        owner = name.rpartition(".")[0]
        writes = any(f"'{mode}'" in words for mode in ("w", "wb", "a", "a+", "r+", "r+b", "x"))
        ours = name in ("read_bytes", "read_text") or owner in (
            "os",
            "place",
            "self",
            "self.cache",
            "self._cache",
            "Image",
            "opener",  # of URLs
        )
        loads = name in ("np.load", "torch.load", "h5py.File", "OmegaConf.load", "yaml.load")
        of_held = bool(call.args) and ast.unparse(call.args[0]) in held
        in_memory = "StringIO" in words or "BytesIO" in words or "fileobj" in words or "/proc/" in words
        if ((last in READING and not ours) or loads) and not (writes or of_held or in_memory):
            yield f"{name} in line {call.lineno}"


def test_no_reader_opens_a_path_by_itself() -> None:
    found = []
    for file in [*sorted((ROOT / "shards").rglob("*.py")), *sorted((ROOT / "simfle").rglob("*.py"))]:
        name = str(file.relative_to(ROOT))
        if name not in OWN and "bench" not in name:
            found += [f"{name}: {what}" for what in bare_reads(file)]
    assert found == []


def test_the_search_for_bare_reads_finds_them(tmp_path: Path) -> None:
    file = tmp_path / "a.py"
    bad = [
        "p.read_bytes()",
        "p.open()",
        "open(p, 'rb')",
        "np.load(p)",
        "tarfile.open(p)",
        "load_file(p)",
        "p.read_text()",
    ]
    file.write_text("\n".join([*bad, "read_bytes(p)", "p.open('wb')", "Image.open(io.BytesIO(d))"]))
    assert len(list(bare_reads(file))) == len(bad)


def test_a_file_that_a_server_leases_is_waited_for(tmp_path: Path) -> None:
    """As Samba and NFS servers do: opening without waiting is refused until they give the lease back."""
    path = tmp_path / "a.jpg"
    path.write_bytes(b"face")
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)
    lease = os.open(path, os.O_RDWR)
    fcntl.fcntl(lease, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    given_back = threading.Timer(0.5, os.close, (lease,))
    try:
        with pytest.raises(BlockingIOError):
            os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    finally:
        given_back.start()
    try:
        with no_waiting():
            assert read_bytes(path) == b"face"
    finally:
        given_back.join()
        signal.signal(signal.SIGIO, before)
