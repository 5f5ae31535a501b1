"""Read a corpus: the shards of one or more folders, samples by position, each read by one pread.

Memory maps are not used: on a disk error, or if a tar is truncated, a map kills the process (SIGBUS).
"""

# S shards, n samples
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shards.format.index import Index
from shards.format.manifest import Manifest, ShardInfo
from shards.format.shard_reader import OpenTar, TarTooShortError, image_table
from shards.io.hashing import digest
from shards.io.jsonl import MAX_JSON, loads
from shards.io.open_files import raise_limit
from shards.io.urls import is_url
from shards.reading.cache import Cache
from simfle.config.schema import DataConfig
from simfle.data.sampler import locate
from simfle.data.storage.lru_cache import LruCache
from simfle.data.storage.stores import ShardStore, make_cache, open_store
from simfle.errors import UserError

Ints = NDArray[np.int64]
Bytes = NDArray[np.uint8]

TARS = 256  # open tars, each with a file descriptor; a process usually may have 1,024 of them
TABLES = 1024  # shards whose offsets stay in memory, 16 bytes per sample
INDEXES = 4  # shards whose keys, labels and metadata stay in memory
REMOTE_TARS = 8  # open tars from URLs, unless kept explicitly; an open tar is not evicted from the cache


class SampleError(UserError):
    """Error: the bytes of one sample cannot be read; other samples may be readable."""


class UnknownSplitError(UserError):
    """Error: the shards have no split of this name. known: their splits."""

    def __init__(self, split: str, known: Sequence[str]) -> None:
        super().__init__(f"data.splits: no split {split!r} in these shards. Fix: choose from {', '.join(known)}.")
        self.split, self.known = split, known


