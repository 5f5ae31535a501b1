"""Write one HTML page about one or several runs: self-contained, responsive, without external requests."""

import base64
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from shards.io.atomic import read_bytes, write_atomic
from shards.printable import printable
from shards.redact import to_yaml
from simfle.config.overrides import shell_line
from simfle.errors import UserError
from simfle.report import charts
from simfle.report.load_runs import Curve, RunRecord, differing, read_runs, results_of
from simfle.report.tables import Tables, confusions, csv_text, json_text, markdown, show, show_interval, tables

if TYPE_CHECKING:
    from simfle.report.face_samples import ReportFigure

ENDINGS = {"html": ".html", "markdown": ".md", "csv": ".csv", "json": ".json"}
RANDOM = "random_rank"  # a curve that is drawn together with the rank
ABOUT = {
    "total": "The sum that is minimized.",
    "similarity": "Two views of a face should give the same projection; 0 is equal, 4 is orthogonal for both.",
    "reconstruction": "Masked patches, predicted from the visible ones; 1 is predicting each patch's mean.",
    "distillation": "Backbone and FaceMAE should agree on what they see.",
    "grouping": "Channels of a group should respond together, and groups separately. Has a small weight in the sum.",
    "overlap": "Not part of the sum: mean correlation between maps of different groups. It falls as groups separate.",
    "rank": "Dimensions that the backbone's features use (effective rank). Far below a random network's: collapse.",
    "projection_rank": "Effective rank of the projections, which the loss compares.",
    "spread": "Mean deviation of unit features times the root of their width: 0 if all are equal, near 1 if uniform.",
    "uniformity": "log of the mean Gaussian potential of pairs of faces: 0 if all are equal, lower is more uniform.",
    "alignment": "Mean squared distance of the two views of a face, as unit vectors: 0 if they are equal.",
    "linear_probe": "Accuracy of a linear probe on labeled shards (monitor.shards) during training.",
    "knn": "Accuracy of nearest neighbors on labeled shards (monitor.shards) during training.",
    "images_per_second": "Images per second over all processes. Dips are checkpoints or waits for data.",
    "data_wait": "Fraction of the time that training waits for data, 0 to 1. Near 0, the loader is fast enough.",
}


@dataclass(frozen=True)
class ReportStage:
    """One stage of a pipeline: description, location of its result, and seconds (None: skipped)."""

    name: str
    does: str
    where: str
    seconds: float | None


@dataclass(frozen=True)
class Extras:
    """Additional content of a page: title, opening paragraph, stages, exact commands, an image of the data."""

    title: str = ""
    opening: str = ""
    stages: list[ReportStage] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    sample: Path | None = None
    sample_caption: str = ""
    note: str = ""


@dataclass(frozen=True)
class Content:
    """Content of a report. pictured: images of faces by run; faces_of: corpora, "" if no faces are shown."""

    runs: list[RunRecord]
    tables: Tables
    commands: list[str]
    extras: Extras
    pictured: list[tuple[RunRecord, "list[ReportFigure]"]] = field(default_factory=list)
    faces_of: str = ""

    @property
    def title(self) -> str:
        """Return the title of the page."""
        names = ", ".join(run.name for run in self.runs)
        return self.extras.title or (f"Pretraining run {names}" if len(self.runs) == 1 else f"Runs compared: {names}")


def write_report(
    runs: Sequence[Path],
    out: Path | None = None,
    results: Sequence[Path] = (),
    *,
    shards: Sequence[str] = (),
    formats: Sequence[str] = ("html",),
    extras: Extras | None = None,
) -> list[Path]:
    """Write the report about `runs` and return its files, one per format.

    Args:
        out: the page; other formats are written beside it (default: RUN/report.html; for several runs, report.html
            beside the first).
        results: folders of evaluations in addition to the runs' own.
        shards: source of faces; without shards, the page contains no face, not even from training.

    Raises:
        UserError: an unknown format; see `read_runs`, `results_of`, `read_face_set`, `figures`.
    """
    unknown = [name for name in formats if name not in ENDINGS]
    if unknown:
        raise UserError(f"format={unknown[0]}: unknown. Fix: choose from {', '.join(ENDINGS)}.")
    content = gather(read_runs(runs), results, shards, extras or Extras())
    page = out or (runs[0] / "report.html" if len(runs) == 1 else runs[0].parent / "report.html")
    page.parent.mkdir(parents=True, exist_ok=True)
    written = []
    for name in formats:
        path = page if name == "html" else page.with_suffix(ENDINGS[name])
        write_atomic(path, RENDERERS[name](content).encode())
        written.append(path)
    return written


def gather(runs: list[RunRecord], results: Sequence[Path], shards: Sequence[str], extras: Extras) -> Content:
    """Read, measure and draw the content."""
    found = tables(results_of(runs, results))
    commands = [*extras.commands]
    if not commands:
        commands = [
            shell_line("simfle", "pretrain", run.folder / "config.yaml", "train.run_dir=ANOTHER_RUN") for run in runs
        ]
        commands += dict.fromkeys(shlex.join(result.command) for result in found.results)
    if not shards:
        return Content(runs, found, commands, extras)
    from simfle.report.face_samples import read_face_set
    from simfle.report.visualizations import figures

    album = read_face_set(shards)
    return Content(runs, found, commands, extras, [(run, figures(run.folder, album)) for run in runs], album.source())


