"""Attacks through names, headers and configurations, and constructs that our code must not contain."""

import ast
import io
import json
import pickle
import subprocess
import sys
import tarfile
import zipfile
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from fuzz.guard import case, watched
from fuzz.shard_readers import photo
from PIL import Image

from shards.build.shard_task import read_entry_bytes as load_bytes
from shards.entry import Entry, Rejected
from shards.errors import UserError
from shards.imaging.codec import EncodeOptions, ImageRejected, encode
from shards.io.urls import check_url
from shards.sources.corpora.affectnet import arrays
from shards.sources.corpora.cofw import COFW
from shards.sources.generic.archive import Archive
from simfle.config.schema import PretrainConfig, load
from simfle.eval.backbones.external import read_tensors

ROOT = Path(__file__).parents[2]
CODE = [file for room in ("simfle", "shards", "tools", "launchers") for file in sorted((ROOT / room).rglob("*.py"))]


class Touch:
    """Unpickled, it makes a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple:
        return Path.touch, (self.file,)


def calls(file: Path) -> list[tuple[str, ast.Call]]:
    """Dotted names of all that a file calls."""
    found = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Call):
            found.append((ast.unparse(node.func), node))
    return found


def is_false(call: ast.Call, option: str) -> bool:
    """Whether an option is left at its default or is the constant False."""
    given = [word.value for word in call.keywords if word.arg == option]
    return all(isinstance(value, ast.Constant) and value.value is False for value in given)


def test_no_code_of_ours_opens_a_pickle_or_runs_a_text() -> None:
    bad = []
    for file in CODE:
        for name, call in calls(file):
            last = name.rpartition(".")[2]
            words = {word.arg: ast.unparse(word.value) for word in call.keywords}
            if (
                name in ("eval", "exec", "compile", "__import__('os').system")
                or name in ("os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput")
                or (name.split(".")[0] in ("pickle", "dill", "joblib", "marshal", "shelve", "cloudpickle"))
                or words.get("shell") == "True"
                or (name == "torch.load" and words.get("weights_only") != "True")
                or (last in ("load", "read_array") and not is_false(call, "allow_pickle"))
                or (name in ("yaml.load", "yaml.full_load", "yaml.unsafe_load", "read_pickle", "pd.read_pickle"))
            ):
                bad.append(f"{file.relative_to(ROOT)}:{call.lineno} {name}")
    assert bad == []


def test_the_search_for_pickles_finds_them(tmp_path: Path) -> None:
    file = tmp_path / "a.py"
    file.write_text("np.load(f, allow_pickle=True)\nnp.load(f)\nnp.load(f, allow_pickle=False)\n")
    assert [is_false(call, "allow_pickle") for _, call in calls(file)] == [False, True, True]


def test_objects_in_arrays_and_weights_are_not_made(tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    np.save(tmp_path / "a.npy", np.array([Touch(trap)], object), allow_pickle=True)
    assert arrays._array(tmp_path / "a.npy") is None
    assert arrays._value(tmp_path / "a.npy") == ""
    torch.save({"weight": torch.zeros(1), "more": Touch(trap)}, tmp_path / "w.pth")
    (tmp_path / "w.pkl").write_bytes(pickle.dumps(Touch(trap)))
    for name in ("w.pth", "w.pkl"):
        with pytest.raises(UserError, match=r"refused|cannot be read"):
            read_tensors(tmp_path / name)
    assert not trap.exists()
    pickle.loads(pickle.dumps(Touch(trap)))
    assert trap.exists()  # the trap works


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("train: {seed: '${oc.env:HOME}'}", "only references to keys are allowed"),
        ("train: {run_dir: '${oc.env:HOME}'}", "only references to keys are allowed"),
        ("data: {shards: ['a', '${oc.env:HOME}']}", "only references to keys are allowed"),
        ("train: {run_dir: '${oc.decode:x}'}", "only references to keys are allowed"),
        ("train: {run: 'a ${oc.${a}:x}'}", "only references to keys are allowed"),
        ("train: {run_dir: '${nothing.here}'}", "nothing.here"),
        ("train: {run_dir: '${train.run_dir}'}", "config:"),
        ("train: !!python/object/apply:os.system [touch pwned]", "cannot read"),
        ("train: !!python/name:os.system", "cannot read"),
        ("a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]", "alias"),
        ("a: &a [*a]", "alias"),
        ("a: " + "[" * 100, "nested more than"),
        ("a: '" + "x" * (1 << 20) + "'", "not a configuration"),
    ],
)
def test_configurations_run_nothing_and_stay_small(
    text: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UserError, match=words):
        load(PretrainConfig, tmp_path / "c.yaml")
    assert [file.name for file in tmp_path.iterdir()] == ["c.yaml"]


def test_the_command_line_runs_nothing_either() -> None:
    for word in ("train.run_dir=${oc.env:HOME}", "train.seed=" + "[" * 5000, "train.seed=!!python/name:os.system"):
        with pytest.raises(UserError, match="config: "):
            load(PretrainConfig, None, [word])
    text = "!!python/name:os.system"  # of a field of text it is a name like any other
    assert load(PretrainConfig, None, [f"train.run_dir={text}"]).train.run_dir == text


def test_a_configuration_may_refer_to_itself(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("train: {seed: 7, run_dir: 'runs/seed-${train.seed}'}")
    assert load(PretrainConfig, tmp_path / "c.yaml").train.run_dir == "runs/seed-7"


@pytest.mark.parametrize(
    "url", ["pipe:curl x://y", "ftp://host/a", "simplecache::s3://b/a", "javascript://x", "zip://a::http://h/x", "://x"]
)
def test_only_some_schemes_are_opened(url: str) -> None:
    with pytest.raises(UserError, match="is not allowed"):
        check_url(url)


def test_names_in_archives_lead_nowhere(tmp_path: Path) -> None:
    names = ["../out.jpg", "/out.jpg", "a/../../out.jpg", "a\nb.jpg", "a 'b' \"c\" $(touch pwned).jpg", "ok.jpg"]
    folder = tmp_path / "inside"
    folder.mkdir()
    with zipfile.ZipFile(folder / "a.zip", "w") as packed, tarfile.open(folder / "a.tar", "w") as tar:
        for name in names:
            packed.writestr(name, photo())
            member = tarfile.TarInfo(name)
            member.size = len(photo())
            tar.addfile(member, io.BytesIO(photo()))
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE):
            member = tarfile.TarInfo(f"odd{kind!r}.jpg")
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member)
    with watched(), case(folder):
        found = [item for file in ("a.zip", "a.tar") for item in Archive(folder / file)]
        entries = [item for item in found if isinstance(item, Entry)]
        assert all(load_bytes(entry) == photo() for entry in entries)
    assert len([item for item in found if isinstance(item, Rejected) and item.reason == "outside"]) == 6
    assert len([item for item in found if isinstance(item, Rejected) and item.reason == "missing"]) == 2  # links
    assert len(entries) == 6
    assert [file.name for file in tmp_path.iterdir()] == ["inside"]


def bomb(kind: str) -> bytes:
    """A small file that says, or really is, an image of 400 million pixels."""
    if kind == "png":
        row = zlib.compress(bytes(1 + 20_000 // 8)) * 1
        out = io.BytesIO()
        Image.new("1", (16, 16)).save(out, "PNG")
        data = bytearray(out.getvalue())
        data[16:24] = (20_000).to_bytes(4, "big") * 2
        data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
        return bytes(data) + row
    data = bytearray(photo(kind=kind))
    if kind == "JPEG":
        frame = data.index(b"\xff\xc0") + 5
        data[frame : frame + 4] = b"\xff\xff\xff\xff"
    if kind == "BMP":
        data[18:26] = (20_000).to_bytes(4, "little") * 2
    return bytes(data)


@pytest.mark.parametrize("kind", ["JPEG", "png", "BMP"])
def test_decompression_bombs_are_refused_before_they_are_unpacked(kind: str, tmp_path: Path) -> None:
    encode(photo(), EncodeOptions())
    with watched(), case(tmp_path), pytest.raises(ImageRejected) as fate:
        encode(bomb(kind), EncodeOptions())
    assert fate.value.reason == "too_large"


def test_an_array_of_a_terabyte_in_a_small_file_takes_no_memory(tmp_path: Path) -> None:
    head = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000, 1000000), }"
    head += b" " * (117 - len(head)) + b"\n"
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head + bytes(64))
    arrays._array(tmp_path / "a.npy")
    with watched(), case(tmp_path):
        assert arrays._array(tmp_path / "a.npy") is None


def test_file_names_are_only_names(tmp_path: Path) -> None:
    """Quotes, spaces, newlines and shells' words, through a whole build."""
    source = tmp_path / "fa ces"
    source.mkdir()
    names = [
        "it's.jpg",
        'a"b.jpg',
        "a\nb.jpg",
        "$(touch pwned).jpg",
        "; touch pwned;.jpg",
        "-rf.jpg",
        "`touch pwned`.jpg",
    ]
    for number, name in enumerate(names):
        (source / name).write_bytes(photo(number))
    out = tmp_path / "o'u t;touch pwned"
    command = [
        sys.executable,
        str(ROOT / "tools" / "build_shards.py"),
        "folder",
        str(source),
        str(out),
        "--workers",
        "1",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads((out / "manifest.json").read_text())["shards"][0]["samples"] == len(names)
    assert not list(tmp_path.rglob("pwned"))


def cofw(file: Path, **images: object) -> None:
    """A file of one face whose image is as `images` says to h5py."""
    with h5py.File(file, "w") as data:
        data["phisTr"] = np.ones((87, 1))
        data["bboxesTr"] = np.ones((4, 1))
        held = data.create_dataset("#refs#/0", **images)
        data.create_dataset("IsTr", (1, 1), h5py.ref_dtype)[0, 0] = held.ref


def test_matlab_files_give_nothing_of_other_files(tmp_path: Path) -> None:
    """HDF5 can point into any file of the machine, and promise any size; an image must not come from there."""
    (tmp_path / "secret").write_bytes(bytes(range(240)) * 6)
    shape, kind = (3, 24, 20), np.uint8
    cofw(tmp_path / "COFW_train_color.mat", shape=shape, dtype=kind, data=np.zeros(shape, kind))
    (face,) = COFW(tmp_path)
    assert isinstance(face, Entry)
    assert load_bytes(face).startswith(b"\x89PNG")
    for hostile in (
        {"shape": shape, "dtype": kind, "external": [(str(tmp_path / "secret"), 0, 1440)]},
        {"shape": (3, 1 << 20, 1 << 20), "dtype": kind, "chunks": (3, 64, 64)},
    ):
        cofw(tmp_path / "COFW_train_color.mat", **hostile)
        (face,) = COFW(tmp_path)
        assert isinstance(face, Entry)
        with watched(), case(tmp_path), pytest.raises(ImageRejected):
            load_bytes(face)
    with h5py.File(tmp_path / "COFW_train_color.mat", "a") as data, h5py.File(tmp_path / "other.h5", "w") as other:
        other["marks"] = np.ones((87, 1))
        del data["phisTr"]
        data["phisTr"] = h5py.ExternalLink("other.h5", "marks")
    with pytest.raises(UserError, match="phisTr is a link"):
        list(COFW(tmp_path))
