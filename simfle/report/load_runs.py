"""Read the content of a report from the folders of its runs. Missing parts are omitted."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shards.io.atomic import read_bytes, read_text
from shards.io.jsonl import loads_object
from simfle.config.parsing import flatten
from simfle.config.schema import load_yaml
from simfle.errors import UserError
from simfle.eval.analysis.results import CLASSES, Result, read_results
from simfle.runtime import run_files

LOSSES = ("total", "similarity", "reconstruction", "distillation", "grouping")
MEASURES = {
    "rank": ("features", "rank"),
    "initial_rank": ("features", "random_rank"),
    "projection_rank": ("projection", "rank"),
    "initial_projection_rank": ("projection", "random_rank"),
    "spread": ("features", "spread"),
    "uniformity": ("features", "uniformity"),
    "alignment": ("features", "alignment"),
    "knn_accuracy": ("monitor", "knn"),
    "random_knn_accuracy": ("monitor", "random_knn"),
    "linear_probe": ("monitor", "linear"),
    "random_linear_probe": ("monitor", "random_linear"),
    "probe_rank": ("monitor", "rank"),
    "random_probe_rank": ("monitor", "random_rank"),
}
"""Curve name -> section and name in a line of metrics. Baselines: `initial_` of the first weights, `random_` of a
random network; equal unless the run has `model.init`."""
SPEEDS = ("lr", "images_per_second", "data_wait")
ACCURACIES = ("knn_accuracy", "linear_probe")
POINTS = 400  # maximum points of a curve
PICTURES = 3  # first, middle, last
SHOWN = {"model": ("method", "backbone"), "views": ("size", "face_size"), "train": ("global_batch", "seed")}
PARTS = ("train", "val", "test")


@dataclass(frozen=True)
class Curve:
    """Values of one name over optimizer steps; both have the same length."""

    name: str
    steps: list[float]
    values: list[float]


@dataclass(frozen=True)
class RunRecord:
    """Run as read from its folder.

    name: of the folder; speed: SPEEDS; features: MEASURES; accuracy: ACCURACIES over images seen; last: newest line of
    metrics; pictures: (step, PNG); initial: RUN/init.json, empty for random initial weights.
    """

    folder: Path
    name: str
    config: dict[str, Any]
    config_text: str
    versions: dict[str, Any]
    curves: list[Curve]
    speed: list[Curve]
    features: list[Curve]
    accuracy: list[Curve]
    last: dict[str, Any]
    pictures: list[tuple[int, Path]]
    initial: dict[str, Any]

    @property
    def label(self) -> str:
        """Return the name, with the method if the name does not contain it."""
        method = str(self.config["model"]["method"])
        return self.name if method.lower() in self.name.lower() else f"{self.name} ({method})"

    @property
    def start(self) -> str:
        """Return the source of the initial weights; empty if they were random."""
        return str(self.config["model"].get("init") or self.initial.get("source") or "")

    @property
    def collapsed(self) -> bool:
        """Return whether the newest measured features have collapsed."""
        last = {curve.name: curve.values[-1] for curve in self.features}
        names = {"rank": "rank", "random_rank": "initial_rank"}
        return run_files.is_collapsed({key: last[name] for key, name in names.items() if name in last})

    def typical(self, name: str) -> float | None:
        """Return the median of a curve of `speed` without its first line, which includes the start."""
        values = next((curve.values for curve in self.speed if curve.name == name), [])
        return statistics.median(values[1:] or values) if values else None


def read_runs(folders: Sequence[Path]) -> list[RunRecord]:
    """Read runs in the given order.

    Raises:
        UserError: If no run is given, or a folder is not a run, has no metrics yet or is corrupt.
    """
    if not folders:
        raise UserError("report: no run is given. Fix: pass one or several run folders.")
    runs = [_read_run(folder) for folder in dict.fromkeys(folders)]
    names = [run.name for run in runs]
    return [run if names.count(run.name) == 1 else _renamed(run) for run in runs]


def _renamed(run: RunRecord) -> RunRecord:
    """Distinguish two runs with the same name by their paths."""
    return RunRecord(**{**vars(run), "name": str(run.folder)})


def _read_run(folder: Path) -> RunRecord:
    path = folder / "config.yaml"
    if not path.is_file():
        raise UserError(f"report: {folder} is not a run folder (no config.yaml). Fix: pass a run folder.")
    config = load_yaml(path)
    for part, names in SHOWN.items():
        if not isinstance(config.get(part), dict) or not all(name in config[part] for name in names):
            raise UserError(
                f"report: {path} is corrupt ({part} lacks {' or '.join(names)}). Fix: rerun the run's command."
            )
    lines = _metrics(folder / "metrics.jsonl")
    return RunRecord(
        folder=folder,
        name=folder.resolve().name,
        config=config,
        config_text=read_text(path, encoding="utf-8"),
        versions=_versions(folder / "versions.json"),
        curves=_losses(lines),
        speed=[curve for name in SPEEDS if (curve := _curve(name, lines)).values],
        features=[curve for name in MEASURES if (curve := _measure(name, lines)).values],
        accuracy=[curve for name in ACCURACIES if (curve := _measure(name, lines, "samples")).values],
        last=lines[-1],
        pictures=_pictures(folder / "images"),
        initial=run_files.read_initial_weights(folder),
    )


def _versions(path: Path) -> dict[str, Any]:
    try:
        return loads_object(read_bytes(path)) if path.is_file() else {}
    except ValueError as error:
        raise UserError(f"report: {path} is corrupt ({error}). Fix: delete it.") from None


def results_of(runs: Sequence[RunRecord], more: Sequence[Path] = ()) -> list[Result]:
    """Read the results of evaluations in the runs' folders and in `more`, each file once.

    Raises:
        UserError: If a result lacks a field that a report needs; see also `read_results`.
    """
    found = read_results([*(run.folder for run in runs), *more])
    for result in found:
        if (lacking := _lacking(result)) is not None:
            raise UserError(f"report: {result.path} is corrupt ({lacking}). Fix: delete it and evaluate again.")
    places = {(result.backbone["id"], result.identity, result.seed): result for result in reversed(found)}
    return [result for result in found if places[result.backbone["id"], result.identity, result.seed] is result]


def _lacking(result: Result) -> str | None:
    """Return the first field that the page needs and a result lacks."""
    data, chance = result.data, result.data.get("chance")
    parts: dict[str, dict[str, Any]] = {}
    for name in PARTS:
        parts[name] = data[name] if isinstance(data.get(name), dict) else {}
    there = {
        **{f"data.{name}.samples": run_files.is_count(about.get("samples")) for name, about in parts.items()},
        **{f"data.{name}.people": run_files.is_count(about.get("people") or 0) for name, about in parts.items()},
        "data.folds": run_files.is_count(data.get("folds")),
        "data.left_out": isinstance(data.get("left_out"), dict),
        "data.differs": isinstance(data.get("differs"), list),
        "data.classes": data.get("classes") == result.classes,
        "data.chance": chance is None or (isinstance(chance, float) and 0 <= chance <= 1),
        "metrics.confusion": result.kind != CLASSES or _is_table(result.metrics.get("confusion"), len(result.classes)),
    }
    return next((name for name, whole in there.items() if not whole), None)


def _is_table(table: Any, side: int) -> bool:
    """Return whether a table is a [side][side] matrix of counts."""
    rows = [table, *table] if isinstance(table, list) else [None]
    return all(isinstance(row, list) and len(row) == side for row in rows) and all(
        run_files.is_count(count) for row in table for count in row
    )


def differing(runs: Sequence[RunRecord]) -> list[tuple[str, list[Any]]]:
    """Return the configuration keys that differ between runs, with each run's value; paths of runs are ignored."""
    flat = [flatten(run.config) for run in runs]
    keys = dict.fromkeys(key for values in flat for key in values)
    rows = [(key, [values.get(key) for values in flat]) for key in keys if key != "train.run_dir"]
    return [(key, values) for key, values in rows if any(value != values[0] for value in values)]


