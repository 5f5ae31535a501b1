"""Labelled splits of shards: which samples, which classes."""

# n samples, K classes
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from simfle.data.reader import Corpus
from simfle.errors import UserError

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Split:
    """The labelled samples of one split, in the order of their ids.

    ids, shards, samples: [n], global id and place in `corpus`; labels: [n], a position in `classes`;
    keys, groups: n names (the group is the key where no person is known); unlabelled: how many were passed over.
    """

    name: str
    corpus: Corpus
    ids: Ints
    shards: Ints
    samples: Ints
    labels: Ints
    keys: tuple[str, ...]
    groups: tuple[str, ...]
    classes: tuple[str, ...]
    unlabelled: int

    def __len__(self) -> int:
        return len(self.ids)


def read_split(folders: Sequence[str], name: str) -> Split:
    """Read the labels of a split.

    Raises:
        UserError: shards missing or damaged, unknown split (those there are named), no label in it.
    """
    corpus = Corpus(folders, [name])
    classes = corpus.labels
    rows, keys, groups, unlabelled = [], [], [], 0
    for shard, (count, first) in enumerate(zip(corpus.counts, corpus.first_ids, strict=True)):
        for sample in range(count):
            label = corpus.label(shard, sample)
            if label is None:
                unlabelled += 1
                continue
            if not 0 <= label < len(classes):
                raise UserError(f"shards: {corpus.tar(shard)} has label {label}, the manifest names {len(classes)}")
            key = corpus.key(shard, sample)
            rows.append((first + sample, shard, sample, label))
            keys.append(key)
            groups.append(str(corpus.meta(shard, sample).get("group") or key))
    if not rows:
        raise UserError(
            f"shards: split {name!r} of {', '.join(map(str, folders))} has no labels; build the shards from class "
            "folders or with a label column"
        )
    ids, shards, samples, labels = np.array(rows, dtype=np.int64).T
    return Split(name, corpus, ids, shards, samples, labels, tuple(keys), tuple(groups), classes, unlabelled)


def choose_classes(train: Split, test: Split, least: int) -> tuple[Split, Split, dict[str, int]]:
    """Keep the classes with at least `least` samples in both splits together; -> train, test, {left out: samples}.

    Raises:
        UserError: a class is missing in one split, or fewer than two classes stay.
    """
    many = len(train.classes)
    in_train, in_test = (np.bincount(split.labels, minlength=many) for split in (train, test))
    left_out = {
        train.classes[i]: int(in_train[i] + in_test[i]) for i in range(many) if in_train[i] + in_test[i] < least
    }
    kept = [i for i, name in enumerate(train.classes) if name not in left_out]
    for i in kept:
        for split, counts in ((train, in_train), (test, in_test)):
            if not counts[i]:
                raise UserError(
                    f"shards: no {train.classes[i]!r} in split {split.name!r} ({in_train[i] + in_test[i]} in both); "
                    f"raise min_class_count above {in_train[i] + in_test[i]} to leave the class out"
                )
    if len(kept) < 2:
        names = ", ".join(train.classes[i] for i in kept) or "none"
        raise UserError(f"shards: at least two classes are needed, there is {names} (min_class_count={least})")
    return _only(train, kept), _only(test, kept), left_out


def _only(split: Split, kept: Sequence[int]) -> Split:
    position = np.full(len(split.classes), -1)
    position[kept] = np.arange(len(kept))
    labels = position[split.labels]
    chosen = np.nonzero(labels >= 0)[0]
    return replace(
        split,
        ids=split.ids[chosen],
        shards=split.shards[chosen],
        samples=split.samples[chosen],
        labels=labels[chosen],
        keys=tuple(split.keys[i] for i in chosen),
        groups=tuple(split.groups[i] for i in chosen),
        classes=tuple(split.classes[i] for i in kept),
    )
