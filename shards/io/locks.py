"""Kernel file locks (flock), with an error message for file systems without them."""

import fcntl
from pathlib import Path
from typing import Any

from shards.errors import UserError


def try_lock(file: Any, path: Path) -> bool:
    """Take the exclusive lock of an open file or folder; return False if another process holds it.

    Raises:
        UserError: the file system has no locks (some NFS, Lustre and FUSE mounts).
    """
    return _flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB, path)


def lock(file: Any, path: Path, *, shared: bool = False) -> None:
    """Wait for the lock of an open file. Raises UserError like `try_lock`."""
    _flock(file, fcntl.LOCK_SH if shared else fcntl.LOCK_EX, path)


def _flock(file: Any, how: int, path: Path) -> bool:
    try:
        fcntl.flock(file, how)
    except BlockingIOError:
        return False
    except OSError as error:
        raise UserError(
            f"{path}: files there cannot be locked ({error.strerror}), so two processes could write to it. Fix: use a "
            "local disk, or mount the file system with locks (Lustre: -o flock; NFS: without nolock)"
        ) from None
    return True
