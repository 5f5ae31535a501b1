"""Files that are there whole or not at all, and stay there when the power goes."""

import errno
import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import IO

CHUNK = 1 << 20
NOT_SUPPORTED = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)  # what file systems answer that cannot reserve space
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.\d+\.tmp")


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` to a temporary name, fsync it, rename it to `path`, fsync the folder."""
    with replacing(path) as file:
        file.write(data)


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file beside `path` that takes its place at the end, durably; `file.name` is its path.

    It is locked while it is written. Where the caller or the disk fails it is deleted; where the process is killed,
    the next one that writes `path` deletes it.
    """
    _delete_abandoned(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    file = _open_locked(temporary)
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def _open_locked(path: Path) -> IO[bytes]:
    while True:
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "w+b")
        try:
            with suppress(OSError):  # file systems without locks
                fcntl.flock(file, fcntl.LOCK_EX)
            # Until it was locked, another process may have taken it for abandoned.
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    file.truncate(0)
                    return file
        except BaseException:
            file.close()
            raise
        file.close()


def _delete_abandoned(path: Path) -> None:
    """Delete the temporary files that earlier processes left of `path`: those that no process has locked."""
    for left in _temporary_files(path.parent).pop(path.name, ()):
        with suppress(OSError), left.open("rb") as file:  # gone, locked, or on a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left.unlink()


@lru_cache(maxsize=64)
def _temporary_files(folder: Path) -> dict[str, list[Path]]:
    """The temporary files in a folder, by the name that they were to take; listed once, since folders may be large."""
    found: dict[str, list[Path]] = {}
    with suppress(OSError):
        for path in folder.iterdir():
            if match := _TEMPORARY.fullmatch(path.name):
                found.setdefault(match["name"], []).append(path)
    return found


def allocate(file: IO[bytes], size: int) -> None:
    """Reserve `size` bytes of disk for an empty file. Raises OSError: there is no room.

    A map of a file with holes ends the process (SIGBUS) where the disk is full; one that is allocated does not.
    """
    try:
        os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        if error.errno not in NOT_SUPPORTED:
            raise
        for start in range(0, size, CHUNK):
            file.write(bytes(min(CHUNK, size - start)))
        file.flush()
        file.seek(0)


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable: a rename is only on the disk once its folder is."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def named(folder: Path) -> Path:
    """A folder under a path that ends in its name, as "." does not: others are made beside it."""
    return folder if folder.name else folder.absolute()


def at_home(place: str | Path) -> Path:
    """A path with ~ and ~name as the home folder they stand for, where there is one."""
    try:
        return Path(place).expanduser()
    except RuntimeError:  # no such person: a name like any other
        return Path(place)
