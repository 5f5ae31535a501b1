"""Read regular files only, and write files atomically and durably."""

import errno
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

from shards.io.locks import flock

CHUNK = 1 << 20
NOT_SUPPORTED = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)  # errors of file systems that cannot preallocate
# Errors of open() that are the file's fault. Any other error is the machine's: a disk, a network, too many open files.
MISSING = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)
UNREADABLE = (errno.EACCES, errno.EPERM, errno.EISDIR, errno.EINVAL)
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.\d+\.tmp")
MAX_READ = 1 << 32  # maximum bytes of a file that is read whole
KINDS = {stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}


class RefusedFileError(OSError):
    """Error: a file must not be read, because it is not a regular file or is too large."""


def open_regular(path: str | Path, mode: str = "r", **how: Any) -> IO[Any]:
    """Open a regular file, or a link to one, to read or append; `how` is passed to the built-in open.

    A FIFO would block forever and a device may never end. The check is made on the open file, because the name may
    refer to another file a moment later.

    Raises:
        RefusedFileError: If it is not a regular file.
        OSError: As by the built-in open.
    """
    return open(path, mode, opener=_open_regular, **how)


def _open_regular(path: str, flags: int) -> int:
    try:
        handle = os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, 0o666)
    except BlockingIOError:
        handle = _open_leased(path, flags)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        raise RefusedFileError(errno.EINVAL, "not a regular file but a socket or a device", path) from None
    kind = stat.S_IFMT(os.fstat(handle).st_mode)
    if kind in KINDS:  # Python itself refuses folders
        os.close(handle)
        raise RefusedFileError(errno.EINVAL, f"not a regular file but {KINDS[kind]}", path)
    return handle


def _open_leased(path: str, flags: int) -> int:
    """Open a file on which a file server (Samba, NFS) holds a lease; wait until the kernel revokes the lease.

    Only regular files can be leased. The name is resolved once, so that no other file can make this call block.
    """
    place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(place).st_mode):
            raise RefusedFileError(errno.EINVAL, "not a regular file", path)
        return os.open(f"/proc/self/fd/{place}", flags | os.O_NOCTTY | os.O_CLOEXEC)
    finally:
        os.close(place)


def read_bytes(path: Path, most: int = MAX_READ) -> bytes:
    """Read a regular file of at most `most` bytes. Raises like `open_regular`."""
    with open_regular(path, "rb") as file:
        if os.fstat(file.fileno()).st_size > most:
            raise RefusedFileError(errno.EINVAL, f"larger than {most} bytes", str(path))
        return file.read() or b""  # None: a kernel file without data yet


def read_text(path: Path, encoding: str = "utf-8", errors: str = "strict") -> str:
    """Read a regular file as text with \\n line endings. Raises like `open_regular`."""
    text = read_bytes(path).decode(encoding, errors)
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_text_if_exists(path: Path, encoding: str = "utf-8", errors: str = "replace") -> str | None:
    """Read a file as text; None if there is none. Raises like `open_regular` for a file that cannot be read."""
    try:
        return read_text(path, encoding, errors)
    except OSError as error:
        if error.errno in MISSING:
            return None
        raise


@contextmanager
def regular_path(path: Path) -> Iterator[Path]:
    """Yield a path to an open regular file for libraries that open paths themselves; via /proc where possible.

    Raises:
        RefusedFileError, OSError: See `open_regular`.
    """
    with open_regular(path, "rb", buffering=0) as file:
        same = Path(f"/proc/self/fd/{file.fileno()}")
        yield same if same.exists() else path


