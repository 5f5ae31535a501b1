"""A folder of downloaded shards, bounded in size and shared by all processes of a machine.

A shard lies there as <sha256>.tar, beside its index <sha256>.idx: the same shard under two URLs is one file. Spot
checks of both, made when the hash had been compared, are in <sha256>.sum: what was cut or replaced since is fetched
again. Only advisory locks (flock) on open files keep order, so nothing is left to clean after a kill:
- whoever downloads a shard holds the exclusive lock of <sha256>.part; others wait for it and then find the tar. It
  becomes the tar by a rename, once its sha256 is the manifest's;
- whoever uses a shard, or will soon, holds it open with a shared lock. A memory map keeps that lock: it duplicates the
  file descriptor;
- space is given under the exclusive lock of `lock`: what was used longest ago goes first, and only what nobody holds.
  A .part has its full size (and that of its index) from the start, so it counts.
The folder must be on a local disk: locks over the network are not to be trusted.
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
from shards.files import open_regular, read_text, write_atomic
from shards.index import Index, index_tar, read_index, write_index
from shards.locks import lock, try_lock
from shards.manifest import ShardInfo
from shards.redact import shown
from shards.remote import CHUNK, open_url, retried
from shards.spots import index_spots, tar_spots
from shards.waits import waiting

log = logging.getLogger(__name__)

GB = 10**9
POLL = 0.2  # seconds between looks whether others have let go of something
PATIENCE = 300.0  # seconds that a reader waits for space
INDEX = 512  # most bytes of a sample in its index: three members, whose names have less than 128 characters
PARTS = (".idx", ".sum")  # what belongs to a tar
# What the cache writes. All else in its folder belongs to others, and is neither counted nor deleted.
OURS = re.compile(r"[0-9a-f]{64}\.(?:tar|idx|sum|part)|\.[0-9a-f]{64}\.(?:idx|sum)\.\d+\.tmp")


class CacheFullError(UserError):
    """There is no space, and all that is there is in use."""


class StoppedError(UserError):
    """A download was asked to stop, and did."""


def cost(info: ShardInfo) -> int:
    """Most bytes that a shard takes in a cache, with its index."""
    return info.bytes + INDEX * info.samples


def default_folder() -> Path:
    """Where shards are kept if nothing else is asked for."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "simfle" / "shards"


