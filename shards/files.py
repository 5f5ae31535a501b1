"""Files that are there whole or not at all, and stay there when the power goes."""

import os
from pathlib import Path


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` to a temporary name, fsync it, rename it to `path`, fsync the folder."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


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
