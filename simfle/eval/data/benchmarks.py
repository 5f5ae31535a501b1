"""Benchmarks: shards, classes, splits, protocols and metric, one YAML file each."""

# ruff: noqa: RUF009 - config_field() is a dataclass field
import dataclasses
import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shards.io.file_names import is_plain
from simfle.config.schema import CONFIGS, config_field, load
from simfle.config.validate import check_distinct_places, validate
from simfle.errors import UserError
from simfle.eval.config import EvalConfig

FOLDER = CONFIGS / "benchmarks"
OWN = "own"  # name of the benchmark made of shards=
METRICS = ("accuracy", "balanced_accuracy", "macro_f1")


@dataclass(frozen=True)
class NmeNormalizer:
    """Normalizer of landmark errors in pixels. Points are numbered from 0 in the order of the shards' landmarks."""

    left: list[int] = config_field(
        list, "points whose mean is one end of the distance, such as the outer corner of the left eye"
    )
    right: list[int] = config_field(
        list, "points whose mean is the other end (both empty = box size, sqrt(width * height))"
    )


@dataclass(frozen=True)
class Benchmark:
    """Labeled set of faces and its use. If `val` or `test` is empty, the split is held out from `train`, by group."""

    name: str = config_field("", "name in folders and tables")
    title: str = config_field("", "one-line description")
    shards: list[str] = config_field(
        list, "folders of shards; usually given on the command line as NAME=FOLDER", is_path=True
    )
    classes: list[str] = config_field(list, "label names to use (empty = all in the shards)")
    labeled: bool = config_field(True, "whether samples have expression labels; false for landmark sets")
    train: str = config_field("train", "split to fit classifiers on")
    val: str = config_field("", "split for model selection (empty = val_fraction of train)")
    val_fraction: float = config_field(0.1, "fraction of train, by group, to use if val is empty", above=0, max=0.5)
    test: str = config_field("test", "split to test on (empty = test_fraction of train, or folds)")
    test_fraction: float = config_field(
        0.2, "fraction of train, by group, to use if test is empty and folds is 0", above=0, max=0.5
    )
    folds: int = config_field(
        0, "number of cross-validation folds of train, by group, if test is empty", min=0, rule="not 1"
    )
    min_class_count: int = config_field(
        1, "minimum number of images of a class in all splits; rarer classes are excluded", min=1
    )
    protocols: list[str] = config_field(lambda: ["linear_fast", "knn"], "default protocols")
    metric: str = config_field(
        "balanced_accuracy", "primary metric: accuracy, balanced_accuracy or macro_f1", choices=METRICS
    )
    expected: dict[str, dict[str, int]] = config_field(
        dict,
        "published counts: split -> class -> images ('' = total of the split); a mismatch is reported, not an error",
    )
    nme_points: NmeNormalizer = config_field(NmeNormalizer, "normalizer of landmark errors")
    landmark_indices: list[int] = config_field(list, "landmark numbers to use (empty = all)")


def open_benchmark(word: str, config: EvalConfig) -> Benchmark:
    """Load the benchmark of `word`: NAME or FILE.yaml, optionally with =FOLDER for its shards.

    Raises:
        UserError: If the benchmark is unknown, a field is invalid, or there are no shards.
    """
    name, _, folder = word.partition("=")
    file = Path(name) if name.endswith((".yaml", ".yml")) else FOLDER / f"{name}.yaml"
    if not file.is_file():
        known = [path.stem for path in sorted(FOLDER.glob("*.yaml"))]
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"use {near[0]}" if near else f"choose one of {', '.join(known)}, or a YAML file"
        raise UserError(f"benchmarks={name}: unknown. Fix: {hint}.")
    found = load(Benchmark, file)
    shards = [folder] if folder else found.shards or list(config.shards)
    found = dataclasses.replace(found, name=found.name or file.stem, shards=shards)
    if not shards:
        raise UserError(
            f"benchmarks={name}: the shards of {found.name} are not given. Fix: set benchmarks=[{name}=FOLDER]."
        )
    check(found, str(file))
    check_distinct_places("shards", found.shards)
    return found


def custom_benchmark(config: EvalConfig) -> Benchmark:
    """Build a benchmark from shards, *_split, val_fraction and min_class_count of an evaluation."""
    if not config.shards:
        raise UserError("benchmarks=[]: empty. Fix: set benchmarks=[NAME=FOLDER] or shards=[FOLDER].")
    found = Benchmark(
        name=OWN,
        title="the given shards",
        shards=list(config.shards),
        train=config.train_split,
        val=config.val_split,
        val_fraction=config.val_fraction,
        test=config.test_split,
        min_class_count=config.min_class_count,
    )
    check(found, "the configuration")
    check_distinct_places("shards", found.shards)
    return found


def check(benchmark: Benchmark, place: str) -> None:
    """Raise UserError for the first field that is out of range."""
    if not is_plain(benchmark.name):
        raise UserError(f"{place}: name={benchmark.name!r}: not a valid folder name. Fix: use a name without /.")
    try:
        validate(benchmark)
    except UserError as error:
        raise UserError(f"{place}: {error}") from None
    if benchmark.folds == 1:
        raise UserError(f"{place}: folds=1: one fold leaves nothing to train on. Fix: set folds to 0 or at least 2.")
    if benchmark.folds and benchmark.test:
        raise UserError(
            f"{place}: test={benchmark.test}: not empty, but folds are made from train. Fix: set test= or folds=0."
        )
    if benchmark.folds and benchmark.val:
        raise UserError(
            f"{place}: val={benchmark.val}: not empty, but with folds val is made from train. Fix: set val= or folds=0."
        )
    parts = [part for part in (benchmark.train, benchmark.val, benchmark.test) if part]
    if len(set(parts)) != len(parts):
        raise UserError(
            f"{place}: train, val and test are not different splits: {', '.join(parts)}. Fix: choose different splits."
        )
    if len(set(benchmark.classes)) != len(benchmark.classes):
        raise UserError(f"{place}: classes: a name is repeated. Fix: list each class once.")
    if bool(benchmark.nme_points.left) != bool(benchmark.nme_points.right):
        raise UserError(f"{place}: nme_points: only one side has points. Fix: list points for both sides or for none.")


def differences(benchmark: Benchmark, counts: dict[str, dict[str, int]]) -> list[str]:
    """Compare counts (split -> class -> images) with the published ones; return one line per split that differs."""
    lines = []
    for split, wanted in benchmark.expected.items():
        if split not in counts:
            continue
        found = {**counts[split], "": sum(counts[split].values())}
        words = [
            f"{name or 'images'} {found.get(name, 0)} instead of {count}"
            for name, count in wanted.items()
            if found.get(name, 0) != count
        ]
        if words:
            lines.append(f"{benchmark.name}: split {split} differs from the published counts: {', '.join(words)}")
    return lines


def settings(benchmark: Benchmark) -> dict[str, Any]:
    """Return the fields of a benchmark that affect results: all except its location and names."""
    values = dataclasses.asdict(benchmark)
    return {name: value for name, value in values.items() if name not in ("title", "shards", "expected", "protocols")}
