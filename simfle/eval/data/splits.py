"""Splits of labeled shards: samples, classes, and subsets for validation, tests and training with few labels.

Every subset is a pure function of the group names (people, films, photos) and a word. It is stratified by class and
keeps groups complete.
"""

# n samples, K classes, G groups
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from shards.io.hashing import digest, short_hash
from simfle.data.dataset import ShardCorpus
from simfle.errors import UserError

Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class SplitSource:
    """Split of shards: n samples with their location in `corpus` (ids, shards, samples: [n])."""

    name: str
    corpus: ShardCorpus
    ids: Ints
    shards: Ints
    samples: Ints

    @cached_property
    def digest(self) -> str:
        """Identify the samples and their content, independent of the shards' location."""
        return digest([self.corpus.digest(), self.name, short_hash(self.ids.tobytes()).hex()])

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Split:
    """Selected samples of a source.

    rows: [n], positions in `source`; labels: [n], positions in `classes` (0 if the set has no classes); keys,
    groups: n names (the key replaces an unknown group); unlabeled: number of samples skipped for lack of a label.
    """

    name: str
    source: SplitSource
    rows: Ints
    labels: Ints
    keys: tuple[str, ...]
    groups: tuple[str, ...]
    classes: tuple[str, ...]
    unlabeled: int = 0

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def ids(self) -> Ints:
        """Return the global ids [n]."""
        return self.source.ids[self.rows]

    def only(self, chosen: Ints | Flags) -> "Split":
        """Return a split with some of the samples, in the given order (or selected by a mask)."""
        picked = np.nonzero(chosen)[0] if chosen.dtype == bool else chosen
        return replace(
            self,
            rows=self.rows[picked],
            labels=self.labels[picked],
            keys=tuple(self.keys[i] for i in picked),
            groups=tuple(self.groups[i] for i in picked),
        )

    def counts(self) -> dict[str, int]:
        """Return the number of samples of each class."""
        found = np.bincount(self.labels, minlength=len(self.classes)).tolist()
        return dict(zip(self.classes, found, strict=True)) if self.classes else {"": len(self)}

    def people(self) -> int | None:
        """Return the number of groups, or None if the shards define no groups."""
        return len(set(self.groups)) if self.groups != self.keys else None

    def metadata(self, position: int) -> dict:
        """Return the metadata of the sample at a position of this split."""
        row = self.rows[position]
        return self.source.corpus.metadata(int(self.source.shards[row]), int(self.source.samples[row]))


def read_split(folders: Sequence[str], name: str, labeled: bool = True) -> Split:
    """Read a split: its labeled samples, or all samples as unlabeled ones.

    Raises:
        UserError: If shards are missing or corrupt, the split is unknown (the existing splits are listed) or has no
            label, or a label is not in the manifest.
    """
    corpus = ShardCorpus(folders, [name])
    classes = corpus.labels if labeled else ()
    rows, keys, groups, unlabeled = [], [], [], 0
    taken: set[str] = set()
    for shard, (count, first) in enumerate(zip(corpus.counts.tolist(), corpus.first_ids.tolist(), strict=True)):
        for sample in range(count):
            label = corpus.label(shard, sample) if labeled else 0
            if label is None:
                unlabeled += 1
                continue
            key = corpus.key(shard, sample)
            while key in taken:  # by a sample of another folder; names are unique within a folder
                key = f"{corpus.stores.index(corpus.shards[shard][0]) + 1}: {key}"
            taken.add(key)
            if labeled and not 0 <= label < len(classes):
                raise UserError(
                    f"shards: {corpus.shard_location(shard)}: {key} has label {label}, but the manifest has "
                    f"{len(classes)}. Fix: rebuild the shards."
                )
            rows.append((first + sample, shard, sample, label))
            keys.append(key)
            groups.append(str(corpus.metadata(shard, sample).get("group") or key))
    if not rows:
        raise UserError(
            f"shards: split {name!r} of {', '.join(map(str, folders))} has no labels. Fix: build the shards from class "
            "folders or with a label column."
        )
    ids, shards, samples, labels = np.array(rows, dtype=np.int64).T
    source = SplitSource(name, corpus, ids, shards, samples)
    return Split(name, source, np.arange(len(ids)), labels, tuple(keys), tuple(groups), classes, unlabeled)


def name_classes(split: Split, names: Sequence[str]) -> Split:
    """Select samples of the named classes, numbered in that order. Raises UserError for an unknown name."""
    absent = [name for name in names if name not in split.classes]
    if absent:
        raise UserError(
            f"shards: no class {absent[0]!r} among the labels of split {split.name!r} ({', '.join(split.classes)}). "
            "Fix: build them with --labels, or use the shards' class names."
        )
    position = np.full(len(split.classes), -1)
    for place, name in enumerate(names):
        position[split.classes.index(name)] = place
    labels = position[split.labels]
    return replace(split, labels=labels, classes=tuple(names)).only(labels >= 0)


def frequent_classes(splits: Sequence[Split], least: int) -> tuple[list[str], dict[str, int]]:
    """Return the names of the classes with at least `least` samples in all splits together, and the other classes'
    counts.

    Raises:
        UserError: If fewer than two classes remain.
    """
    total: dict[str, int] = {}
    for split in splits:
        for name, count in split.counts().items():
            total[name] = total.get(name, 0) + count
    kept = [name for name, count in total.items() if count >= least]
    if len(kept) < 2:
        words = ", ".join(kept) or "none"
        raise UserError(
            f"min_class_count={least}: at least two classes are needed, found {words}. Fix: lower it, or add images."
        )
    return kept, {name: count for name, count in total.items() if name not in kept}


def check_classes(split: Split, use: str) -> None:
    """Raise UserError for the first class without a sample, where `use` needs one."""
    for name, count in split.counts().items():
        if not count:
            raise UserError(
                f"shards: no {name or 'sample'!r} in split {split.name!r} for {use}. Fix: exclude the class (classes, "
                "min_class_count) or add people."
            )


def holdout_split(split: Split, share: float, word: str, *, leave: bool = True) -> Flags:
    """Select the samples [n] of a subset with a fraction of each class, by complete groups.

    Classes are filled in ascending order of their size, each with groups in the order of a hash of `word` and their
    names, up to its fraction (rounded, at least one sample). With `leave`, the last group of a class is never taken.
    """
    names, group = np.unique(np.array(split.groups), return_inverse=True)
    table = np.zeros((len(names), max(1, len(split.classes))), np.int64)  # [G, K] samples
    np.add.at(table, (group, split.labels), 1)
    total = table.sum(0)  # [K]
    wanted = np.maximum(1, np.rint(share * total)).astype(np.int64)
    order = np.array(sorted(range(len(names)), key=lambda i: short_hash(f"{word}/{names[i]}".encode())))
    taken, have = np.zeros(len(names), bool), np.zeros_like(total)
    for place in np.argsort(total, kind="stable"):
        for g in order[table[order, place] > 0]:
            if have[place] >= wanted[place]:
                break
            after = have + table[g]
            if taken[g] or (leave and (after[table[g] > 0] >= total[table[g] > 0]).any()):
                continue
            taken[g], have = True, after
    return taken[group]


def folds(split: Split, count: int) -> list[Flags]:
    """Return masks [n] of `count` parts: groups in the order of their names are assigned in turn."""
    names, group = np.unique(np.array(split.groups), return_inverse=True)
    if len(names) < count:
        raise UserError(f"shards: folds={count}: split {split.name!r} has only {len(names)} people. Fix: lower folds.")
    return [group % count == fold for fold in range(count)]