def replace_text(path: Path, text: str) -> None:
    """Write `text` to a temporary name and rename it to `path`. Not durable: use it for files that are written often.

    Follows no link at either name: in a folder that others can write to, a link could lead to a file of the user.
    """
    temporary = path.with_name(f".{path.name}.partial")
    temporary.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(temporary, flags, 0o666), "w", encoding="utf-8") as file:
        file.write(text)
    temporary.replace(path)


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` to a temporary name, fsync it, rename it to `path`, fsync the folder."""
    with replacing(path) as file:
        file.write(data)


def write_synced(path: Path, data: bytes) -> None:
    """Write `data` to `path` and fsync it, for a file of a folder that `publish_dir` publishes as a whole."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file that replaces `path` durably at the end of the block; `file.name` is its path.

    See `PendingFile`. Libraries that write to a path may write to the path of the temporary file.
    """
    pending = PendingFile(path)
    try:
        yield pending.file
        pending.commit()
    except BaseException:
        pending.discard()
        raise


class PendingFile:
    """A temporary file beside `path`, open in `file`: `commit` replaces `path` by it, `discard` deletes it.

    The file is locked while it is written. If the process is killed, the next writer of `path` deletes the temporary
    file.
    """

    def __init__(self, path: Path, buffering: int = -1) -> None:
        _delete_abandoned(path)
        self.path = path
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        self.file = _open_locked_temporary(self._temporary, buffering)

    def commit(self) -> None:
        """Fsync the file, rename it to its final name, close it, fsync the folder."""
        self.file.flush()
        os.fsync(self.file.fileno())
        self._temporary.replace(self.path)
        self.file.close()
        fsync_dir(self.path.parent)

    def discard(self) -> None:
        """Close and delete the temporary file; do nothing after `commit`."""
        with suppress(OSError):  # the disk is full: closing cannot write the rest either
            self.file.close()
        self._temporary.unlink(missing_ok=True)


def _open_locked_temporary(path: Path, buffering: int) -> IO[bytes]:
    while True:
        file = open(path, "w+b", buffering, opener=_create_without_following)  # noqa: SIM115 - returned
        try:
            with suppress(OSError):  # a file system without locks
                flock(file)
            # Before the lock was acquired, another process may have deleted it as abandoned.
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    file.truncate(0)
                    return file
        except BaseException:
            file.close()
            raise
        file.close()


def _create_without_following(path: str, _: int) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)  # not truncated, because it may be locked


def _delete_abandoned(path: Path) -> None:
    """Delete abandoned temporary files of `path`: those that no process has locked."""
    for left in _temporary_files(path.parent).pop(path.name, ()):
        with suppress(OSError), left.open("rb") as file:  # deleted, locked, or on a file system without locks
            flock(file, wait=False)
            left.unlink()


@lru_cache(maxsize=64)
def _temporary_files(folder: Path) -> dict[str, list[Path]]:
    """Return the temporary files in a folder by their target name; cached, because folders may be large."""
    found: dict[str, list[Path]] = {}
    with suppress(OSError):
        for path in folder.iterdir():
            if match := _TEMPORARY.fullmatch(path.name):
                found.setdefault(match["name"], []).append(path)
    return found


def allocate(file: IO[bytes], size: int) -> None:
    """Reserve `size` bytes of disk for an empty file. Raises OSError if the disk is full.

    Writing to a memory map of a sparse file raises SIGBUS when the disk is full; an allocated file cannot fail.
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


def fsync_file(path: Path) -> None:
    """Fsync a file that was written by its path."""
    with open_regular(path, "rb", buffering=0) as file:
        os.fsync(file.fileno())


def publish_dir(staging: Path, folder: Path, before_rename: Callable[[], object] = lambda: None) -> None:
    """Rename a folder of fsynced files to its final name, durably: after a crash either name has all files.

    Args:
        staging: folder on the same file system.
        folder: final name, free or an empty folder.
        before_rename: called when the staging folder is durable; its exceptions prevent the rename.
    """
    fsync_dir(staging)
    before_rename()
    staging.rename(folder)
    fsync_dir(folder.parent)


def fsync_dir(folder: Path) -> None:
    """Fsync a folder: a rename is only durable after that."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NOT_SUPPORTED:  # CIFS and some FUSE file systems do not support fsync of folders
            raise
    finally:
        os.close(descriptor)


def resolve_output_dir(folder: Path) -> Path:
    """Return a path with a final name, which "." lacks, because sibling folders are created beside it."""
    return folder if folder.name else folder.absolute()


def expand_home(place: str | Path) -> Path:
    """Expand ~ and ~name to the home folder, if there is one."""
    try:
        return Path(place).expanduser()
    except RuntimeError:  # there is no such user, so this is an ordinary name
        return Path(place)
