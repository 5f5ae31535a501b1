"""Files that are replaced as a whole: nothing of a killed writer stays, and nothing of a living one is deleted."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from faults.scenario import mounted

from shards.errors import UserError
from shards.format.manifest import read_manifest
from shards.format.samples import read_samples
from shards.io.atomic import (
    PendingFile,
    _temporary_files,
    fsync_file,
    publish_dir,
    replace_text,
    replacing,
    write_atomic,
    write_synced,
)

ROOT = Path(__file__).parents[4]
WRITER = """
import sys, time
from pathlib import Path
from shards.io.atomic import replacing
with replacing(Path(sys.argv[1])) as file:
    file.write(b"half")
    file.flush()
    print("writes", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def _listed_anew() -> None:
    """Each test represents a separate process, which lists a folder once."""
    _temporary_files.cache_clear()


def writer(path: Path) -> "subprocess.Popen[str]":
    """A process in the middle of writing `path`."""
    words = [sys.executable, "-c", WRITER, str(path)]
    pipe = subprocess.PIPE
    process = subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert process.stdout
    assert process.stdout.readline() == "writes\n"
    return process


def test_a_killed_writer_leaves_nothing_for_long(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    process = writer(path)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert [left.name for left in tmp_path.iterdir()] == [f".summary.json.{process.pid}.tmp"]
    mine = [tmp_path / name for name in (".summary.json.old.tmp", ".other.json.17.tmp", "summary.json.17.tmp")]
    for each in mine:
        each.touch()
    write_atomic(path, b"whole")
    assert path.read_bytes() == b"whole"
    assert set(tmp_path.iterdir()) == {path, *mine}


def test_a_living_writer_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    process = writer(path)
    write_atomic(path, b"mine")
    assert path.read_bytes() == b"mine"
    process.communicate("")
    assert process.returncode == 0
    assert path.read_bytes() == b"half"
    assert list(tmp_path.iterdir()) == [path]


def test_what_fails_in_between_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    write_atomic(path, b"before")
    writing = replacing(path)
    writing.__enter__().write(b"more")
    assert writing.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None) is False
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_library_may_write_to_the_path_of_the_temporary_file(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    with replacing(path) as file:
        Path(file.name).write_bytes(b"whole")
        assert not path.exists()
    assert path.read_bytes() == b"whole"
    assert list(tmp_path.iterdir()) == [path]


def test_a_pending_file_is_discarded_once(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    pending = PendingFile(path, buffering=1 << 20)
    pending.file.write(b"half")
    pending.discard()
    assert list(tmp_path.iterdir()) == []
    pending = PendingFile(path)
    pending.file.write(b"whole")
    pending.commit()
    pending.discard()
    assert path.read_bytes() == b"whole"


def test_a_text_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    for text in ("before", "after"):
        replace_text(path, text)
    assert path.read_text() == "after"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_is_published_as_a_whole(tmp_path: Path) -> None:
    staging, folder = tmp_path / "out.partial", tmp_path / "out"
    staging.mkdir()
    write_synced(staging / "a", b"1")
    (staging / "b").write_bytes(b"2")
    fsync_file(staging / "b")

    def refuse() -> None:
        raise UserError("lost")

    with pytest.raises(UserError, match="lost"):
        publish_dir(staging, folder, refuse)
    assert staging.exists()
    assert not folder.exists()
    publish_dir(staging, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {"a": b"1", "b": b"2"}
    assert not staging.exists()


def test_a_full_disk_ends_a_search_for_duplicates_with_one_line(faces: Path, tmp_path: Path) -> None:
    """Its fingerprints are mapped: on a file with holes that was SIGBUS."""
    disk = tmp_path / "disk"
    disk.mkdir()
    own = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(disk)}
    words = [sys.executable, "-m", "simfle", "shards", "duplicates", str(faces), "--workers", "1"]
    with mounted(disk, 1):
        (disk / "ballast").write_bytes(bytes((1 << 20) - 20480))
        done = subprocess.run(words, capture_output=True, text=True, check=False, env=own, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"error: TMPDIR={disk}/"), done.stderr
    assert "(No space left on device). Fix: " in done.stderr
    assert "Traceback" not in done.stderr


def test_a_tar_cut_while_it_is_read_ends_with_one_line(faces: Path, tmp_path: Path) -> None:
    """As by a copy over it: a memory map would end this process (SIGBUS)."""
    manifest = read_manifest(faces)
    info = manifest.shards[0]
    for name in (info.file, info.file.replace(".tar", ".idx")):
        (tmp_path / name).write_bytes((faces / name).read_bytes())
    samples = read_samples(tmp_path, info)
    next(samples)
    os.truncate(tmp_path / info.file, 100)
    with pytest.raises(UserError, match=rf"{info.file} was truncated while it was read. Fix: copy it again"):
        list(samples)
