"""Kernel file locks (flock). A lock belongs to an open file or folder and is released when the process ends."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from shards.errors import UserError

LOCAL_DISK = "use a local disk, or mount the file system with locks (Lustre: -o flock; NFS: without nolock)"


def flock(file: Any, *, shared: bool = False, wait: bool = True) -> None:
    """Take the lock of an open file or folder.

    Args:
        file: file object or descriptor.
        shared: take a shared lock instead of the exclusive one.
        wait: wait until the lock is free.

    Raises:
        BlockingIOError: If `wait` is false, and another process holds the lock.
        OSError: If the file system has no locks (some NFS, Lustre and FUSE mounts).
    """
    how = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    fcntl.flock(file, how if wait else how | fcntl.LOCK_NB)


def try_lock(file: Any, place: object, fix: str = LOCAL_DISK) -> bool:
    """Take the exclusive lock of an open file or folder; return False if another process holds it.

    Args:
        file: file object or descriptor.
        place: the file or folder, for messages.
        fix: advice for a file system without locks.

    Raises:
        UserError: If the file system has no locks.
    """
    with _no_locks_as_user_error(place, fix):
        try:
            flock(file, wait=False)
        except (BlockingIOError, PermissionError):  # some network file systems raise the second one
            return False
    return True


def lock(file: Any, place: object, *, shared: bool = False) -> None:
    """Wait for the lock of an open file. Raises UserError like `try_lock`."""
    with _no_locks_as_user_error(place, LOCAL_DISK):
        flock(file, shared=shared)


@contextmanager
def lock_dir(folder: Path) -> Iterator[None]:
    """Allow one writer of a folder at a time; the lock leaves no file.

    Raises:
        UserError: If the folder cannot be opened, another process holds the lock, or the file system has no locks.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise UserError(f"{folder} cannot be opened ({error.strerror}). Fix: check the path.") from None
    try:
        if not try_lock(descriptor, folder):
            raise UserError(f"{folder} is being written by another process. Fix: wait for it, or stop it.")
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _no_locks_as_user_error(place: object, fix: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{place}: files there cannot be locked ({error.strerror}), so two processes could write to it. Fix: {fix}."
        ) from None