@dataclass(frozen=True)
class Cache:
    """A cache in `folder` of at most `limit` bytes. All methods may be called by any threads and processes.

    Raises:
        UserError: the folder cannot be made or written.
    """

    folder: Path
    limit: int

    def __post_init__(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._alone():
                pass
        except OSError as error:
            raise UserError(f"data.cache: cannot use {self.folder}: {error.strerror}; choose another folder") from None

    def open(
        self, url: str, info: ShardInfo, wait: float = PATIENCE, stop: Callable[[], bool] = lambda: False
    ) -> IO[bytes]:
        """The tar of `url`, downloaded unless it is here; it stays here while the file, or a map of it, is open.

        Raises:
            CacheFullError: no space within `wait` seconds. StoppedError: `stop` said so. UserError: the shard cannot
            be had, or is not what its manifest says.
        """
        path = self._tar(info)
        if cost(info) > self.limit:
            raise self._full(info)
        with waiting(f"{shown(url)} in the cache {self.folder}"):
            return self._opened(url, info, path, wait, stop)

    def _opened(self, url: str, info: ShardInfo, path: Path, wait: float, stop: Callable[[], bool]) -> IO[bytes]:
        while True:
            file = _hold(path)
            if file is not None and not _is_sound(file, path, info):
                log.warning("%s: its copy %s is damaged and is fetched again", shown(url), path)
                self._discard(file, path)
                continue
            file = file or self._fetch(url, info, path, wait, stop)
            if file is not None:
                with contextlib.suppress(OSError):  # another user's file
                    os.utime(path, ns=(time.time_ns(),) * 2)  # the kernel's own clock is coarser
                return file

    def index(self, url: str, info: ShardInfo) -> Index:
        """The index of the tar of `url`. Raises like `open`."""
        with self.open(url, info):
            tar = self._tar(info)
            path = tar.with_suffix(".idx")
            if not path.exists():
                write_index(path, index_tar(tar))
            return read_index(path)

    def has(self, info: ShardInfo) -> bool:
        """Whether a shard is here, at this moment."""
        return self._tar(info).exists()

    def _tar(self, info: ShardInfo) -> Path:
        if len(info.sha256) != 64 or not set(info.sha256) <= set("0123456789abcdef"):
            raise UserError(f"shards: {info.file} has no sha256 in its manifest; it cannot be cached")
        return self.folder / f"{info.sha256}.tar"

    def _fetch(self, url: str, info: ShardInfo, path: Path, wait: float, stop: Callable[[], bool]) -> IO[bytes] | None:
        """Download a shard and hold it; None where another has done so, or it was taken away at once: look again."""
        part = path.with_suffix(".part")
        file = _claim(part, path, stop)
        if file is None:
            return None
        if path.exists():  # it came between the look for it and the claim
            _drop(file, part)
            return None
        try:
            self._make_space(file, part, info, wait, stop)
            retried(url, lambda: _download(url, info, file, stop))
            index = index_tar(part)
            with self._alone():  # the index takes the space that was kept for it, nobody else does
                os.ftruncate(file.fileno(), info.bytes)
                os.fsync(file.fileno())
                write_index(path.with_suffix(".idx"), index)
                _write_sum(file, path)
                part.rename(path)
        except FileNotFoundError:
            _drop(file, part)
            raise UserError(
                f"shards: there is no {shown(url)}, though its manifest lists it; upload it again"
            ) from None
        except BaseException:
            _drop(file, part)
            raise
        lock(file, part, shared=True)  # the lock may be lost for a moment on the way
        if os.fstat(file.fileno()).st_nlink:
            file.seek(0)
            return file
        file.close()
        return None

    def _make_space(self, file: IO[bytes], part: Path, info: ShardInfo, wait: float, stop: Callable[[], bool]) -> None:
        """Give `file`, which is `part`, the size of the shard and its index, within the limit."""
        end = time.monotonic() + wait
        while True:
            with self._alone():
                if self._evict(self.limit - cost(info), part):
                    try:
                        os.posix_fallocate(file.fileno(), 0, cost(info))
                    except OSError as error:
                        raise UserError(
                            f"data.cache: {self.folder}: {error.strerror}; lower data.cache_gb or free some space"
                        ) from None
                    return
            if stop():
                raise StoppedError(f"{info.file}: the download was stopped")
            if time.monotonic() >= end:
                raise self._full(info)
            time.sleep(POLL)

    def _full(self, info: ShardInfo) -> CacheFullError:
        return CacheFullError(
            f"data.cache_gb: {self.folder} may hold {self.limit / GB:g} GB, the shards in use fill it, and "
            f"{info.file} needs {cost(info) / GB:g}; give data.cache_gb more"
        )

    def _discard(self, file: IO[bytes], path: Path) -> None:
        """Remove a damaged tar, which others may still have open, unless another process has replaced it already."""
        with file, self._alone():
            if _is(file, path):
                try:
                    for name in (path, *map(path.with_suffix, PARTS)):
                        name.unlink(missing_ok=True)
                except OSError as error:
                    raise UserError(
                        f"data.cache: {path} is damaged and cannot be removed ({error.strerror}). Fix: delete it, or "
                        "choose another data.cache"
                    ) from None

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        with _create(self.folder / "lock") as file:
            lock(file, self.folder)
            yield

    def _evict(self, most: int, mine: Path) -> bool:
        """Remove what nobody holds, longest unused first, until `most` bytes are left; whether that was enough."""
        found = {}
        with os.scandir(self.folder) as entries:
            for entry in entries:
                if OURS.fullmatch(entry.name) and entry.name != mine.name:
                    with contextlib.suppress(FileNotFoundError):  # another process gave up its download just now
                        found[entry.name] = entry.stat()
        for name in [name for name in found if name.endswith(".part") and _remove(self.folder / name)]:
            del found[name]  # its download was killed
        stems = {name.partition(".")[0] for name in (*found, mine.name) if name.endswith((".tar", ".part"))}
        for name in [name for name in found if name.removeprefix(".").partition(".")[0] not in stems]:
            (self.folder / name).unlink(missing_ok=True)  # an index whose tar never came, or has gone
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
    """Write the shard into `file`. ValueError: it is not what the manifest says."""
    digest, size = hashlib.sha256(), 0
    file.seek(0)
    with open_url(url) as source:
        while size <= info.bytes and (chunk := source.read(CHUNK)):
            if stop():
                raise StoppedError(f"{shown(url)}: the download was stopped")
            file.write(chunk[: info.bytes - size])
            digest.update(chunk)
            size += len(chunk)
    if size != info.bytes:
        raise ValueError(f"{size} bytes{' or more' if size > info.bytes else ''}, its manifest says {info.bytes}")
    if digest.hexdigest() != info.sha256:
        raise ValueError("its sha256 is not the manifest's")
    file.flush()


def _is_sound(file: IO[bytes], path: Path, info: ShardInfo) -> bool:
    """Whether a tar that is held is the one that was downloaded. An index that is not is removed, to be made again."""
    if os.fstat(file.fileno()).st_size != info.bytes:
        return False
    index = path.with_suffix(".idx")
    try:
        tar_sum, index_sum = read_text(path.with_suffix(".sum")).split()
    except (OSError, ValueError):  # none, of an earlier version, or damaged: only the whole tar can tell
        digest = hashlib.sha256()
        while chunk := file.read(CHUNK):
            digest.update(chunk)
        file.seek(0)
        if digest.hexdigest() != info.sha256:
            return False
        write_index(index, index_tar(path))
        _write_sum(file, path)
        return True
    if index_spots(index) not in ("", index_sum):
        index.unlink(missing_ok=True)
    return tar_spots(file.fileno(), info.bytes) == tar_sum


def _write_sum(file: IO[bytes], path: Path) -> None:
    """Write the spot checks of the tar `file`, which is or becomes `path`, and of its index."""
    size = os.fstat(file.fileno()).st_size
    known = f"{tar_spots(file.fileno(), size)} {index_spots(path.with_suffix('.idx'))}\n"
    write_atomic(path.with_suffix(".sum"), known.encode())


def _hold(path: Path) -> IO[bytes] | None:
    """A file, open with the shared lock; None where there is none."""
    try:
        file = open_regular(path, "rb")
    except FileNotFoundError:
        return None
    lock(file, path, shared=True)
    if os.fstat(file.fileno()).st_nlink:
        return file
    file.close()  # it was removed between the two
    return None


def _claim(part: Path, tar: Path, stop: Callable[[], bool]) -> IO[bytes] | None:
    """The right to download, as the open file `part`, once nobody else has it; None when the tar is there."""
    while not tar.exists():
        try:
            file = _create(part)
        except OSError as error:
            raise UserError(f"data.cache: cannot use {part}: {error.strerror}. Fix: delete it") from None
        if try_lock(file, part) and _is(file, part):
            return file
        file.close()
        if stop():
            raise StoppedError(f"{part.name}: stopped while another process downloads it")
        time.sleep(POLL / 4)
    return None


def _create(path: Path) -> IO[bytes]:
    """Open a file for writing, and make it where there is none; its content stays. Raises OSError: it is a link.

    A folder that several users can write to may hold a link with this name, to a file of the one who follows it.
    """
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644), "r+b")


def _is(file: IO[bytes], path: Path) -> bool:
    """Whether `path` is still the name of an open file."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _drop(file: IO[bytes], part: Path) -> None:
    """Give up a claim and leave nothing."""
    part.unlink(missing_ok=True)
    file.close()


def _remove(path: Path) -> bool:
    """Remove a file that nobody holds; whether it has gone."""
    try:
        file = open_regular(path, "rb")
    except FileNotFoundError:
        return True
    with file:
        if not try_lock(file, path) or not _is(file, path):
            return False
        path.unlink()
        return True
