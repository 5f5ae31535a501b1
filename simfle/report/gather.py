"""Everything a report shows of runs, read from their folders; what is not there is left out, never guessed."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shards.files import read_bytes, read_text
from shards.plain import parse_object
from simfle import told
from simfle.config import read_plain
from simfle.errors import UserError
from simfle.eval.results import CLASSES, Result, read_results
from simfle.layers import flatten

LOSSES = ("total", "similarity", "reconstruction", "distillation", "grouping")
MEASURES = {
    "rank": ("features", "rank"),
    "random_rank": ("features", "random_rank"),
    "projection_rank": ("projection", "rank"),
    "spread": ("features", "spread"),
    "uniformity": ("features", "uniformity"),
    "alignment": ("features", "alignment"),
    "linear_probe": ("monitor", "linear"),
    "knn": ("monitor", "knn"),
}
"""Name of a curve -> table and name in a line of metrics."""
POINTS = 400  # of a curve, at most
PICTURES = 3  # first, middle, last
SHOWN = {"model": ("method", "backbone"), "views": ("size", "face_size"), "train": ("global_batch", "seed")}
PARTS = ("train", "val", "test")


@dataclass(frozen=True)
class Curve:
    """Values of one name over optimizer steps, both of one length."""

    name: str
    steps: list[float]
    values: list[float]


@dataclass(frozen=True)
class Run:
    """A run as its folder tells it. name: of the folder; last: the newest line of metrics; pictures: (step, PNG)."""

    folder: Path
    name: str
    config: dict[str, Any]
    config_text: str
    versions: dict[str, Any]
    curves: list[Curve]
    speed: list[Curve]  # images per second, share of the time spent waiting for data
    features: list[Curve]  # of telemetry and the monitor, see MEASURES
    last: dict[str, Any]
    pictures: list[tuple[int, Path]]

    def typical(self, name: str) -> float | None:
        """The median of a curve of `speed`, its first line left out: that one holds the start."""
        values = next((curve.values for curve in self.speed if curve.name == name), [])
        return statistics.median(values[1:] or values) if values else None


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Read runs, in the given order.

    Raises:
        UserError: none is named; one is no run folder, or holds no metrics yet; something in it is damaged.
    """
    if not folders:
        raise UserError("report: no run is named; name one or several folders that pretraining wrote")
    runs = [_read_run(folder) for folder in dict.fromkeys(folders)]
    names = [run.name for run in runs]
    return [run if names.count(run.name) == 1 else _renamed(run) for run in runs]


def _renamed(run: Run) -> Run:
    """Two runs of one name are told apart by their paths."""
    return Run(**{**vars(run), "name": str(run.folder)})


def _read_run(folder: Path) -> Run:
    path = folder / "config.yaml"
    if not path.is_file():
        raise UserError(f"report: {folder} is not a run folder (no config.yaml); name one that pretraining wrote")
    config = read_plain(path)
    for part, names in SHOWN.items():
        if not isinstance(config.get(part), dict) or not all(name in config[part] for name in names):
            raise UserError(f"report: {path} is damaged ({part} lacks {' or '.join(names)})")
    lines = _metrics(folder / "metrics.jsonl")
    return Run(
        folder=folder,
        name=folder.resolve().name,
        config=config,
        config_text=read_text(path, encoding="utf-8"),
        versions=_versions(folder / "versions.json"),
        curves=_losses(lines),
        speed=[curve for name in ("images_per_second", "data_wait") if (curve := _curve(name, lines)).values],
        features=[curve for name in MEASURES if (curve := _measure(name, lines)).values],
        last=lines[-1],
        pictures=_pictures(folder / "images"),
    )


def _versions(path: Path) -> dict[str, Any]:
    try:
        return parse_object(read_bytes(path)) if path.is_file() else {}
    except ValueError as error:
        raise UserError(f"report: {path} is damaged ({error}); remove it") from None


