"""Select the training, validation and test samples of a benchmark, once or once per fold."""

import itertools
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from simfle.data.dataset import UnknownSplitError
from simfle.errors import UserError
from simfle.eval.data.benchmarks import OWN, Benchmark, differences
from simfle.eval.data.splits import (
    Split,
    check_classes,
    folds,
    frequent_classes,
    holdout_split,
    name_classes,
    read_split,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FoldSplits:
    """Samples to fit (train), select (val) and test (test) one classifier. No group is in two of them.

    Exception: splits of the shards that share groups, which is reported.
    """

    train: Split
    val: Split
    test: Split


@dataclass(frozen=True)
class BenchmarkData:
    """Splits of a benchmark as stored in its shards, with the selected classes. `about` holds facts for the results."""

    benchmark: Benchmark
    train: Split
    val: Split | None
    test: Split | None
    about: dict[str, Any]

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, or () if the set has none."""
        return self.train.classes

    def digest(self) -> list[str]:
        """Identify the samples, independent of the shards' location."""
        return [split.source.digest for split in (self.train, self.val, self.test) if split]


def read_data(benchmark: Benchmark) -> BenchmarkData:
    """Read the splits of a benchmark; log excluded samples and differences to the published counts.

    Raises:
        UserError: If a class is missing in a split, or there are fewer than two classes; see also `read_split`.
    """
    names = [benchmark.train, benchmark.val, benchmark.test]
    try:
        read = {name: read_split(benchmark.shards, name, benchmark.labeled) for name in names if name}
    except UnknownSplitError as error:
        raise _unknown_split(benchmark, error) from None
    left_out: dict[str, int] = {}
    if benchmark.labeled:
        if benchmark.classes:
            read = {name: name_classes(split, benchmark.classes) for name, split in read.items()}
        kept, left_out = frequent_classes(list(read.values()), benchmark.min_class_count)
        read = {name: name_classes(split, kept) for name, split in read.items()}
    for name, split in read.items():
        if not len(split):
            raise UserError(
                f"{benchmark.name}: split {name!r} has no sample of {', '.join(split.classes)}. "
                "Fix: choose another split."
            )
        if split.unlabeled:
            log.warning("%s: split %s: %d images without a label are excluded", benchmark.name, name, split.unlabeled)
    for name, count in left_out.items():
        least = benchmark.min_class_count
        log.warning("%s: class %s is excluded: %d images, min_class_count=%d", benchmark.name, name, count, least)
    counts = {name: split.counts() for name, split in read.items()}
    differ = differences(benchmark, counts)
    for line in differ:
        log.warning("%s", line)
    for line in (known := _known(benchmark.name, list(read.values()))):
        log.warning("%s", line)
    train, val, test = (read.get(name) for name in names)
    if train is None:
        raise UserError(f"{benchmark.name}: train is empty. Fix: set it to a split.")
    about = {"left_out": left_out, "differs": [*differ, *known], "shards": benchmark.shards, "title": benchmark.title}
    return BenchmarkData(benchmark, train, val, test, about)


def _unknown_split(benchmark: Benchmark, error: UnknownSplitError) -> UserError:
    """Return an error that names the field of the missing split and a split to use instead."""
    asked = {"train": benchmark.train, "val": benchmark.val, "test": benchmark.test}
    field = next(name for name, split in asked.items() if split == error.split)
    field = f"{field}_split" if benchmark.name == OWN else f"{benchmark.name}: {field}"
    free = [split for split in error.known if split not in asked.values()]
    fix = f"set {field.rpartition(' ')[2]}={free[0]}" if free else "make one with simfle shards split"
    return UserError(
        f"{field}={error.split}: no split {error.split!r} in these shards, only {', '.join(error.known)}. Fix: {fix}."
    )


def _known(name: str, splits: list[Split]) -> list[str]:
    """Return a line for each pair of splits with common people, whose scores are for people seen in training."""
    people = [set(split.groups) - set(split.keys) for split in splits]  # unknown people have the sample's key
    return [
        f"{name}: {count} people of split {splits[b].name} are also in split {splits[a].name}; "
        "simfle shards split assigns each person to one split"
        for a, b in itertools.combinations(range(len(splits)), 2)
        if (count := len(people[a] & people[b]))
    ]


def fold_splits(data: BenchmarkData, share: float, seed: int) -> Iterator[FoldSplits]:
    """Return the parts of each fold (or of a single fold). `train` has the fraction `share` of the labels, and each
    seed has another subset.

    Raises:
        UserError: If a required class is missing.
    """
    benchmark = data.benchmark
    if data.test is not None:
        rounds = [(data.train, data.test)]
    elif benchmark.folds:
        masks = folds(data.train, benchmark.folds)
        rounds = [(data.train.only(~mask), data.train.only(mask)) for mask in masks]
    else:
        mask = holdout_split(data.train, benchmark.test_fraction, "test")
        rounds = [(data.train.only(~mask), data.train.only(mask))]
    for train, test in rounds:
        if data.val is not None:
            val = data.val
        else:
            mask = holdout_split(train, benchmark.val_fraction, "val")
            train, val = train.only(~mask), train.only(mask)  # noqa: PLW2901 - the remaining samples
        if share < 1:
            train = train.only(holdout_split(train, share, f"few-{seed}", leave=False))  # noqa: PLW2901
        check_classes(train, "training")
        if not benchmark.folds:
            check_classes(test, "testing")
        for use, split in (("choices", val), ("testing", test)):
            if not len(split):
                raise UserError(
                    f"{benchmark.name}: no sample is left for {use} (split {split.name!r}). Fix: add people."
                )
        yield FoldSplits(train, val, test)


def describe(data: BenchmarkData, found: list[FoldSplits]) -> dict[str, Any]:
    """Return counts for the results: samples, people and classes of each part, over all folds together."""
    about = dict(data.about)
    for name in ("train", "val", "test"):
        splits = [getattr(each, name) for each in found]
        counts: dict[str, int] = {}
        for split in splits:
            for label, count in split.counts().items():
                counts[label] = counts.get(label, 0) + count
        people = [split.people() for split in splits]
        about[name] = {
            "split": splits[0].name,
            "samples": sum(map(len, splits)),
            "people": None if None in people else sum(people),
            "counts": list(counts.values()),
        }
    about["classes"] = list(data.classes)
    about["folds"] = len(found)
    about["chance"] = 1 / len(data.classes) if data.classes else None
    return about
