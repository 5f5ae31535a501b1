"""One HTML page about a run: self-contained, readable on a phone, without a request to anywhere."""

import base64
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from shards.files import write_atomic
from simfle.report import charts
from simfle.report.gather import Run, read_run

ABOUT = {
    "total": "The sum that is minimised.",
    "similarity": "Two views of a face should give the same projection; 0 is equal, 4 is orthogonal for both.",
    "reconstruction": "Masked patches, predicted from the visible ones; 1 is predicting each patch's mean.",
    "distillation": "Backbone and FaceMAE should agree on what they see.",
    "grouping": "Channels of a group should light up together and groups apart. Enters the sum with a small weight.",
    "overlap": "Not part of the sum: mean correlation between maps of different groups. Falling means that they part.",
}


@dataclass(frozen=True)
class Stage:
    """One stage of a longer work: what was done, where its result lies, how many seconds it took (None: skipped)."""

    name: str
    does: str
    where: str
    seconds: float | None


@dataclass(frozen=True)
class Extras:
    """What a page tells beyond the run: title, an opening paragraph, stages, exact commands, a picture of the data."""

    title: str = ""
    opening: str = ""
    stages: list[Stage] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    sample: Path | None = None
    sample_caption: str = ""
    note: str = ""


def write_report(run: Path, out: Path | None = None, results: Path | None = None, extras: Extras | None = None) -> Path:
    """Write the page about `run` to `out` (default RUN/report.html) and return its path.

    Raises:
        UserError: see `read_run`.
    """
    page = out or run / "report.html"
    html = render(read_run(run, results), extras or Extras())
    page.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(page, html.encode())
    return page


def render(run: Run, extras: Extras) -> str:
    """The page as text. All that comes from files is escaped; charts are our own markup."""
    environment = Environment(
        loader=PackageLoader("simfle.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": _percent, "png": png_uri}
    commands = [*extras.commands] or [
        f"python launchers/pretrain.py {run.folder / 'config.yaml'} train.run=ANOTHER_RUN"
    ]
    if run.results and not extras.commands:
        commands.append(" ".join(run.results["command"]))
    return environment.get_template("page.html").render(
        title=extras.title or f"Pretraining run {run.folder.name}",
        run=run,
        extras=extras,
        facts=_facts(run),
        curves=[(curve.name, ABOUT.get(curve.name, ""), Markup(charts.curve(curve))) for curve in run.curves],
        picture_caption=_picture_caption(run.config),
        results=run.results,
        comparison=Markup(charts.comparison(run.results)) if run.results else "",
        recall=_recall(run.results) if run.results else [],
        commands=commands,
    )


def png_uri(path: Path) -> str:
    """A PNG file as a data URI."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _facts(run: Run) -> list[tuple[str, str]]:
    """The few numbers that one looks for first."""
    facts = [("steps", f"{run.last['step']:,}")]
    if "samples" in run.last:
        facts.append(("images seen", f"{run.last['samples']:,}"))
    if "images_per_second" in run.last:
        facts.append(("images per second", f"{run.last['images_per_second']:.0f}"))
    for row in run.results.get("summary", []):
        if row["protocol"] == "linear":
            who = "random initialisation" if row["kind"] == "random" else f"{row['kind']} backbone"
            facts.append((f"linear probe, {who}", _percent(row["balanced_accuracy"])))
    return facts


def _picture_caption(config: dict[str, Any]) -> str:
    """What the three columns of a picture are, with the run's own numbers."""
    side, mae = config["views"]["face_size"], config["model"]["facemae"]
    patches = (side // mae["patch"]) ** 2
    visible = int(patches * (1 - mae["mask_ratio"]))
    return (
        f"Each row is one face. Left: the face. Middle: what FaceMAE saw of it, {visible} of {patches} patches, chosen "
        "where one channel group of the backbone answers most. Right: what it made of the rest."
    )


def _recall(results: dict[str, Any]) -> list[tuple[str, list[float]]]:
    """Recall of each class, averaged over seeds, one row per backbone and protocol."""
    rows: dict[str, list[list[float]]] = {}
    for row in results["rows"]:
        name = f"{row['protocol']}, {'random' if row['kind'] == 'random' else row['kind'] + ' ' + row['model']}"
        rows.setdefault(name, []).append(row["recall"])
    return [(name, [sum(column) / len(column) for column in zip(*found, strict=True)]) for name, found in rows.items()]