class ShardCorpus:
    """Samples of the chosen splits of shard folders, addressed as (shard, sample in shard).

    folders: paths or URLs of shards or external tars (`shards.format.external_tars`). Their order determines the global
    sample ids, which are counted over all shards of all splits: the choice of splits changes no id. splits: names
    (empty = all); cache: for URLs (None = the default cache).
    The constructor reads manifests and compares the sizes of local tars; tars are fetched and opened, and indexes read,
    on first use. All methods are thread-safe.

    counts, first_ids: [S] int64, number of samples of each chosen shard and global id of its first sample.

    Raises:
        UserError: If a folder, manifest or tar is missing, a tar differs from the manifest, a split is unknown, or
            there are no samples.
    """

    def __init__(self, folders: Sequence[str | Path], splits: Sequence[str] = (), cache: Cache | None = None) -> None:
        if not folders:
            raise UserError("data.shards=[]: empty. Fix: build shards with simfle shards build.")
        self.stores: tuple[ShardStore, ...] = tuple(open_store(folder, cache) for folder in folders)
        self.folders = tuple(place.name for place in self.stores)
        self.manifests: tuple[Manifest, ...] = tuple(place.manifest for place in self.stores)
        _check_splits(self.manifests, splits)
        self.shards: list[tuple[ShardStore, ShardInfo]] = []  # the chosen shards, with their stores
        first_ids, next_id = [], 0
        for place in self.stores:
            chosen = [shard for shard in place.manifest.shards if not splits or shard.split in splits]
            place.check(chosen)
            for shard in place.manifest.shards:
                if not splits or shard.split in splits:
                    self.shards.append((place, shard))
                    first_ids.append(next_id)
                next_id += shard.samples
        _check_copies(self.shards)
        self.counts = np.array([shard.samples for _, shard in self.shards], dtype=np.int64)
        self.first_ids = np.array(first_ids, dtype=np.int64)
        if not self.counts.sum():
            raise UserError(
                f"data.shards: no samples in {', '.join(self.folders)}, splits {list(splits)}. Fix: check data.splits."
            )
        self.remote = any(place.remote for place in self.stores)
        self._tars: LruCache[int, OpenTar] = LruCache(REMOTE_TARS if self.remote else _open_tars(len(self.shards)))
        self._tables: LruCache[int, Ints] = LruCache(TABLES)
        self._indexes: LruCache[int, Index] = LruCache(INDEXES)

    def __len__(self) -> int:
        return int(self.counts.sum())

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the labels. Raises UserError if the folders have different labels."""
        if len({manifest.labels for manifest in self.manifests}) > 1:
            raise UserError(
                f"data.shards: {', '.join(self.folders)} have different label names. "
                "Fix: merge them with simfle shards merge first."
            )
        return self.manifests[0].labels

    def digest(self) -> str:
        """Return 16 hexadecimal digits that identify the data: hashes and sizes of all shards, in order."""
        shards = [
            (shard.split, shard.samples, shard.sha256) for manifest in self.manifests for shard in manifest.shards
        ]
        chosen = [shard.sha256 for _, shard in self.shards]
        return digest([shards, chosen])

    def locate(self, ids: ArrayLike) -> tuple[Ints, Ints]:
        """Map global ids [n] to (shard [n], sample in shard [n]). Raises ValueError for an id outside of the chosen
        shards."""
        return locate(self.counts, self.first_ids, ids)

    def read_image(self, shard: int, sample: int) -> Bytes:
        """Return a sample's image file [size] uint8, read-only. Raises SampleError on a read error."""
        offset, size = self._tables(shard, self._table)[sample].tolist()
        return np.frombuffer(self._read(shard, sample, offset, size), dtype=np.uint8)

    def next_in_shard(self, sample_id: int) -> int:
        """Return the id of the next sample of the same shard; after the last sample, the first."""
        shard, sample = (int(part[0]) for part in self.locate([sample_id]))
        return int(self.first_ids[shard]) + (sample + 1) % int(self.counts[shard])

    def key(self, shard: int, sample: int) -> str:
        """Return the key of a sample, its name in the tar without extension."""
        return self._indexes(shard, self._index).keys[sample]

    def label(self, shard: int, sample: int) -> int | None:
        """Return the label, a position in `labels`, or None if the sample has none."""
        content = self._member(shard, sample, "cls")
        if content is None:
            return None
        try:
            return int(content)
        except ValueError:
            raise UserError(
                f"shards: {self._name(shard, sample)}.cls is {content[:20]!r}, not a number. Fix: rebuild the shards."
            ) from None

    def metadata(self, shard: int, sample: int) -> dict[str, Any]:
        """Return the metadata of a sample (source, label name, group, box ...) from its `.json`, or {} without one."""
        content, text = (self._member(shard, sample, name) for name in ("json", "txt"))
        if content is not None and len(content) > MAX_JSON:
            raise UserError(
                f"shards: {self._name(shard, sample)}.json has more than {MAX_JSON >> 20} MiB. Fix: rebuild the shards."
            )
        try:
            known = loads(content) if content is not None else {}
        except ValueError as error:
            raise UserError(
                f"shards: {self._name(shard, sample)}.json is not JSON ({error}). Fix: rebuild the shards."
            ) from None
        return known if text is None else {"text": text.decode("utf-8", "replace"), **known}

    def shard_location(self, shard: int) -> Path | str:
        """Return the path or URL of a shard, for messages."""
        place, info = self.shards[shard]
        return place.location(info)

    def retain_open(self, shards: Collection[int]) -> None:
        """Close all tars except these, and reserve capacity for them."""
        self._tars.capacity = max(REMOTE_TARS, min(TARS, len(shards)))
        self._tars.resize(shards.__contains__)

    def _name(self, shard: int, sample: int) -> str:
        return f"{self.shard_location(shard)}: {self.key(shard, sample)}"

    def _member(self, shard: int, sample: int, extension: str) -> bytes | None:
        offsets, sizes = self._indexes(shard, self._index).column(extension)
        start = int(offsets[sample])
        return None if start < 0 else self._read(shard, sample, start, int(sizes[sample]))

    def _read(self, shard: int, sample: int, offset: int, size: int) -> bytes:
        tar = self._tars(shard, self._open)  # referenced, and so open, until the end of this function
        try:
            return tar.read(offset, size)
        except TarTooShortError as error:
            place = self.shard_location(shard)
            what = f"is truncated: {place} has become shorter" if error.truncated else f"lies beyond the end of {place}"
            raise SampleError(f"shards: {self._name(shard, sample)} {what}") from None
        except OSError as error:
            raise SampleError(f"shards: {self._name(shard, sample)} cannot be read: {error.strerror}") from None

    def _open(self, shard: int) -> OpenTar:
        place, info = self.shards[shard]
        try:
            return OpenTar(place.open(info), place.location(info))  # its lock keeps a cached shard in the cache
        except OSError as error:
            raise UserError(f"shards: cannot read {self.shard_location(shard)}: {error}. Fix: copy it again.") from None

    def _index(self, shard: int) -> Index:
        place, info = self.shards[shard]
        index = place.index(info)
        if len(index) != info.samples:
            raise UserError(
                f"shards: the index of {self.shard_location(shard)} lists {len(index)} samples, the manifest "
                f"{info.samples}. Fix: build the shards again."
            )
        return index

    def _table(self, shard: int) -> Ints:
        """Return offset and size of each sample's image, [samples, 2]."""
        index = self._index(shard)
        table = image_table(index)
        outside = (table < 0).any(axis=1) | (table.sum(axis=1) > self.shards[shard][1].bytes)
        if outside.any():
            name = f"{self.shard_location(shard)}: {index.keys[int(outside.argmax())]}"
            raise UserError(f"shards: {name} has no image inside the tar. Fix: build the shards again.")
        if table[:, 1].sum() > self.shards[shard][1].bytes:  # so a batch never takes more memory than its shards
            raise UserError(
                f"shards: the index of {self.shard_location(shard)} lists more bytes than the tar has. Fix: rebuild it."
            )
        tar = self._tars(shard, self._open)
        for offset, size in table[[0, -1]].tolist():
            if not tar.has_member(offset, size):
                raise UserError(
                    f"shards: the index of {self.shard_location(shard)} is of another tar. Fix: rebuild the shards."
                )
        return table


def open_corpus(data: DataConfig) -> ShardCorpus:
    """Open the corpus of a configuration, with its cache if any shard comes from a URL. Raises like `ShardCorpus`."""
    cache = make_cache(data) if any(map(is_url, data.shards)) else None
    return ShardCorpus(data.shards, data.splits, cache)


def _check_copies(shards: Sequence[tuple[ShardStore, ShardInfo]]) -> None:
    """Raise UserError if two folders have the same shard: copies of one folder, whose samples would count twice."""
    seen: dict[str, ShardStore] = {}
    for store, info in shards:
        other = seen.setdefault(info.sha256, store) if info.sha256 else store
        if other is not store:
            raise UserError(
                f"shards: {store.name} and {other.name} have the same shard {info.file}, and each sample would count "
                "twice. Fix: name one of them."
            )


def _open_tars(shards: int) -> int:
    """Return how many local tars may be open: at most half of the limit of open files, which is raised if needed."""
    wanted = min(TARS, shards)
    return max(1, min(wanted, raise_limit(2 * wanted) // 2))


def _check_splits(manifests: Sequence[Manifest], splits: Sequence[str]) -> None:
    known = sorted({split for manifest in manifests for split in manifest.splits})
    for split in splits:
        if split not in known:
            raise UnknownSplitError(split, known)
