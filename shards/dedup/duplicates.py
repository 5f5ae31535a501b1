"""Find duplicate images in a folder of shards, or between two folders (for example a benchmark's test split).

Exact duplicates have identical decoded pixels. Near duplicates have perceptual hashes at most `distance` bits apart and
correlated thumbnails. This finds re-encoded, resized, brightened and slightly cropped copies, and neighboring video
frames. It does not find mirrored or rotated copies, or copies cropped by more than a few percent per side.
"""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.dedup.hamming_index import HammingIndex
from shards.dedup.perceptual_hash import (
    ALIKE,
    MAX_NEAR,
    NEAR,
    PerceptualHashes,
    perceptual_hash_shards,
    thumbnail_correlation,
)
from shards.errors import UserError
from shards.format.manifest import Manifest, ShardInfo, read_manifest
from shards.format.samples import read_samples, select_shards

Ints = NDArray[np.int64]
NONE = 255  # greater than the distance of any pair
CHUNK = 1 << 16  # images per search call


@dataclass(frozen=True)
class Matches:
    """Match of each image [n]. match_index: -1 for none; distance: in bits; exact: whether the pixels are identical."""

    match_index: Ints
    distance: NDArray[np.uint8]
    exact: NDArray[np.bool_]

    @property
    def found(self) -> Ints:
        """Positions of the images that have a match."""
        return np.flatnonzero(self.match_index >= 0)


class HashIndex:
    """Searchable fingerprints [n]; `at_once`: number of queries per call."""

    def __init__(self, prints: PerceptualHashes, distance: int = NEAR, at_once: int = 1 << 16) -> None:
        check_distance(distance)
        self.prints = prints
        pixels = np.asarray(prints["pixels"])
        self._order = np.argsort(pixels, kind="stable")
        self._pixels = pixels[self._order]
        # Of identical images, only the first is searched: a placeholder repeated a million times costs one search.
        first = np.ones(len(pixels), bool)
        first[1:] = self._pixels[1:] != self._pixels[:-1]
        firsts = np.sort(self._order[first])
        self._comparable = firsts[~np.asarray(prints["plain"])[firsts]]  # [m]
        self._search = HammingIndex(np.asarray(prints["hash"])[self._comparable], distance, at_once)

    def first(self, pixels: NDArray[np.uint64]) -> Ints:
        """Return the first image with identical pixels, or -1 if there is none."""
        place = np.searchsorted(self._pixels, pixels)
        place[place == len(self._pixels)] = 0
        found = self._pixels[place] == pixels if len(self._pixels) else np.zeros(len(pixels), bool)
        return np.where(found, self._order[place] if len(self._order) else -1, -1)

    def query(self, prints: PerceptualHashes) -> Matches:
        """Return the most similar image of the index for each of `prints` [n]."""
        of = self.first(np.asarray(prints["pixels"]))
        exact = of >= 0
        distance = np.where(exact, 0, NONE).astype(np.uint8)
        for queries, words, bits in self._near(prints, np.flatnonzero(~exact & ~np.asarray(prints["plain"]))):
            _keep_best(of, distance, queries, words, bits)
        return Matches(of, distance, exact)

    def earlier(self) -> Matches:
        """Return the most similar earlier image for each image of the index.

        The first image of a set of duplicates has no match; without the matched images, no duplicates remain.
        """
        of = self.first(np.asarray(self.prints["pixels"]))
        exact = of < np.arange(len(of))
        of[~exact] = -1
        distance = np.where(exact, 0, NONE).astype(np.uint8)
        for queries, words, bits in self._near(self.prints, self._comparable, before=True):
            _keep_best(of, distance, queries, words, bits)
        return Matches(of, distance, exact)

    def _near(
        self, prints: PerceptualHashes, chosen: Ints, before: bool = False
    ) -> Iterator[tuple[Ints, Ints, NDArray[np.uint8]]]:
        """Yield near pairs (image of prints, image of the index, distance); before: earlier images only."""
        for start in range(0, len(chosen), CHUNK):
            part = chosen[start : start + CHUNK]
            for query, word, bits in self._search.pairs(np.asarray(prints["hash"][part])):
                queries, words = part[query], self._comparable[word]
                wanted = np.flatnonzero(words < queries) if before else np.arange(len(words))
                thumbs = prints["thumb"][queries[wanted]], self.prints["thumb"][words[wanted]]
                alike = wanted[thumbnail_correlation(*thumbs) >= ALIKE]
                yield queries[alike], words[alike], bits[alike]


