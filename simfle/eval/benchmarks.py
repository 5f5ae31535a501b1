"""Benchmarks: which shards, classes and splits, by which protocols, measured how. One YAML file each."""

# ruff: noqa: RUF009 - option() is a dataclass field
import dataclasses
import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shards.names import is_plain
from simfle.config import CONFIGS, load, option
from simfle.errors import UserError
from simfle.eval.config import EvalConfig

FOLDER = CONFIGS / "benchmarks"
METRICS = ("accuracy", "balanced_accuracy", "macro_f1")


@dataclass(frozen=True)
class Normaliser:
    """What an error in pixels is divided by. Points are numbered from 0 in the order of the shards' landmarks."""

    left: list[int] = option(list, "points whose mean is one end, such as the outer corner of the left eye")
    right: list[int] = option(list, "points whose mean is the other end; both empty: the box, sqrt(width * height)")


@dataclass(frozen=True)
class Benchmark:
    """A labelled set of faces and how it is used. Without `val` and `test`, these are cut from `train`, by group."""

    name: str = option("", "its name, in folders and tables")
    title: str = option("", "one line for people")
    shards: list[str] = option(list, "folders of its shards; usually given on the command line: NAME=FOLDER", path=True)
    classes: list[str] = option(list, "names of the labels that count; empty: all in the shards")
    labelled: bool = option(True, "false: a set without expressions, for landmarks")
    train: str = option("train", "split that classifiers are fitted on")
    val: str = option("", "split that choices are made on; empty: val_share of train")
    val_share: float = option(0.1, "share of train, by group, where there is no val")
    test: str = option("test", "split that is measured; empty: test_share of train, or folds")
    test_share: float = option(0.2, "share of train, by group, where test is empty and there are no folds")
    folds: int = option(0, "cross-validation by group over train, where test is empty")
    min_class_count: int = option(1, "classes with fewer images in all splits are left out")
    protocols: list[str] = option(lambda: ["linear_fast", "knn"], "protocols that are run unless told otherwise")
    metric: str = option("balanced_accuracy", "the metric that counts: accuracy, balanced_accuracy or macro_f1")
    expected: dict[str, dict[str, int]] = option(
        dict, "published counts: split -> class -> images ('': of the whole split); a difference is told, not refused"
    )
    normaliser: Normaliser = option(Normaliser, "of landmark errors")
    points: list[int] = option(list, "landmarks that count, by number; empty: all")


def open_benchmark(word: str, config: EvalConfig) -> Benchmark:
    """The benchmark that `word` names: NAME, FILE.yaml, and where its shards are if =FOLDER follows.

    Raises:
        UserError: there is no such benchmark, a field of it is wrong, nobody says where its shards are.
    """
    name, _, folder = word.partition("=")
    file = Path(name) if name.endswith((".yaml", ".yml")) else FOLDER / f"{name}.yaml"
    if not file.is_file():
        known = [path.stem for path in sorted(FOLDER.glob("*.yaml"))]
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}, and YAML files of your own"
        raise UserError(f"benchmarks: no benchmark {name!r}; {hint}")
    found = load(Benchmark, file)
    shards = [folder] if folder else found.shards or list(config.shards)
    found = dataclasses.replace(found, name=found.name or file.stem, shards=shards)
    if not shards:
        raise UserError(f"benchmarks: where are the shards of {found.name}? Write benchmarks=[{name}=FOLDER]")
    check(found, str(file))
    return found


def own_benchmark(config: EvalConfig) -> Benchmark:
    """The benchmark that shards, *_split, val_share and min_class_count of an evaluation describe."""
    if not config.shards:
        raise UserError("benchmarks: none given; write benchmarks=[NAME=FOLDER] or shards=[FOLDER]")
    found = Benchmark(
        name="own",
        title="the given shards",
        shards=list(config.shards),
        train=config.train_split,
        val=config.val_split,
        val_share=config.val_share,
        test=config.test_split,
        min_class_count=config.min_class_count,
    )
    check(found, "the configuration")
    return found


def check(benchmark: Benchmark, place: str) -> None:
    """Raise a UserError that names the first field out of its range."""
    if not is_plain(benchmark.name):
        raise UserError(f"{place}: name={benchmark.name!r}: it cannot name a folder of results. Fix: a name without /")
    if benchmark.metric not in METRICS:
        raise UserError(f"{place}: metric {benchmark.metric!r} is unknown; there are: {', '.join(METRICS)}")
    for field in ("val_share", "test_share"):
        if not 0 < getattr(benchmark, field) <= 0.5:
            raise UserError(f"{place}: {field} {getattr(benchmark, field)} must be above 0 and at most 0.5")
    if benchmark.folds == 1 or benchmark.folds < 0 or benchmark.min_class_count < 1:
        raise UserError(f"{place}: folds must be 0 or at least 2, min_class_count at least 1")
    if benchmark.folds and benchmark.test:
        raise UserError(f"{place}: folds are cut from train, so test must be empty, not {benchmark.test!r}")
    if benchmark.folds and benchmark.val:
        raise UserError(f"{place}: with folds, choices are made on a share of train; leave val empty")
    parts = [part for part in (benchmark.train, benchmark.val, benchmark.test) if part]
    if len(set(parts)) != len(parts):
        raise UserError(f"{place}: train, val and test must be different splits, not {', '.join(parts)}")
    if len(set(benchmark.classes)) != len(benchmark.classes):
        raise UserError(f"{place}: a class is listed twice")
    if bool(benchmark.normaliser.left) != bool(benchmark.normaliser.right):
        raise UserError(f"{place}: normaliser needs points on both sides, or on none")


def differences(benchmark: Benchmark, counts: dict[str, dict[str, int]]) -> list[str]:
    """How counts (split -> class -> images) differ from the published ones, a line for each split that does."""
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
    """What of a benchmark decides numbers: all but where it lies and what it is called."""
    values = dataclasses.asdict(benchmark)
    return {name: value for name, value in values.items() if name not in ("title", "shards", "expected", "protocols")}