def _metrics(path: Path) -> list[dict[str, Any]]:
    """Read the lines of metrics.jsonl; skip a truncated line."""
    lines = run_files.parse_metrics(read_bytes(path)) if path.is_file() else []
    if not lines:
        raise UserError(f"report: {path} has no metrics yet. Fix: wait until it has done train.log_every steps.")
    return lines


def _losses(lines: list[dict[str, Any]]) -> list[Curve]:
    """Return one curve per loss, in the paper's order."""
    names = dict.fromkeys([*LOSSES, *(name for line in lines for name in line["losses"])])
    flat = [{"step": line["step"], **line["losses"]} for line in lines]
    return [curve for name in names if (curve := _curve(name, flat)).values]


def _measure(name: str, lines: list[dict[str, Any]], over: str = "step") -> Curve:
    """Return one of MEASURES over steps or over another number in each line."""
    table, key = MEASURES[name]
    known = [line for line in lines if over in line]
    return _curve(name, [{"step": line[over], name: line.get(table, {}).get(key, math.nan)} for line in known])


def _curve(name: str, lines: list[dict[str, Any]]) -> Curve:
    """Average long curves down to POINTS points; non-finite values are omitted."""
    points = [(line["step"], line[name]) for line in lines if math.isfinite(line.get(name, math.nan))]
    size = -(-len(points) // POINTS)  # rounded up
    groups = [points[start : start + size] for start in range(0, len(points), size or 1)]
    steps = [sum(step for step, _ in group) / len(group) for group in groups]
    return Curve(name, steps, [sum(value for _, value in group) / len(group) for group in groups])


def _pictures(folder: Path) -> list[tuple[int, Path]]:
    """Return the first, a middle and the last image of a run."""
    found = sorted(path for path in folder.glob("step-*.png") if run_files.step_from_name(path) is not None)
    chosen = sorted({round(place * (len(found) - 1) / (PICTURES - 1)) for place in range(PICTURES)}) if found else []
    return [(run_files.step_from_name(found[place]) or 0, found[place]) for place in chosen]
