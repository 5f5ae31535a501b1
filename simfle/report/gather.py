"""Everything a report shows of runs, read from their folders; what is not there is left out, never guessed."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from simfle.config import flatten
from simfle.errors import UserError
from simfle.eval.results import Result, read_results

LOSSES = ("total", "similarity", "reconstruction", "distillation", "grouping")
POINTS = 400  # of a curve, at most
PICTURES = 3  # first, middle, last


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
    text = path.read_text()
    try:
        config = yaml.safe_load(text)
        config["model"]["method"], config["views"]["size"], config["train"]["seed"]
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise UserError(f"report: {path} is damaged ({error})") from None
    lines = _metrics(folder / "metrics.jsonl")
    versions = folder / "versions.json"
    return Run(
        folder=folder,
        name=folder.resolve().name,
        config=config,
        config_text=text,
        versions=json.loads(versions.read_text()) if versions.is_file() else {},
        curves=_losses(lines),
        speed=[curve for name in ("images_per_second", "data_wait") if (curve := _curve(name, lines)).values],
        last=lines[-1],
        pictures=_pictures(folder / "images"),
    )


def results_of(runs: Sequence[Run], more: Sequence[Path] = ()) -> list[Result]:
    """Results of evaluations in the runs' folders and in `more`; one that is there twice counts once."""
    found = read_results([*(run.folder for run in runs), *more])
    places = {(result.backbone["id"], result.identity, result.seed): result for result in reversed(found)}
    return [result for result in found if places[result.backbone["id"], result.identity, result.seed] is result]


def differing(runs: Sequence[Run]) -> list[tuple[str, list[Any]]]:
    """The keys of the configurations in which runs differ, with each run's value; where a run is is no difference."""
    flat = [flatten(run.config) for run in runs]
    keys = dict.fromkeys(key for values in flat for key in values)
    rows = [(key, [values.get(key) for values in flat]) for key in keys if key != "train.run"]
    return [(key, values) for key, values in rows if any(value != values[0] for value in values)]


def _metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; one that a crash cut short is passed over."""
    lines = []
    for text in path.read_text().splitlines() if path.is_file() else []:
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and "step" in line and "losses" in line:
            lines.append(line)
    if not lines:
        raise UserError(f"report: {path} holds no metrics yet; let the run reach train.log_every steps")
    return lines


def _losses(lines: list[dict[str, Any]]) -> list[Curve]:
    """One curve per loss, in the paper's order."""
    names = dict.fromkeys([*LOSSES, *(name for line in lines for name in line["losses"])])
    flat = [{"step": line["step"], **line["losses"]} for line in lines]
    return [curve for name in names if (curve := _curve(name, flat)).values]


def _curve(name: str, lines: list[dict[str, Any]]) -> Curve:
    """Long curves are averaged down to POINTS points."""
    points = [(line["step"], line[name]) for line in lines if name in line]
    size = -(-len(points) // POINTS)  # rounded up
    groups = [points[start : start + size] for start in range(0, len(points), size or 1)]
    steps = [sum(step for step, _ in group) / len(group) for group in groups]
    return Curve(name, steps, [sum(value for _, value in group) / len(group) for group in groups])


def _pictures(folder: Path) -> list[tuple[int, Path]]:
    """The first, a middle and the last picture of a run."""
    found = sorted(folder.glob("step-*.png"))
    chosen = sorted({round(place * (len(found) - 1) / (PICTURES - 1)) for place in range(PICTURES)}) if found else []
    return [(int(found[place].stem.split("-")[1]), found[place]) for place in chosen]
