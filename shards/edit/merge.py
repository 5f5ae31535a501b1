"""Merge several folders of shards: labels by name, unique keys, samples in the order of the folders."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shards.errors import UserError
from shards.format.manifest import FORMAT, REJECTED, Manifest, ShardInfo, read_manifest, write_manifest
from shards.format.samples import StoredSample, provenance, read_samples, staged_output_dir, write_split
from shards.format.shard_reader import shard_index
from shards.io.atomic import read_bytes, write_atomic
from shards.rules import disambiguated_key, is_text, keyed_hash, normalize_unicode

REFUSE, SUFFIX = "refuse", "suffix"
MANY = 65536  # names kept as text before they are hashed

Progress = Callable[[str, int, int], None]  # stage, done, total


@dataclass(frozen=True)
class MergeReport:
    """Result of a merge.

    renamed_keys: samples whose key already existed and got a suffix; relabeled: samples with a new `.cls`;
    shared_people: group names (people) in several folders, which are now one person; people_across_splits: groups with
    samples in more than one split.
    """

    manifest: Manifest
    renamed_keys: int
    relabeled: int
    shared_people: int
    people_across_splits: int


def merge(
    folders: Sequence[Path], out: Path, on_collision: str, corpus: str, shard_samples: int, progress: Progress
) -> MergeReport:
    """Copy all samples of `folders`, split by split, in the order of the folders.

    Label numbers follow the first folder that has the label; new names are appended. Keys that exist in an earlier
    folder raise an error, or get a suffix that depends on the key and the folder's position. Rejects and terms are
    concatenated.

    Raises:
        UserError: If there are fewer than two folders, folders have a key in common, the output exists, or the disk
            fails.
    """
    _check_request(folders, on_collision, shard_samples)
    manifests = [read_manifest(folder) for folder in folders]
    labels = tuple(dict.fromkeys(name for manifest in manifests for name in manifest.labels))
    taken, known = _collisions(folders, manifests, progress)
    if on_collision == REFUSE:
        _refuse_collisions(folders, manifests, taken)
    samples = _MergedSamples(folders, manifests, labels, taken, known, progress)
    with staged_output_dir(out) as partial:
        shards = [
            info
            for split, number in samples.counts.items()
            for info in write_split(partial, split, number, samples.read(split), shard_samples)
        ]
        write_atomic(partial / REJECTED, b"".join(map(_rejects, folders)))
        merged = _merged_manifest(manifests, labels, shards, corpus, on_collision)
        write_manifest(partial, merged)
    changed, people = samples.changed, samples.people
    return MergeReport(merged, changed["renamed"], changed["renumbered"], people.in_several(0), people.in_several(1))


def _check_request(folders: Sequence[Path], on_collision: str, shard_samples: int) -> None:
    """Raise UserError for fewer than two different folders, or options out of range."""
    if len(folders) < 2 or len({folder.resolve() for folder in folders}) < len(folders):
        raise UserError("merge: needs at least two different folders. Fix: list two or more folders of shards.")
    if on_collision not in (REFUSE, SUFFIX) or shard_samples < 1:
        raise UserError(
            f"--on-collision={on_collision}, --shard-samples={shard_samples}: out of range. "
            f"Fix: pass --on-collision {REFUSE} or {SUFFIX}, and at least 1 for --shard-samples."
        )


def _refuse_collisions(
    folders: Sequence[Path], manifests: Sequence[Manifest], taken: Sequence[NDArray[np.uint64]]
) -> None:
    """Raise UserError if a key is in more than one folder."""
    number = next((number for number, keys in enumerate(taken) if len(keys)), None)
    if number is None:
        return
    one = _colliding_keys(folders[number], manifests[number], taken[number])
    raise UserError(
        f"{sum(map(len, taken))} keys are in more than one folder, for example {one!r} in {folders[number]}. "
        "Fix: add --on-collision suffix to rename the later samples."
    )


def _merged_manifest(
    manifests: Sequence[Manifest], labels: tuple[str, ...], shards: Sequence[ShardInfo], corpus: str, on_collision: str
) -> Manifest:
    """Return the manifest of the merged shards."""
    return Manifest(
        format=FORMAT,
        corpus=corpus or "+".join(manifest.corpus for manifest in manifests),
        terms=_terms(manifests),
        labels=labels,
        entries=sum(manifest.entries for manifest in manifests),
        rejected=dict(sum((Counter(manifest.rejected) for manifest in manifests), Counter[str]())),
        shards=tuple(shards),
        build={"merge": {"collisions": on_collision}} | provenance(*manifests),
        extra_samples=sum(manifest.extra_samples for manifest in manifests),
    )


class _MergedSamples:
    """Samples of all folders with unique keys and the labels' new numbers.

    counts: samples per split. changed: number of samples done, renamed and renumbered. people: groups of the samples.
    """

    def __init__(
        self,
        folders: Sequence[Path],
        manifests: Sequence[Manifest],
        labels: tuple[str, ...],
        taken: Sequence[NDArray[np.uint64]],
        known: NDArray[np.uint64],
        progress: Progress,
    ) -> None:
        self._folders, self._manifests, self._labels = folders, manifests, labels
        self._taken, self._known, self._progress = taken, known, progress
        self.counts: Counter[str] = Counter()
        for manifest in manifests:
            for info in manifest.shards:
                self.counts[info.split] += info.samples
        self.changed = Counter[str]()
        self.people = _People()

    def read(self, split: str) -> Iterator[StoredSample]:
        """Yield the samples of a split, in the order of the folders."""
        for number, (folder, manifest) in enumerate(zip(self._folders, self._manifests, strict=True)):
            numbers = {place: self._labels.index(name) for place, name in enumerate(manifest.labels)}
            for info in manifest.shards:
                if info.split == split:
                    for sample in read_samples(folder, info):
                        self.changed["done"] += 1
                        self.people.add(number, split, sample)
                        renamed = _renamed(sample, number, self._taken[number], self._known, self.changed)
                        yield _renumbered(renamed, numbers, manifest.corpus, self.changed)
                    self._progress("copying", self.changed["done"], sum(self.counts.values()))


class _People:
    """Group names by folder and split, hashed to 8 bytes each: there may be one group per photo."""

    def __init__(self) -> None:
        self._hashed: dict[tuple[int, str], NDArray[np.uint64]] = {}
        self._new: dict[tuple[int, str], set[str]] = {}

    def add(self, folder: int, split: str, sample: StoredSample) -> None:
        """Add the group of a sample, if its json has one; ignore a json that cannot be parsed."""
        try:
            group = sample.metadata.get("group")
        except UserError:
            return
        if group is None or not is_text(str(group)):
            return
        new = self._new.setdefault((folder, split), set())
        new.add(normalize_unicode(str(group)))
        if len(new) >= MANY:
            self._pack()

    def in_several(self, part: int) -> int:
        """Return the number of names in more than one folder (part 0) or more than one split (part 1)."""
        self._pack()
        found: dict[int | str, NDArray[np.uint64]] = {}
        for place, hashes in self._hashed.items():
            found[place[part]] = np.union1d(found.get(place[part], np.empty(0, np.uint64)), hashes)
        every = np.concatenate([np.empty(0, np.uint64), *found.values()])
        return int((np.unique(every, return_counts=True)[1] > 1).sum())

    def _pack(self) -> None:
        for place, names in self._new.items():
            before = self._hashed.get(place, np.empty(0, np.uint64))
            self._hashed[place] = np.union1d(before, _hashes(sorted(names)))
        self._new.clear()


def _collisions(
    folders: Sequence[Path], manifests: Sequence[Manifest], progress: Progress
) -> tuple[list[NDArray[np.uint64]], NDArray[np.uint64]]:
    """Return, per folder, the hashes of keys that an earlier folder has, and the 8-byte hashes of all keys."""
    known = np.empty(0, np.uint64)
    taken = []
    for number, (folder, manifest) in enumerate(zip(folders, manifests, strict=True)):
        parts = [_hashes(shard_index(folder, info).keys) for info in manifest.shards]
        keys = np.concatenate(parts) if parts else np.empty(0, np.uint64)
        taken.append(np.intersect1d(keys, known))
        known = np.union1d(known, keys)
        progress("comparing keys", number + 1, len(folders))
    return taken, known


def _hashes(keys: Sequence[str]) -> NDArray[np.uint64]:
    return np.frombuffer(b"".join(keyed_hash(key, "merge")[:8] for key in keys), np.uint64)


def _is_in(key: str, hashes: NDArray[np.uint64]) -> bool:
    if not len(hashes):
        return False
    wanted = _hashes([key])[0]
    place = int(np.searchsorted(hashes, wanted))
    return place < len(hashes) and bool(hashes[place] == wanted)


def _colliding_keys(folder: Path, manifest: Manifest, hashes: NDArray[np.uint64]) -> str:
    """Return one of the keys with these hashes."""
    keys = (key for info in manifest.shards for key in shard_index(folder, info).keys)
    return next(key for key in keys if _is_in(key, hashes))


def _renamed(
    sample: StoredSample, folder: int, taken: NDArray[np.uint64], known: NDArray[np.uint64], changed: Counter[str]
) -> StoredSample:
    """Return the sample with a unique key, also in its json."""
    if not _is_in(sample.key, taken):
        return sample
    changed["renamed"] += 1
    marks = (f"{folder}/{sample.key}" if not turn else f"{folder} {turn}/{sample.key}" for turn in count())
    # The input may itself be merged and contain the key that this sample's position would give it.
    key = next(key for key in (disambiguated_key(sample.key, mark) for mark in marks) if not _is_in(key, known))
    said = {"json": json.dumps(sample.metadata | {"key": key}).encode()} if "json" in sample.members else {}
    return StoredSample(key, sample.members | said)


def _renumbered(sample: StoredSample, numbers: dict[int, int], corpus: str, changed: Counter[str]) -> StoredSample:
    """Return the sample with its label's new number."""
    before = sample.members.get("cls")
    if before is None:
        return sample
    try:
        number = str(numbers[int(before)]).encode()
    except (ValueError, KeyError):
        raise UserError(
            f"{sample.key}.cls contains {before[:20]!r}, but {corpus} has no such label. Fix: rebuild the shards."
        ) from None
    changed["renumbered"] += number != before
    return StoredSample(sample.key, sample.members | {"cls": number})


def _rejects(folder: Path) -> bytes:
    path = folder / REJECTED
    return read_bytes(path) if path.exists() else b""


def _terms(manifests: Sequence[Manifest]) -> str:
    """Return all terms, each with its corpora."""
    names: dict[str, list[str]] = {}
    for manifest in manifests:
        if manifest.terms and manifest.corpus not in names.setdefault(manifest.terms, []):
            names[manifest.terms].append(manifest.corpus)
    return "; ".join(f"{', '.join(corpora)}: {terms}" for terms, corpora in names.items())
