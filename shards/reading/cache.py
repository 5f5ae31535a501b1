"""Cache folder for downloaded shards, bounded in size and shared by all processes of a machine.

A shard is stored as <sha256>.tar with its index <sha256>.idx, so that the same shard under two URLs is one file. Spot
checks of both, made after the hash comparison, are in <sha256>.sum: a truncated or replaced file is downloaded again.
Only advisory locks (flock) on open files coordinate processes, so a killed process leaves nothing to clean up:
- a downloading process holds the exclusive lock of <sha256>.part. Other processes wait for the lock and then find the
  tar. The file is renamed to the tar once its sha256 equals the manifest's;
- a reader holds a shard open with a shared lock. A memory map keeps that lock, because it duplicates the file
  descriptor;
- space is freed under the exclusive lock of `lock`: least recently used files first, and only files without a lock. A
  .part has its full size (and that of its index) from the start, so it is counted.
The folder must be on a local disk: network file locks are unreliable.
"""

import contextlib
import hashlib
import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from shards.errors import UserError
from shards.format.index import Index, index_tar, read_index, write_index
from shards.format.manifest import ShardInfo
from shards.format.spot_check import check_index, check_tar
from shards.io.atomic import open_regular, read_text, write_atomic
from shards.io.hashing import hash_file
from shards.io.locks import lock, try_lock
from shards.io.urls import CHUNK, open_url, with_retries
from shards.io.wait_status import waiting_for
from shards.redact import redact_url

log = logging.getLogger(__name__)

GB = 10**9
POLL = 0.2  # seconds between checks for released locks
SPACE_TIMEOUT = 300.0  # seconds that a reader waits for free space
INDEX = 512  # maximum index bytes per sample: three members with names below 128 characters
PARTS = (".idx", ".sum")  # files that accompany a tar
# Files that the cache writes. Other files in its folder are neither counted nor deleted.
OURS = re.compile(r"[0-9a-f]{64}\.(?:tar|idx|sum|part)|\.[0-9a-f]{64}\.(?:idx|sum)\.\d+\.tmp")


class CacheFullError(UserError):
    """Error: the cache is full, and all cached shards are in use."""


class DownloadCancelledError(UserError):
    """Error: a download was canceled on request."""


def cached_bytes(info: ShardInfo) -> int:
    """Return the maximum bytes of a shard in the cache, including its index."""
    return info.bytes + INDEX * info.samples


