"""Table of all results, with one row per backbone, benchmark and protocol (averaged over seeds), and paired tests.

All values are computed from the files of the store, which are not changed.
"""

import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from shards.io.atomic import read_bytes, write_atomic
from shards.io.hashing import digest
from shards.io.jsonl import loads_object
from shards.redact import to_json
from simfle.config.parsing import flatten
from simfle.errors import UserError
from simfle.eval.analysis import summary_table
from simfle.eval.analysis.compare import Comparison, compare
from simfle.eval.analysis.metrics import intervals, mean
from simfle.eval.analysis.results import Result
from simfle.runtime.provenance import git_revision, versions

FORMAT = 2


@dataclass(frozen=True)
class SummaryRow:
    """Row for one backbone, protocol and benchmark. metrics: averaged over seeds.

    spread: standard deviation of the primary metric over seeds; interval: 95 %, over groups of test samples;
    best_on_test:
    see `Result`; samples, people: counts of the test set, people None if unknown.
    """

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
    """Request, versions, and all results in two tables; `print(summary)` prints the tables."""

    command: list[str]
    config: dict[str, Any]
    versions: dict[str, str]
    git: str | None
    table: list[SummaryRow]
    comparisons: list[Comparison]
    format: int = FORMAT

    def __rich__(self) -> Any:
        return summary_table.tables(self)

    def __repr__(self) -> str:
        return summary_table.text(self)


def disambiguate_names(results: Sequence[Result]) -> list[Result]:
    """Return results with a distinct benchmark name per data set, if several data sets share a name.

    The new name is that of the shards' folder; if two data sets share that name too, four digits of the data's hash are
    added.
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
    """Return a digest of the training and test samples."""
    return digest(result.settings.get("data"))


def grouped(results: Sequence[Result]) -> dict[tuple[str, str, str], list[Result]]:
    """Return (benchmark, protocol, backbone id) -> its seeds in input order; see `disambiguate_names`.

    Raises:
        UserError: If two seeds differ in kind, classes, metrics or settings.
    """
    found: dict[tuple[str, str, str], list[Result]] = {}
    for result in disambiguate_names(results):
        seeds = found.setdefault((result.benchmark, result.protocol, result.backbone["id"]), [])
        for name in ("kind", "classes", "metric"):
            if seeds and getattr(seeds[0], name) != getattr(result, name):
                raise UserError(
                    f"results: {seeds[0].path} and {result.path} differ in {name}. "
                    "Fix: evaluate both again, or move one of the files away."
                )
        if seeds and (name := _different(_how(seeds[0]), _how(result))):
            raise UserError(
                f"results: {seeds[0].path} and {result.path} differ in {name}, so they cannot be averaged. "
                "Fix: evaluate all seeds with the same settings, or move one of the files away."
            )
        seeds.append(result)
    return found


def _how(result: Result) -> dict[str, Any]:
    """Return the measurement's settings except the seed."""
    return {**result.settings, "calibrated": result.backbone.get("calibrated")}


def _different(one: dict[str, Any], other: dict[str, Any]) -> str:
    """Return the first setting that differs, with both values as stored in files, or "" if all are equal."""
    first, second = (flatten(json.loads(json.dumps(each))) for each in (one, other))
    for name in sorted(first.keys() | second.keys()):
        if first.get(name) != second.get(name):
            return f"{name} ({first.get(name)} and {second.get(name)})"
    return ""


def rows(results: Sequence[Result], resamples: int = 1000) -> list[SummaryRow]:
    """Return the table. If seeds of one backbone have different samples, the interval is that of the first seed."""
    return [_row(seeds, resamples) for seeds in grouped(results).values()]


def _row(seeds: Sequence[Result], resamples: int) -> SummaryRow:
    first = seeds[0]
    scores = np.array([result.score for result in seeds])
    best = [result.best_on_test[result.metric] for result in seeds if result.best_on_test]
    same = [result for result in seeds if result.samples.keys == first.samples.keys]
    runs = [result.predictions() for result in same]
    found = intervals(first.kind, first.labels(), runs, first.samples.groups, len(first.classes), resamples)
    if first.metric not in found:
        raise UserError(
            f"results: {first.path}: {first.metric!r} is not a metric of {first.kind}. Fix: evaluate again."
        )
    return SummaryRow(
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
    """Average the metrics that all seeds have."""
    numbers = [{name: value for name, value in each.metrics.items() if isinstance(value, float)} for each in seeds]
    names = [name for name in numbers[0] if all(name in each for each in numbers)]
    return mean([{name: each[name] for name in names} for each in numbers])


def comparisons(results: Sequence[Result], resamples: int = 1000) -> list[Comparison]:
    """Compare all pairs of backbones on one benchmark and protocol; a random backbone is always second."""
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


def summarize(results: Sequence[Result], command: list[str], config: dict[str, Any], resamples: int = 1000) -> Summary:
    """Return the summary of all results."""
    table, pairs = rows(results, resamples), comparisons(results, resamples)
    return Summary(command, config, versions(), git_revision(), table, pairs)


def write_summary(path: Path, summary: Summary) -> None:
    """Write a summary atomically and create its folder if needed. Raises UserError if it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, (to_json(asdict(summary), indent=1) + "\n").encode())
    except OSError as error:
        raise UserError(
            f"summary: {path} cannot be written: {error.strerror}. Fix: check the disk, or choose another folder."
        ) from None


def read_summary(path: Path) -> dict[str, Any]:
    """Read a summary as plain values. Raises UserError if it is missing, corrupt or of another format version."""
    try:
        content = loads_object(read_bytes(path))
    except FileNotFoundError:
        raise UserError(f"results: {path} does not exist. Fix: run simfle evaluate.") from None
    except (ValueError, OSError) as error:
        raise UserError(f"results: {path} is corrupt ({error}). Fix: evaluate again.") from None
    if content.get("format") != FORMAT:
        raise UserError(f"results: {path} has format {content.get('format')}, not {FORMAT}. Fix: evaluate again.")
    return content