def render(content: Content) -> str:
    """Render the page. All text from files is escaped; charts are our own markup."""
    environment = Environment(
        loader=PackageLoader("simfle.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        # Keeps the type Markup. Names on a page must not contain control or bidi characters either.
        finalize=lambda value: type(value)(printable(value)) if isinstance(value, str) else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": lambda value: "-" if value is None else f"{100 * value:.1f} %",
        "digits": lambda value, count: "-" if value is None else f"{value:,.{count}f}",
        "score": lambda value, metric: "-" if value is None else show(value, metric),
        "interval": show_interval,
        "readable": charts.readable,
        "png": lambda path: _uri("png", read_bytes(path)),
        "tile": lambda tile: _uri(tile.kind, tile.data),
    }
    values = {**vars(content), "title": content.title, **_drawn(content), **_told(content)}
    return environment.get_template("page.html").render(values, sections=_sections(content, values))


def _drawn(content: Content) -> dict[str, Any]:
    """Draw the charts."""
    runs, shown = content.runs, content.tables
    names = dict.fromkeys(curve.name for run in runs for curve in run.curves)
    speeds = dict.fromkeys(curve.name for run in runs for curve in run.speed)
    measured = dict.fromkeys(curve.name for run in runs for curve in run.features if curve.name != RANDOM)
    kinds = dict.fromkeys((row.benchmark, row.metric) for row in shown.rows)
    compared = []
    for benchmark, metric in kinds:
        rows = [row for row in shown.rows if (row.benchmark, row.metric) == (benchmark, metric)]
        chance = shown.first((benchmark, rows[0].protocol)).data.get("chance")
        caption = (
            "Marks are scores, bars 95 % intervals, squares random backbones. Where a bar overlaps "
            "another, their order is uncertain."
        )
        compared.append((benchmark, caption, Markup(charts.comparison(rows, shown.names, chance))))
    return {
        "losses": [_curves(name, [(run, run.curves) for run in runs]) for name in names],
        "speeds": [_curves(name, [(run, run.speed) for run in runs]) for name in speeds],
        "measures": [_curves(name, _beside_random(runs, name)) for name in measured],
        "charts": compared,
        "matrices": [
            (found, Markup(charts.confusion(found.table, found.classes, found.title))) for found in confusions(shown)
        ],
    }


def _beside_random(runs: Sequence[RunRecord], name: str) -> list[tuple[RunRecord, list[Curve]]]:
    """Return each run with its feature curves; for the rank, also a random network's as a separate run."""
    found = [(run, run.features) for run in runs]
    if name != "rank":
        return found
    for run in runs:
        curves = [Curve("rank", curve.steps, curve.values) for curve in run.features if curve.name == RANDOM]
        found.append((replace(run, name=f"{run.name}, random network"), curves))
    return found


def _curves(name: str, found: list[tuple[RunRecord, Any]]) -> tuple[str, str, Markup]:
    """Return name, explanation, and the chart with a line for each run that has the curve."""
    lines = [(run.name, curve) for run, all_of_it in found for curve in all_of_it if curve.name == name]
    return charts.readable(name), ABOUT.get(name, ""), Markup(charts.curves(charts.readable(name), lines))


def _told(content: Content) -> dict[str, Any]:
    """Return facts, settings and facts about the benchmarks."""
    results = content.tables.results
    people = {result.data.get("test", {}).get("people") is not None for result in results}
    return {
        "facts": _facts(content),
        "differing": differing(content.runs),
        "drawn_over": "people" if people == {True} else "images" if people == {False} else "people if known",
        "data": list({result.benchmark: result.data for result in results}.items()),
        "settings": _settings(content.tables),
    }


def _settings(tables: Tables) -> list[tuple[str, str]]:
    """Return the settings of each evaluation; with the backbones' names if settings differ between backbones."""
    found: dict[str, dict[str, list[str]]] = {}  # benchmark and protocol -> settings -> names of backbones
    for result in tables.results:
        text = to_yaml(result.settings)
        names = found.setdefault(f"{result.benchmark}, {result.protocol}", {}).setdefault(text, [])
        names.append(tables.names[result.backbone["id"]])
    return [
        (what if len(ways) == 1 else f"{what}, {' and '.join(dict.fromkeys(names))}", text)
        for what, ways in found.items()
        for text, names in ways.items()
    ]


def _facts(content: Content) -> list[tuple[str, str]]:
    """Return the most important numbers."""
    facts = []
    if len(content.runs) == 1:
        (run,) = content.runs
        facts.append(("steps", f"{run.last['step']:,}"))
        if "samples" in run.last:
            facts.append(("images seen", f"{run.last['samples']:,}"))
        speed = run.typical("images_per_second")
        if speed:
            facts.append(("images per second", f"{speed:.0f}"))
    first = content.tables.places[:1]
    for row in content.tables.rows:
        if (row.benchmark, row.protocol) in first:
            name = content.tables.names[row.id]
            facts.append((f"{charts.readable(row.metric)}, {row.protocol}, {name}", show(row.score, row.metric)))
    return facts


def _sections(content: Content, values: dict[str, Any]) -> list[tuple[str, str]]:
    """Return anchors and names of the sections on the page."""
    sections = [
        ("faces", "Faces", content.extras.sample),
        ("runs", "Runs", len(content.runs) > 1),
        ("results", "Results", content.tables.rows or content.extras.note),
        ("pictures", "Pictures", content.pictured),
        ("losses", "Losses", True),
        ("features", "Features", values["measures"]),
        ("throughput", "Throughput", values["speeds"]),
        ("stages", "Stages", content.extras.stages),
        ("again", "Commands and configurations", True),
    ]
    return [(anchor, name) for anchor, name, there in sections if there]


def _uri(kind: str, data: bytes) -> str:
    """Return an image as a data URI."""
    return f"data:image/{kind};base64," + base64.b64encode(data).decode()


RENDERERS: dict[str, Callable[[Content], str]] = {
    "html": render,
    "markdown": lambda content: markdown(content.runs, content.tables, content.title, content.commands),
    "csv": lambda content: csv_text(content.tables),
    "json": lambda content: json_text(content.runs, content.tables, content.commands),
}