def results_of(runs: Sequence[Run], more: Sequence[Path] = ()) -> list[Result]:
    """Results of evaluations in the runs' folders and in `more`; one that is there twice counts once.

    Raises:
        UserError: see `read_results`; a result lacks what a report tells of it.
    """
    found = read_results([*(run.folder for run in runs), *more])
    for result in found:
        if (lacking := _lacking(result)) is not None:
            raise UserError(f"report: {result.path} is damaged ({lacking}); remove it and evaluate again")
    places = {(result.backbone["id"], result.identity, result.seed): result for result in reversed(found)}
    return [result for result in found if places[result.backbone["id"], result.identity, result.seed] is result]


def _lacking(result: Result) -> str | None:
    """What is not as the page needs it."""
    data, chance = result.data, result.data.get("chance")
    parts: dict[str, dict[str, Any]] = {}
    for name in PARTS:
        parts[name] = data[name] if isinstance(data.get(name), dict) else {}
    there = {
        **{f"data.{name}.samples": told.is_count(about.get("samples")) for name, about in parts.items()},
        **{f"data.{name}.people": told.is_count(about.get("people") or 0) for name, about in parts.items()},
        "data.folds": told.is_count(data.get("folds")),
        "data.left_out": isinstance(data.get("left_out"), dict),
        "data.differs": isinstance(data.get("differs"), list),
        "data.classes": data.get("classes") == result.classes,
        "data.chance": chance is None or (isinstance(chance, float) and 0 <= chance <= 1),
        "metrics.confusion": result.kind != CLASSES or _is_table(result.metrics.get("confusion"), len(result.classes)),
    }
    return next((name for name, whole in there.items() if not whole), None)


def _is_table(table: Any, side: int) -> bool:
    """Whether a table is [side][side] counts."""
    rows = [table, *table] if isinstance(table, list) else [None]
    return all(isinstance(row, list) and len(row) == side for row in rows) and all(
        told.is_count(count) for row in table for count in row
    )


def differing(runs: Sequence[Run]) -> list[tuple[str, list[Any]]]:
    """The keys of the configurations in which runs differ, with each run's value; where a run is is no difference."""
    flat = [flatten(run.config) for run in runs]
    keys = dict.fromkeys(key for values in flat for key in values)
    rows = [(key, [values.get(key) for values in flat]) for key in keys if key != "train.run"]
    return [(key, values) for key, values in rows if any(value != values[0] for value in values)]


def _metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; one that a crash cut short is passed over."""
    lines = told.metrics(read_bytes(path)) if path.is_file() else []
    if not lines:
        raise UserError(f"report: {path} holds no metrics yet; let the run reach train.log_every steps")
    return lines


def _losses(lines: list[dict[str, Any]]) -> list[Curve]:
    """One curve per loss, in the paper's order."""
    names = dict.fromkeys([*LOSSES, *(name for line in lines for name in line["losses"])])
    flat = [{"step": line["step"], **line["losses"]} for line in lines]
    return [curve for name in names if (curve := _curve(name, flat)).values]


def _measure(name: str, lines: list[dict[str, Any]]) -> Curve:
    """One of MEASURES."""
    table, key = MEASURES[name]
    return _curve(name, [{"step": line["step"], name: line.get(table, {}).get(key, math.nan)} for line in lines])


def _curve(name: str, lines: list[dict[str, Any]]) -> Curve:
    """Long curves are averaged down to POINTS points; values that are not finite are left out."""
    points = [(line["step"], line[name]) for line in lines if math.isfinite(line.get(name, math.nan))]
    size = -(-len(points) // POINTS)  # rounded up
    groups = [points[start : start + size] for start in range(0, len(points), size or 1)]
    steps = [sum(step for step, _ in group) / len(group) for group in groups]
    return Curve(name, steps, [sum(value for _, value in group) / len(group) for group in groups])


def _pictures(folder: Path) -> list[tuple[int, Path]]:
    """The first, a middle and the last picture of a run."""
    found = sorted(path for path in folder.glob("step-*.png") if told.step_of(path) is not None)
    chosen = sorted({round(place * (len(found) - 1) / (PICTURES - 1)) for place in range(PICTURES)}) if found else []
    return [(told.step_of(found[place]) or 0, found[place]) for place in chosen]
