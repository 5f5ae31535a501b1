"""File systems that refuse locks, or to make a folder durable."""

import subprocess
import sys
from pathlib import Path

import pytest

from shards.errors import UserError
from shards.io.atomic import fsync_dir
from shards.io.locks import flock, lock, lock_dir, try_lock

NO_LOCKS = """
import errno, sys

def refuse(event, arguments):
    if event == "fcntl.flock":
        raise OSError(errno.ENOLCK, "No locks available")

sys.addaudithook(refuse)
"""
BUILD = """
from simfle.commands.main import script

sys.argv = ["simfle", "shards", "build", "procedural", sys.argv[1], "--people", "2", "--images-per-person", "2"]
script()
"""


def test_a_build_where_files_cannot_be_locked_says_so(tmp_path: Path) -> None:
    words = [sys.executable, "-c", NO_LOCKS + BUILD, str(tmp_path / "out")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "another process" not in done.stderr
    (line,) = done.stderr.splitlines()
    assert "files there cannot be locked (No locks available)" in line
    assert "Fix: use a local disk, or mount the file system with locks" in line


def test_a_lock_that_is_held_is_no_error(tmp_path: Path) -> None:
    with (tmp_path / "lock").open("w") as first, (tmp_path / "lock").open("w") as second:
        assert try_lock(first, tmp_path)
        assert not try_lock(second, tmp_path)
        with pytest.raises(BlockingIOError):
            flock(second, wait=False)


def test_shared_locks_exclude_the_exclusive_one_only(tmp_path: Path) -> None:
    files = [(tmp_path / "lock").open("w") for _ in range(3)]
    for file in files[:2]:
        lock(file, tmp_path, shared=True)
    assert not try_lock(files[2], tmp_path)
    for file in files[:2]:
        file.close()
    assert try_lock(files[2], tmp_path)
    files[2].close()


def test_a_folder_has_one_writer(tmp_path: Path) -> None:
    with lock_dir(tmp_path), pytest.raises(UserError, match="is being written by another process"):
        lock_dir(tmp_path).__enter__()
    with lock_dir(tmp_path):
        assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match="cannot be opened"):
        lock_dir(tmp_path / "absent").__enter__()


def test_flock_is_called_in_one_module() -> None:
    root = Path(__file__).parents[4]
    files = [*root.glob("shards/**/*.py"), *root.glob("simfle/**/*.py")]
    assert [file.name for file in files if "fcntl" in file.read_text()] == ["locks.py"]


def test_a_folder_that_cannot_be_made_durable_is_passed_over(tmp_path: Path) -> None:
    """As CIFS and FUSE answer; procfs does so, too."""
    fsync_dir(Path("/proc/self"))
    with pytest.raises(FileNotFoundError):
        fsync_dir(tmp_path / "absent")