def _keep_best(
    match_index: Ints, distance: NDArray[np.uint8], queries: Ints, words: Ints, bits: NDArray[np.uint8]
) -> None:
    """Update the best matches with pairs: the smallest distance wins, then the first image."""
    order = np.lexsort((words, bits, queries))
    queries, words, bits = queries[order], words[order], bits[order]
    best = np.ones(len(queries), bool)
    best[1:] = queries[1:] != queries[:-1]
    queries, words, bits = queries[best], words[best], bits[best]
    better = (bits < distance[queries]) | ((bits == distance[queries]) & (words < match_index[queries]))
    match_index[queries[better]], distance[queries[better]] = words[better], bits[better]


def check_distance(distance: int) -> None:
    """Raise UserError if the distance is out of range."""
    if not 0 <= distance <= MAX_NEAR:
        raise UserError(
            f"--distance={distance}: out of range. Fix: pass 0 (equal hashes) to {MAX_NEAR}; the default is {NEAR}."
        )


@dataclass(frozen=True)
class HashedShards:
    """Chosen shards of one folder with their fingerprints."""

    folder: Path
    manifest: Manifest
    shards: list[ShardInfo]
    prints: PerceptualHashes

    def known(self, images: Ints) -> dict[int, dict[str, Any]]:
        """Return key, split and other metadata of images, by position."""
        found: dict[int, dict[str, Any]] = {}
        first = 0
        wanted = np.unique(images)
        for info in self.shards:
            here = wanted[(wanted >= first) & (wanted < first + info.samples)]
            if len(here):
                samples = read_samples(self.folder, info, (here - first).tolist(), only=("cls", "json"))
                for image, sample in zip(here.tolist(), samples, strict=True):
                    label = sample.label(self.manifest.labels)
                    found[image] = sample.metadata | {"key": sample.key, "split": info.split}
                    found[image] |= {"label": label} if label else {}
            first += info.samples
        return found


Progress = Callable[[str, int, int], None]  # stage, done, total


def find_duplicates(
    folder: Path, against: Path | None, splits: tuple[str, ...], distance: int, workers: int, progress: Progress
) -> list[dict[str, Any]]:
    """Find images of `folder` with an earlier copy in `folder`, or with a copy in `against`.

    Args:
        folder: folder of shards to search.
        against: folder to compare with; None compares `folder` with itself. If both are the same folder, the splits
            that `splits` does not name are compared with the named ones.
        splits: splits of `against` (or of `folder`) to use; empty = all.
        distance: maximum distance of near duplicates in bits.
        workers: number of processes.
        progress: called with stage, done, total.

    Returns:
        For each duplicate, in order: key, split, kind ("exact" or "near"), distance, of, of_split, and the label and
            group of both images.
    """
    check_distance(distance)
    manifest = read_manifest(folder)
    shards = list(manifest.shards)
    with tempfile.TemporaryDirectory() as place:
        work = Path(place)
        if against is None:
            shards = select_shards(manifest, splits, "--split")
            side = _hash_shards(folder, manifest, shards, work / "own.npy", workers, progress)
            return _lines(side, side, HashIndex(side.prints, distance).earlier())
        other = read_manifest(against)
        others = select_shards(other, splits, "--split")
        if against.resolve() == folder.resolve():
            shards = [info for info in shards if info not in others]
            if not shards:
                raise UserError("--against: names the same shards. Fix: pass --split with the splits to compare with.")
        theirs = _hash_shards(against, other, others, work / "theirs.npy", workers, progress)
        side = _hash_shards(folder, manifest, shards, work / "own.npy", workers, progress)
        return _lines(side, theirs, HashIndex(theirs.prints, distance).query(side.prints))


def _hash_shards(
    folder: Path, manifest: Manifest, shards: list[ShardInfo], path: Path, workers: int, progress: Progress
) -> HashedShards:
    total = sum(info.samples for info in shards)
    stage = f"reading {folder.name}"
    prints = perceptual_hash_shards(folder, shards, path, workers, lambda done: progress(stage, done, total))
    return HashedShards(folder, manifest, shards, prints)


def _lines(side: HashedShards, other: HashedShards, matches: Matches) -> list[dict[str, Any]]:
    found = matches.found
    own, theirs = side.known(found), other.known(matches.match_index[found])
    lines = []
    for image in found.tolist():
        this, that = own[image], theirs[int(matches.match_index[image])]
        line = {"key": this["key"], "split": this["split"], "of": that["key"], "of_split": that["split"]}
        line |= {"kind": "exact" if matches.exact[image] else "near", "distance": int(matches.distance[image])}
        line |= {name: this[name] for name in ("label", "group") if name in this}
        lines.append(line | {f"of_{name}": that[name] for name in ("label", "group") if name in that})
    return lines
