"""The table over all results: one row for each backbone, benchmark and protocol, seeds averaged; and paired tests.

Everything in it is computed from the files of the store, none of which it changes.
"""

import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from shards.files import read_bytes, write_atomic
from shards.plain import parse_object
from shards.redact import to_json
from simfle.errors import UserError
from simfle.eval import shown
from simfle.eval.compare import Comparison, compare
from simfle.eval.metrics import intervals, mean
from simfle.eval.results import Result, digest
from simfle.layers import flatten
from simfle.provenance import git_revision, versions

FORMAT = 1


@dataclass(frozen=True)
class Row:
    """Of one backbone by one protocol on one benchmark: metrics averaged over seeds; spread: standard deviation of the
    one that counts over seeds; interval: 95 %, over groups of test samples; best_on_test: see `Result`;
    samples, people: of the test, people None where they are not known."""

    id: str
    kind: str
    model: str
    benchmark: str
    protocol: str
    seeds: int
    metric: str
    score: float
    spread: float
    interval: tuple[float, float]
    metrics: dict[str, float]
    best_on_test: float | None
    samples: int
    people: int | None


@dataclass(frozen=True, repr=False)
class Summary:
    """What was asked for, with what it was computed, and all results in two tables, which `print` shows."""

    command: list[str]
    config: dict[str, Any]
    versions: dict[str, str]
    git: str | None
    table: list[Row]
    comparisons: list[Comparison]
    format: int = FORMAT

    def __rich__(self) -> Any:
        return shown.tables(self)

    def __repr__(self) -> str:
        return shown.text(self)


def apart(results: Sequence[Result]) -> list[Result]:
    """The same; where one benchmark's name stands for several sets of data, each has a name of its own.

    That is the name of their shards' folder, or where two share it, four digits of the data's hash.
    """
    sets: dict[str, dict[str, str]] = {}  # benchmark -> digest of its data -> folder
    for result in results:
        folders = result.data.get("shards") or [""]
        sets.setdefault(result.benchmark, {}).setdefault(_data(result), Path(str(folders[0])).name)
    named = []
    for result in results:
        known, mine = sets[result.benchmark], _data(result)
        if len(known) > 1:
            word = known[mine] if list(known.values()).count(known[mine]) == 1 else mine[:4]
            result = replace(result, benchmark=f"{result.benchmark} ({word})")  # noqa: PLW2901
        named.append(result)
    return named


def _data(result: Result) -> str:
    """A digest of the samples that it was fitted and measured on."""
    return digest(result.settings.get("data"))


def grouped(results: Sequence[Result]) -> dict[tuple[str, str, str], list[Result]]:
    """(benchmark, protocol, backbone id) -> its seeds, in the order in which they come; see `apart`.

    Raises:
        UserError: two seeds are of another kind, of other classes, metrics or settings.
    """
    found: dict[tuple[str, str, str], list[Result]] = {}
    for result in apart(results):
        seeds = found.setdefault((result.benchmark, result.protocol, result.backbone["id"]), [])
        for name in ("kind", "classes", "metric"):
            if seeds and getattr(seeds[0], name) != getattr(result, name):
                raise UserError(f"results: {seeds[0].path} and {result.path} differ in {name}; they do not go together")
        if seeds and (name := _different(_how(seeds[0]), _how(result))):
            raise UserError(
                f"results: {seeds[0].path} and {result.path} differ in {name}: a mean over them would be of neither; "
                "evaluate all seeds with the same settings, or move one of the files away"
            )
        seeds.append(result)
    return found


def _how(result: Result) -> dict[str, Any]:
    """How it was measured, whatever its seed."""
    return {**result.settings, "calibrated": result.backbone.get("calibrated")}


def _different(one: dict[str, Any], other: dict[str, Any]) -> str:
    """The first setting in which two differ, with its values; "" where they are equal, as they stand in files."""
    first, second = (flatten(json.loads(json.dumps(each))) for each in (one, other))
    for name in sorted(first.keys() | second.keys()):
        if first.get(name) != second.get(name):
            return f"{name} ({first.get(name)} and {second.get(name)})"
    return ""


def rows(results: Sequence[Result], resamples: int = 1000) -> list[Row]:
    """The table. Seeds of one backbone are measured on the same samples, or their interval is that of the first."""
    return [_row(seeds, resamples) for seeds in grouped(results).values()]


def _row(seeds: Sequence[Result], resamples: int) -> Row:
    first = seeds[0]
    scores = np.array([result.score for result in seeds])
    best = [result.best_on_test[result.metric] for result in seeds if result.best_on_test]
    same = [result for result in seeds if result.samples.keys == first.samples.keys]
    runs = [result.predictions() for result in same]
    found = intervals(first.kind, first.labels(), runs, first.samples.groups, len(first.classes), resamples)
    if first.metric not in found:
        raise UserError(f"results: {first.path}: {first.metric!r} is no metric of {first.kind}; evaluate again")
    return Row(
        first.backbone["id"],
        first.backbone["kind"],
        first.backbone["model"],
        first.benchmark,
        first.protocol,
        len(seeds),
        first.metric,
        float(scores.mean()),
        float(scores.std(ddof=1)) if len(scores) > 1 else 0.0,
        found[first.metric],
        _means(seeds),
        float(np.mean(best)) if best else None,
        len(first.samples.keys),
        first.data.get("test", {}).get("people"),
    )


def _means(seeds: Sequence[Result]) -> dict[str, float]:
    """Of the metrics that all seeds have."""
    numbers = [{name: value for name, value in each.metrics.items() if isinstance(value, float)} for each in seeds]
    names = [name for name in numbers[0] if all(name in each for each in numbers)]
    return mean([{name: each[name] for name in names} for each in numbers])


def comparisons(results: Sequence[Result], resamples: int = 1000) -> list[Comparison]:
    """All pairs of backbones on one benchmark by one protocol, a random one always second."""
    by_place: dict[tuple[str, str], list[list[Result]]] = {}
    for (benchmark, protocol, _), seeds in grouped(results).items():
        by_place.setdefault((benchmark, protocol), []).append(seeds)
    found = []
    for backbones in by_place.values():
        ordered = sorted(backbones, key=lambda seeds: seeds[0].backbone["kind"] == "random")
        for first, second in itertools.combinations(ordered, 2):
            if first[0].samples.keys and set(first[0].samples.keys) == set(second[0].samples.keys):
                found.append(compare(first, second, resamples))
    return found


def summarise(results: Sequence[Result], command: list[str], config: dict[str, Any], resamples: int = 1000) -> Summary:
    """All that a summary holds."""
    table, pairs = rows(results, resamples), comparisons(results, resamples)
    return Summary(command, config, versions(), git_revision(), table, pairs)


def write_summary(path: Path, summary: Summary) -> None:
    """Write a summary atomically, making the folder if need be. Raises UserError where that cannot be done."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, (to_json(asdict(summary), indent=1) + "\n").encode())
    except OSError as error:
        raise UserError(f"summary: {path} cannot be written: {error.strerror}") from None


def read_summary(path: Path) -> dict[str, Any]:
    """Read a summary as plain values. Raises UserError: missing, another format version, damaged."""
    try:
        content = parse_object(read_bytes(path))
    except FileNotFoundError:
        raise UserError(f"results: {path} does not exist; make it with simfle evaluate") from None
    except (ValueError, OSError) as error:
        raise UserError(f"results: {path} is damaged ({error}); evaluate again") from None
    if content.get("format") != FORMAT:
        raise UserError(f"results: {path} has format {content.get('format')}, this program reads {FORMAT}")
    return content
