"""Everything a report shows of a run, read from its folder; what is not there is left out, never guessed."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from simfle.errors import UserError

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
    """A run as its folder tells it."""

    folder: Path
    config: dict[str, Any]
    config_text: str
    versions: dict[str, Any]
    curves: list[Curve]
    last: dict[str, Any]  # the newest line of metrics
    pictures: list[tuple[int, Path]]  # step, PNG
    results: dict[str, Any] = field(default_factory=dict)


def read_run(folder: Path, results: Path | None = None) -> Run:
    """Read a run; `results` is RUN/results.json unless given.

    Raises:
        UserError: no run folder, or one that holds no metrics yet, or results that are named and not there or damaged.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        raise UserError(f"report: {folder} is not a run folder (no config.yaml); name one that pretraining wrote")
    text = path.read_text()
    try:
        config = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"report: {path} is damaged ({error})") from None
    lines = _metrics(folder / "metrics.jsonl")
    versions = folder / "versions.json"
    return Run(
        folder=folder,
        config=config,
        config_text=text,
        versions=json.loads(versions.read_text()) if versions.is_file() else {},
        curves=_curves(lines),
        last=lines[-1],
        pictures=_pictures(folder / "images"),
        results=_results(folder, results),
    )


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


def _curves(lines: list[dict[str, Any]]) -> list[Curve]:
    """One curve per loss, in the paper's order; long ones averaged down to POINTS points."""
    names = dict.fromkeys([*LOSSES, *(name for line in lines for name in line["losses"])])
    curves = []
    for name in names:
        points = [(line["step"], line["losses"][name]) for line in lines if name in line["losses"]]
        size = -(-len(points) // POINTS)  # rounded up
        groups = [points[start : start + size] for start in range(0, len(points), size or 1)]
        if groups:
            steps = [sum(step for step, _ in group) / len(group) for group in groups]
            values = [sum(value for _, value in group) / len(group) for group in groups]
            curves.append(Curve(name, steps, values))
    return curves


def _pictures(folder: Path) -> list[tuple[int, Path]]:
    """The first, a middle and the last picture of a run."""
    found = sorted(folder.glob("step-*.png"))
    chosen = sorted({round(place * (len(found) - 1) / (PICTURES - 1)) for place in range(PICTURES)}) if found else []
    return [(int(found[place].stem.split("-")[1]), found[place]) for place in chosen]


def _results(folder: Path, results: Path | None) -> dict[str, Any]:
    path = results or folder / "results.json"
    if not path.is_file():
        if results is not None:
            raise UserError(f"report: {results} does not exist; make it with launchers/evaluate.py")
        return {}
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"report: {path} is damaged ({error}); evaluate again") from None
