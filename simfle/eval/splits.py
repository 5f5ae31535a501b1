"""Splits of labelled shards: which samples, which classes, and what is cut off for choices, tests and few labels.

Every cut is a pure function of the group names (people, films, photos) and a word, stratified by class, and never
divides a group.
"""

# n samples, K classes, G groups
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from simfle.data.reader import Corpus
from simfle.errors import UserError
from simfle.eval.results import digest

Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Source:
    """One split of shards as read: n samples with their place in `corpus` (ids, shards, samples: [n])."""

    name: str
    corpus: Corpus
    ids: Ints
    shards: Ints
    samples: Ints

    @cached_property
    def digest(self) -> str:
        """Names the samples and their content, wherever the shards lie."""
        return digest([self.corpus.digest(), self.name, hashlib.blake2b(self.ids.tobytes(), digest_size=8).hexdigest()])

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Split:
    """Samples of a source.

    rows: [n], positions in `source`; labels: [n], positions in `classes` (0 where the set has no classes); keys,
    groups: n names (the group is the key where none is known); unlabelled: how many were passed over in reading.
    """

    name: str
    source: Source
    rows: Ints
    labels: Ints
    keys: tuple[str, ...]
    groups: tuple[str, ...]
    classes: tuple[str, ...]
    unlabelled: int = 0

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def ids(self) -> Ints:
        """Global ids [n]."""
        return self.source.ids[self.rows]

    def only(self, chosen: Ints | Flags) -> "Split":
        """Some of its samples, in the given order (or those that a mask marks)."""
        picked = np.nonzero(chosen)[0] if chosen.dtype == bool else chosen
        return replace(
            self,
            rows=self.rows[picked],
            labels=self.labels[picked],
            keys=tuple(self.keys[i] for i in picked),
            groups=tuple(self.groups[i] for i in picked),
        )

    def counts(self) -> dict[str, int]:
        """Samples of each class."""
        found = np.bincount(self.labels, minlength=len(self.classes)).tolist()
        return dict(zip(self.classes, found, strict=True)) if self.classes else {"": len(self)}

    def people(self) -> int | None:
        """How many groups; None where the shards do not say."""
        return len(set(self.groups)) if self.groups != self.keys else None

    def meta(self, position: int) -> dict:
        """What the shards know of the sample at a position of this split."""
        row = self.rows[position]
        return self.source.corpus.meta(int(self.source.shards[row]), int(self.source.samples[row]))


def read_split(folders: Sequence[str], name: str, labelled: bool = True) -> Split:
    """Read a split: its labelled samples, or all of them without labels.

    Raises:
        UserError: shards missing or damaged, unknown split (those there are named), no label in it, a label beyond
            those that the manifest names.
    """
    corpus = Corpus(folders, [name])
    classes = corpus.labels if labelled else ()
    rows, keys, groups, unlabelled = [], [], [], 0
    taken: set[str] = set()
    for shard, (count, first) in enumerate(zip(corpus.counts.tolist(), corpus.first_ids.tolist(), strict=True)):
        for sample in range(count):
            label = corpus.label(shard, sample) if labelled else 0
            if label is None:
                unlabelled += 1
                continue
            key = corpus.key(shard, sample)
            while key in taken:  # of another folder: names are unique within one
                key = f"{corpus.places.index(corpus.shards[shard][0]) + 1}: {key}"
            taken.add(key)
            if labelled and not 0 <= label < len(classes):
                raise UserError(
                    f"shards: {corpus.tar(shard)}: {key} has label {label}, the manifest names {len(classes)}"
                )
            rows.append((first + sample, shard, sample, label))
            keys.append(key)
            groups.append(str(corpus.meta(shard, sample).get("group") or key))
    if not rows:
        raise UserError(
            f"shards: split {name!r} of {', '.join(map(str, folders))} has no labels; build the shards from class "
            "folders or with a label column"
        )
    ids, shards, samples, labels = np.array(rows, dtype=np.int64).T
    source = Source(name, corpus, ids, shards, samples)
    return Split(name, source, np.arange(len(ids)), labels, tuple(keys), tuple(groups), classes, unlabelled)


def name_classes(split: Split, names: Sequence[str]) -> Split:
    """Only the samples of the named classes, numbered in that order. Raises UserError for a name that is not there."""
    absent = [name for name in names if name not in split.classes]
    if absent:
        raise UserError(
            f"shards: no class {absent[0]!r} among the labels of split {split.name!r} ({', '.join(split.classes)}); "
            "build them with --labels or list the classes as the shards name them"
        )
    position = np.full(len(split.classes), -1)
    for place, name in enumerate(names):
        position[split.classes.index(name)] = place
    labels = position[split.labels]
    return replace(split, labels=labels, classes=tuple(names)).only(labels >= 0)


def frequent_classes(splits: Sequence[Split], least: int) -> tuple[list[str], dict[str, int]]:
    """Names of the classes with at least `least` samples in all splits together, and the counts of the others.

    Raises:
        UserError: fewer than two classes stay.
    """
    total: dict[str, int] = {}
    for split in splits:
        for name, count in split.counts().items():
            total[name] = total.get(name, 0) + count
    kept = [name for name, count in total.items() if count >= least]
    if len(kept) < 2:
        words = ", ".join(kept) or "none"
        raise UserError(f"shards: at least two classes are needed, there is {words} (min_class_count={least})")
    return kept, {name: count for name, count in total.items() if name not in kept}


def check_classes(split: Split, use: str) -> None:
    """Raise a UserError that names the first class without a sample in what is to be used for `use`."""
    for name, count in split.counts().items():
        if not count:
            raise UserError(
                f"shards: no {name or 'sample'!r} in split {split.name!r} for {use}; leave the class out (classes, "
                "min_class_count) or give more people"
            )


def cut(split: Split, share: float, word: str, *, leave: bool = True) -> Flags:
    """Which samples [n] belong to a cut of so large a share of each class, by whole groups.

    Classes are served from the rarest on, each from the groups in the order of a hash of `word` and their names, until
    it has its share (rounded, at least one sample). leave: never take the last group of a class.
    """
    names, group = np.unique(np.array(split.groups), return_inverse=True)
    table = np.zeros((len(names), max(1, len(split.classes))), np.int64)  # [G, K] samples
    np.add.at(table, (group, split.labels), 1)
    total = table.sum(0)  # [K]
    wanted = np.maximum(1, np.rint(share * total)).astype(np.int64)
    order = np.array(sorted(range(len(names)), key=lambda i: _hash(word, str(names[i]))))
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
    """Masks [n] of `count` parts: groups in the order of their names are dealt out in turn."""
    names, group = np.unique(np.array(split.groups), return_inverse=True)
    if len(names) < count:
        raise UserError(f"shards: {count} folds cannot be cut from {len(names)} people in split {split.name!r}")
    return [group % count == fold for fold in range(count)]


def _hash(word: str, name: str) -> bytes:
    return hashlib.blake2b(f"{word}/{name}".encode(), digest_size=8).digest()
