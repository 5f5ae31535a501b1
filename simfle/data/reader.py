"""A corpus to read from: the shards of one or more folders, samples by position, bytes straight from memory maps."""

# S shards, n samples
import hashlib
import json
import mmap
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shards.index import Index, index_tar, read_index
from shards.manifest import Manifest, ShardInfo, index_name, read_manifest
from simfle.data.lru import Lru
from simfle.data.order import locate
from simfle.errors import UserError

Ints = NDArray[np.int64]
Bytes = NDArray[np.uint8]

MAPS = 256  # tars mapped at once: each holds one file descriptor, of which a process usually may have 1,024
TABLES = 1024  # shards whose offsets stay in memory, 16 bytes a sample
INDEXES = 4  # shards whose keys, labels and metadata can be looked up at once
IMAGES = ("jpg", "jpeg")  # extensions of the image member


class Corpus:
    """The samples of the chosen splits of shard folders, addressed as (shard, sample in shard).

    folders: one after another give the global sample ids, counted over all shards of all splits, so that choosing a
    split changes no id. splits: names; none given: all of them. The manifests are read and the tars' sizes compared at
    once; tars are mapped and indexes read when they are first needed. All methods may be called from several threads.

    counts, first_ids: [S] int64, samples of each chosen shard and the global id of its first.

    Raises:
        UserError: a folder, manifest or tar missing or not as the manifest says, an unknown split, no samples.
    """

    def __init__(self, folders: Sequence[str | Path], splits: Sequence[str] = ()) -> None:
        if not folders:
            raise UserError("data.shards: no folder of shards is given; make one with tools/build_shards.py")
        self.folders = tuple(Path(folder) for folder in folders)
        self.manifests: tuple[Manifest, ...] = tuple(read_manifest(folder) for folder in self.folders)
        _check_splits(self.manifests, splits)
        self.shards: list[tuple[Path, ShardInfo]] = []  # the chosen ones, with their folders
        first_ids, next_id = [], 0
        for folder, manifest in zip(self.folders, self.manifests, strict=True):
            chosen = [shard for shard in manifest.shards if not splits or shard.split in splits]
            _check_tars(folder, chosen)
            for shard in manifest.shards:
                if not splits or shard.split in splits:
                    self.shards.append((folder, shard))
                    first_ids.append(next_id)
                next_id += shard.samples
        self.counts = np.array([shard.samples for _, shard in self.shards], dtype=np.int64)
        self.first_ids = np.array(first_ids, dtype=np.int64)
        if not self.counts.sum():
            raise UserError(f"data.shards: no samples in {', '.join(map(str, self.folders))}, splits {list(splits)}")
        self._maps: Lru[int, Bytes] = Lru(MAPS, self._map)
        self._tables: Lru[int, Ints] = Lru(TABLES, self._table)
        self._indexes: Lru[int, Index] = Lru(INDEXES, self._index)

    def __len__(self) -> int:
        return int(self.counts.sum())

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the labels. Raises UserError where folders differ in them."""
        if len({manifest.labels for manifest in self.manifests}) > 1:
            raise UserError(f"data.shards: {', '.join(map(str, self.folders))} have different label names")
        return self.manifests[0].labels

    def digest(self) -> str:
        """16 hexadecimal digits that name the data wherever it lies: hashes and sizes of all shards, in order."""
        shards = [
            (shard.split, shard.samples, shard.sha256) for manifest in self.manifests for shard in manifest.shards
        ]
        chosen = [shard.sha256 for _, shard in self.shards]
        return hashlib.blake2b(json.dumps([shards, chosen]).encode(), digest_size=8).hexdigest()

    def locate(self, ids: ArrayLike) -> tuple[Ints, Ints]:
        """Global ids [n] -> (shard [n], sample in shard [n]). ValueError: not among the chosen shards."""
        return locate(self.counts, self.first_ids, ids)

    def image(self, shard: int, sample: int) -> Bytes:
        """The bytes of a sample's JPEG [size] uint8: a read-only window into the mapped tar, nothing is copied."""
        offset, size = self._tables(shard)[sample]
        return self._maps(shard)[offset : offset + size]

    def key(self, shard: int, sample: int) -> str:
        """The key of a sample, its name in the tar without extension."""
        return self._indexes(shard).keys[sample]

    def label(self, shard: int, sample: int) -> int | None:
        """The label, a position in `labels`; None where the sample has none."""
        content = self._member(shard, sample, "cls")
        if content is None:
            return None
        try:
            return int(content)
        except ValueError:
            raise UserError(f"shards: {self._name(shard, sample)}.cls holds {content[:20]!r}, not a number") from None

    def meta(self, shard: int, sample: int) -> dict[str, Any]:
        """What is known of a sample (source, label name, group, box ...), from its `.json`; empty without one."""
        content = self._member(shard, sample, "json")
        try:
            return json.loads(content) if content is not None else {}
        except ValueError as error:
            raise UserError(f"shards: {self._name(shard, sample)}.json is not JSON ({error})") from None

    def tar(self, shard: int) -> Path:
        """The path of a shard."""
        folder, info = self.shards[shard]
        return folder / info.file

    def _name(self, shard: int, sample: int) -> str:
        return f"{self.tar(shard)}: {self.key(shard, sample)}"

    def _member(self, shard: int, sample: int, extension: str) -> bytes | None:
        offsets, sizes = self._indexes(shard).column(extension)
        start = int(offsets[sample])
        return None if start < 0 else self._maps(shard)[start : start + int(sizes[sample])].tobytes()

    def _map(self, shard: int) -> Bytes:
        path = self.tar(shard)
        try:
            with path.open("rb") as file:
                _check_size(path, os.fstat(file.fileno()).st_size, self.shards[shard][1])
                content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise UserError(f"shards: cannot read {path}: {error}") from None
        return np.frombuffer(content, dtype=np.uint8)  # the map lives as long as a window into it

    def _index(self, shard: int) -> Index:
        folder, info = self.shards[shard]
        path = folder / index_name(info.file)
        index = read_index(path) if path.exists() else index_tar(self.tar(shard))
        if len(index) != info.samples:
            raise UserError(f"shards: {path} lists {len(index)} samples, the manifest {info.samples}; build them again")
        return index

    def _table(self, shard: int) -> Ints:
        """Offset and size of each sample's image, [samples, 2]."""
        index = self._index(shard)
        found = next((name for name in IMAGES if name in index.extensions), IMAGES[0])
        table = np.stack(index.column(found), axis=1)
        outside = (table[:, 0] < 0) | (table.sum(axis=1) > self.shards[shard][1].bytes)
        if outside.any():
            name = f"{self.tar(shard)}: {index.keys[int(outside.argmax())]}"
            raise UserError(f"shards: {name} has no {found} inside the tar; build the shards again")
        return cast(Ints, table)


def _check_splits(manifests: Sequence[Manifest], splits: Sequence[str]) -> None:
    known = sorted({split for manifest in manifests for split in manifest.splits})
    for split in splits:
        if split not in known:
            raise UserError(f"data.splits: no split {split!r} in these shards; there are: {', '.join(known)}")


def _check_tars(folder: Path, shards: Sequence[ShardInfo]) -> None:
    """Compare sizes at once: a shard that is not there must not stop a run in its third day."""
    with os.scandir(folder) as entries:
        sizes = {entry.name: entry.stat().st_size for entry in entries if entry.name.endswith(".tar")}
    for shard in shards:
        if shard.file not in sizes:
            raise UserError(f"shards: {folder / shard.file} is missing; build or copy the shards again")
        _check_size(folder / shard.file, sizes[shard.file], shard)


def _check_size(path: Path, size: int, shard: ShardInfo) -> None:
    if size != shard.bytes:
        raise UserError(f"shards: {path} has {size} bytes, its manifest says {shard.bytes}; build or copy it again")