def default_folder() -> Path:
    """Return the default cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "simfle" / "shards"


@dataclass(frozen=True)
class Cache:
    """Shard cache in `folder` of at most `limit` bytes. Safe for concurrent threads and processes.

    Raises:
        UserError: If the folder cannot be created or written.
    """

    folder: Path
    limit: int

    def __post_init__(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._exclusive_lock():
                pass
        except OSError as error:
            raise UserError(
                f"data.cache_dir={self.folder}: cannot be used ({error.strerror}). Fix: choose another folder."
            ) from None

    def open(
        self, url: str, info: ShardInfo, wait: float = SPACE_TIMEOUT, stop: Callable[[], bool] = lambda: False
    ) -> IO[bytes]:
        """Open the tar of `url`; download it if needed. The shard stays cached while the file, or a map of it, is open.

        Args:
            url: URL of the tar.
            info: manifest entry of the shard.
            wait: maximum seconds to wait for free space.
            stop: polled; return True to cancel the download.

        Raises:
            CacheFullError: If no space becomes free within `wait` seconds.
            DownloadCancelledError: If `stop` canceled the download.
            UserError: If the shard cannot be downloaded, or does not match its manifest.
        """
        path = self._tar(info)
        if cached_bytes(info) > self.limit:
            raise self._full(info)
        with waiting_for(f"{redact_url(url)} in the cache {self.folder}"):
            return self._opened(url, info, path, wait, stop)

    def _opened(self, url: str, info: ShardInfo, path: Path, wait: float, stop: Callable[[], bool]) -> IO[bytes]:
        while True:
            file = _open_shared(path)
            if file is not None and not _is_sound(file, path, info):
                log.warning("%s: the cached copy %s is corrupt; downloading it again", redact_url(url), path)
                self._discard(file, path)
                continue
            file = file or self._fetch(url, info, path, wait, stop)
            if file is not None:
                with contextlib.suppress(OSError):  # another user's file
                    os.utime(path, ns=(time.time_ns(),) * 2)  # the kernel's clock is coarser
                return file

    def index(self, url: str, info: ShardInfo) -> Index:
        """Read the index of the tar of `url`. Raises like `open`."""
        with self.open(url, info):
            tar = self._tar(info)
            path = tar.with_suffix(".idx")
            if not path.exists():
                write_index(path, index_tar(tar))
            return read_index(path)

    def has(self, info: ShardInfo) -> bool:
        """Return whether a shard is cached now."""
        return self._tar(info).exists()

    def _tar(self, info: ShardInfo) -> Path:
        if len(info.sha256) != 64 or not set(info.sha256) <= set("0123456789abcdef"):
            raise UserError(f"shards: {info.file} has no valid sha256 in its manifest. Fix: rebuild the shards.")
        return self.folder / f"{info.sha256}.tar"

    def _fetch(self, url: str, info: ShardInfo, path: Path, wait: float, stop: Callable[[], bool]) -> IO[bytes] | None:
        """Download and lock a shard; return None if another process downloaded or evicted it (then check again)."""
        part = path.with_suffix(".part")
        file = _lock_download(part, path, stop)
        if file is None:
            return None
        if path.exists():  # downloaded between the check and the lock
            _abandon(file, part)
            return None
        try:
            self._make_space(file, part, info, wait, stop)
            with_retries(url, lambda: _download(url, info, file, stop))
            index = index_tar(part)
            with self._exclusive_lock():  # so that no other process takes the space reserved for the index
                os.ftruncate(file.fileno(), info.bytes)
                os.fsync(file.fileno())
                write_index(path.with_suffix(".idx"), index)
                _write_sum(file, path)
                part.rename(path)
        except FileNotFoundError:
            _abandon(file, part)
            raise UserError(
                f"shards: {redact_url(url)} does not exist, but its manifest lists it. Fix: upload it again."
            ) from None
        except BaseException:
            _abandon(file, part)
            raise
        lock(file, part, shared=True)  # the conversion may release the lock for a moment
        if os.fstat(file.fileno()).st_nlink:
            file.seek(0)
            return file
        file.close()
        return None

    def _make_space(self, file: IO[bytes], part: Path, info: ShardInfo, wait: float, stop: Callable[[], bool]) -> None:
        """Reserve disk space for the shard and its index in `file` (at path `part`).

        Evict other shards and wait, if needed, to stay within the limit.
        """
        end = time.monotonic() + wait
        while True:
            with self._exclusive_lock():
                if self._evict(self.limit - cached_bytes(info), part):
                    try:
                        os.posix_fallocate(file.fileno(), 0, cached_bytes(info))
                    except OSError as error:
                        raise UserError(
                            f"data.cache_dir={self.folder}: {error.strerror}. Fix: lower data.cache_gb, or free "
                            "some space."
                        ) from None
                    return
            if stop():
                raise DownloadCancelledError(f"{info.file}: the download was stopped")
            if time.monotonic() >= end:
                raise self._full(info)
            time.sleep(POLL)

    def _full(self, info: ShardInfo) -> CacheFullError:
        return CacheFullError(
            f"data.cache_gb={self.limit / GB:g}: {self.folder} is full of shards in use, and {info.file} needs "
            f"{cached_bytes(info) / GB:g} GB. Fix: increase data.cache_gb"
        )

    def _discard(self, file: IO[bytes], path: Path) -> None:
        """Delete a corrupt tar, which other processes may have open, unless one of them has replaced it."""
        with file, self._exclusive_lock():
            if _is(file, path):
                try:
                    for name in (path, *map(path.with_suffix, PARTS)):
                        name.unlink(missing_ok=True)
                except OSError as error:
                    raise UserError(
                        f"data.cache_dir: {path} is corrupt and cannot be deleted ({error.strerror}). Fix: delete it, "
                        "or choose another data.cache_dir."
                    ) from None

    @contextlib.contextmanager
    def _exclusive_lock(self) -> Iterator[None]:
        with _create(self.folder / "lock") as file:
            lock(file, self.folder)
            yield

    def _evict(self, most: int, mine: Path) -> bool:
        """Delete unlocked files, least recently used first, down to `most` bytes; return whether that succeeded."""
        found = {}
        with os.scandir(self.folder) as entries:
            for entry in entries:
                if OURS.fullmatch(entry.name) and entry.name != mine.name:
                    with contextlib.suppress(FileNotFoundError):  # another process just canceled its download
                        found[entry.name] = entry.stat()
        for name in [name for name in found if name.endswith(".part") and _remove(self.folder / name)]:
            del found[name]  # its download was killed
        stems = {name.partition(".")[0] for name in (*found, mine.name) if name.endswith((".tar", ".part"))}
        for name in [name for name in found if name.removeprefix(".").partition(".")[0] not in stems]:
            (self.folder / name).unlink(missing_ok=True)  # an index without a tar
            del found[name]
        total = sum(stat.st_size for stat in found.values())
        for name in sorted((name for name in found if name.endswith(".tar")), key=lambda name: found[name].st_mtime_ns):
            if total <= most:
                break
            if _remove(self.folder / name):
                total -= found[name].st_size
                for part in (name.removesuffix(".tar") + suffix for suffix in PARTS):
                    (self.folder / part).unlink(missing_ok=True)
                    total -= found[part].st_size if part in found else 0
        return total <= most


def _download(url: str, info: ShardInfo, file: IO[bytes], stop: Callable[[], bool]) -> None:
    """Write the shard into `file`. Raises ValueError if it does not match the manifest."""
    digest, size = hashlib.sha256(), 0
    file.seek(0)
    with open_url(url) as source:
        while size <= info.bytes and (chunk := source.read(CHUNK)):
            if stop():
                raise DownloadCancelledError(f"{redact_url(url)}: the download was stopped")
            file.write(chunk[: info.bytes - size])
            digest.update(chunk)
            size += len(chunk)
    if size != info.bytes:
        raise ValueError(f"{size} bytes{' or more' if size > info.bytes else ''}, the manifest says {info.bytes}")
    if digest.hexdigest() != info.sha256:
        raise ValueError("its sha256 differs from the manifest's")
    file.flush()


def _is_sound(file: IO[bytes], path: Path, info: ShardInfo) -> bool:
    """Return whether an open tar is unchanged since its download. Delete a changed index, which is then rebuilt."""
    if os.fstat(file.fileno()).st_size != info.bytes:
        return False
    index = path.with_suffix(".idx")
    try:
        tar_sum, index_sum = read_text(path.with_suffix(".sum")).split()
    except (OSError, ValueError):  # missing, corrupt or of an earlier version: hash the whole tar
        digest = hash_file(file)
        file.seek(0)
        if digest != info.sha256:
            return False
        write_index(index, index_tar(path))
        _write_sum(file, path)
        return True
    if check_index(index) not in ("", index_sum):
        index.unlink(missing_ok=True)
    return check_tar(file.fileno(), info.bytes) == tar_sum


def _write_sum(file: IO[bytes], path: Path) -> None:
    """Write the spot checks of the tar `file`, whose (future) path is `path`, and of its index."""
    size = os.fstat(file.fileno()).st_size
    known = f"{check_tar(file.fileno(), size)} {check_index(path.with_suffix('.idx'))}\n"
    write_atomic(path.with_suffix(".sum"), known.encode())


def _open_shared(path: Path) -> IO[bytes] | None:
    """Open a file with the shared lock; return None if it does not exist."""
    try:
        file = open_regular(path, "rb")
    except FileNotFoundError:
        return None
    lock(file, path, shared=True)
    if os.fstat(file.fileno()).st_nlink:
        return file
    file.close()  # the file was deleted before it was locked
    return None


def _lock_download(part: Path, tar: Path, stop: Callable[[], bool]) -> IO[bytes] | None:
    """Open and lock `part` for downloading once no other process holds the lock; None once the tar exists."""
    while not tar.exists():
        try:
            file = _create(part)
        except OSError as error:
            raise UserError(f"data.cache_dir: {part} cannot be used ({error.strerror}). Fix: delete it.") from None
        if try_lock(file, part) and _is(file, part):
            return file
        file.close()
        if stop():
            raise DownloadCancelledError(f"{part.name}: canceled while another process downloads it")
        time.sleep(POLL / 4)
    return None


def _create(path: Path) -> IO[bytes]:
    """Open a file for writing, creating it if needed and keeping its content. Raises OSError if it is a link.

    A folder that several users can write to may contain a link with this name to one of the user's files.
    """
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644), "r+b")


def _is(file: IO[bytes], path: Path) -> bool:
    """Return whether `path` still refers to an open file."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _abandon(file: IO[bytes], part: Path) -> None:
    """Delete and close a canceled download."""
    part.unlink(missing_ok=True)
    file.close()


def _remove(path: Path) -> bool:
    """Delete a file that is not locked; return whether it was deleted."""
    try:
        file = open_regular(path, "rb")
    except FileNotFoundError:
        return True
    with file:
        if not try_lock(file, path) or not _is(file, path):
            return False
        path.unlink()
        return True
