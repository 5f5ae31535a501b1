"""Stores of shards: a local folder of own or external tars, or a URL with a cache."""

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Protocol

from shards.format import external_tars
from shards.format.index import Index, index_tar, read_index
from shards.format.manifest import Manifest, ShardInfo, index_name, read_manifest
from shards.format.spot_check import SpotCheck, check_index, check_tar
from shards.io.atomic import open_regular
from shards.io.urls import is_url, join
from shards.reading.cache import GB, SPACE_TIMEOUT, Cache, cached_bytes, default_folder
from shards.redact import redact_url
from simfle.config.schema import DataConfig
from simfle.config.validate import validate
from simfle.errors import UserError

log = logging.getLogger(__name__)


class ShardStore(Protocol):
    """Store of the shards of one manifest."""

    @property
    def manifest(self) -> Manifest:
        """Manifest of the shards."""
        ...

    @property
    def remote(self) -> bool:
        """Return whether shards must be fetched before they are opened."""
        ...

    @property
    def name(self) -> str:
        """Folder or URL, for messages."""
        ...

    def location(self, shard: ShardInfo) -> Path | str:
        """Return the path or URL of a tar, for messages."""
        ...

    def check(self, shards: Sequence[ShardInfo]) -> None:
        """Raise a UserError for a shard that is missing, has another size, or does not fit into the cache."""
        ...

    def open(self, shard: ShardInfo) -> IO[bytes]:
        """Open the tar as a local file of the size in the manifest. Raises UserError or OSError."""
        ...

    def index(self, shard: ShardInfo) -> Index:
        """Return the index of a shard's samples."""
        ...

    def spot_check(self, shard: ShardInfo) -> SpotCheck | None:
        """Return the spot check of its files, or None if the store itself compares its files with the manifest."""
        ...


@dataclass(frozen=True)
class LocalStore:
    """Store in a local folder. indexed: whether its indexes can be trusted, unlike those of external tars without a
    manifest."""

    path: Path
    manifest: Manifest = field(repr=False)
    indexed: bool = True
    remote = False

    @property
    def name(self) -> str:
        return str(self.path)

    def location(self, shard: ShardInfo) -> Path:
        return self.path / shard.file

    def check(self, shards: Sequence[ShardInfo]) -> None:
        with os.scandir(self.path) as entries:
            sizes = {entry.name: entry.stat().st_size for entry in entries if entry.name.endswith(".tar")}
        for shard in shards:
            if shard.file not in sizes:
                raise UserError(f"shards: {self.location(shard)} is missing. Fix: build or copy the shards again.")
            _check_size(self.location(shard), sizes[shard.file], shard)

    def open(self, shard: ShardInfo) -> IO[bytes]:
        file = open_regular(self.location(shard), "rb")
        _check_size(self.location(shard), os.fstat(file.fileno()).st_size, shard)
        return file

    def index(self, shard: ShardInfo) -> Index:
        path = self.path / index_name(shard.file)
        if self.indexed and path.exists():
            return read_index(path)
        if external_tars.is_external_manifest(self.manifest):
            return external_tars.scan_tar(self.location(shard)).index
        return index_tar(self.location(shard))

    def spot_check(self, shard: ShardInfo) -> SpotCheck:
        try:
            with self.open(shard) as file:
                tar = check_tar(file.fileno(), shard.bytes)
            return SpotCheck(tar, check_index(self.path / index_name(shard.file)) if self.indexed else "")
        except OSError as error:
            raise UserError(
                f"shards: cannot read {self.location(shard)}: {error.strerror}. Fix: copy it again."
            ) from None


@dataclass(frozen=True)
class RemoteStore:
    """Store at a URL with a manifest; its shards are read through a cache."""

    url: str
    manifest: Manifest = field(repr=False)
    cache: Cache
    remote = True

    @property
    def name(self) -> str:
        return redact_url(self.url)

    def location(self, shard: ShardInfo) -> str:
        return redact_url(join(self.url, shard.file))

    def check(self, shards: Sequence[ShardInfo]) -> None:
        largest = max(map(cached_bytes, shards), default=0)
        if largest > self.cache.limit:
            raise UserError(
                f"data.cache_gb={self.cache.limit / GB:g}: less than one shard of {self.name}, {largest / GB:g} GB. "
                "Fix: increase data.cache_gb."
            )

    def open(self, shard: ShardInfo) -> IO[bytes]:
        return self.fetch(shard, SPACE_TIMEOUT, lambda: False)

    def fetch(self, shard: ShardInfo, wait: float, stop: Callable[[], bool]) -> IO[bytes]:
        """Open like `open`, but wait at most `wait` seconds for space, and cancel when `stop` returns true (see
        `Cache.open`)."""
        return self.cache.open(join(self.url, shard.file), shard, wait, stop)

    def index(self, shard: ShardInfo) -> Index:
        return self.cache.index(join(self.url, shard.file), shard)

    def spot_check(self, shard: ShardInfo) -> None:
        """Return None, because the cache checks its content."""


def open_store(place: str | Path, cache: Cache | None) -> ShardStore:
    """Open the shards at a path or URL. `cache` is used for URLs (None = the default cache).

    Raises:
        UserError: If the folder is missing or corrupt, or the URL is not allowed or has no manifest.
    """
    if is_url(place):
        manifest = read_manifest(place)
        return RemoteStore(str(place), manifest, cache or make_cache(DataConfig()))
    folder = Path(place)
    if not external_tars.is_external(folder):
        return LocalStore(folder, read_manifest(folder))
    manifest = external_tars.infer_manifest(folder)
    left_out = ", ".join(f"{count} {reason}" for reason, count in manifest.rejected.items()) or "nothing"
    log.warning(
        "%s has no manifest: %d tars indexed temporarily, %d samples, skipped: %s; simfle shards index writes a "
        "manifest, simfle shards build webdataset checks every image and rotates it upright",
        folder,
        len(manifest.shards),
        manifest.samples,
        left_out,
    )
    return LocalStore(folder, manifest, indexed=False)


def make_cache(data: DataConfig) -> Cache:
    """Open the cache of a configuration. Raises UserError if the folder is not writable or a value is out of range."""
    validate(data, "data")
    return Cache(Path(data.cache_dir).expanduser() if data.cache_dir else default_folder(), int(data.cache_gb * GB))


def _check_size(path: Path, size: int, shard: ShardInfo) -> None:
    if size != shard.bytes:
        raise UserError(f"shards: {path} has {size} bytes, its manifest says {shard.bytes}. Fix: copy it again.")
