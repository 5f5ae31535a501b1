"""Write one HTML page about one or several runs: self-contained, responsive, without external requests."""

import base64
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
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
from simfle.report.charts import Line
from simfle.report.load_runs import Curve, RunRecord, differing, read_runs, results_of
from simfle.report.tables import Tables, confusions, csv_text, json_text, markdown, show, show_interval, tables
from simfle.runtime import run_files

if TYPE_CHECKING:
    from simfle.report.face_samples import ReportFigure

ENDINGS = {"html": ".html", "markdown": ".md", "csv": ".csv", "json": ".json"}
INITIAL, RANDOM = "initial_", "random_"  # prefixes of the baselines of a curve
FACTS = 2  # columns of the table of results with their scores at the top of the page
LINEAR = frozenset({"lr"})  # curves with a linear axis
TOP = ("rank", "knn_accuracy", "linear_probe")  # curves of features at the top of the page
ABOUT = {
    "total": "The weighted sum that training minimizes.",
    "lr": "Learning rate of each step.",
    "similarity": "Two views of a face should give the same projection; 0 is equal, 4 is orthogonal for both.",
    "reconstruction": "Masked patches, predicted from the visible ones; 1 is predicting each patch's mean.",
    "distillation": "Backbone and FaceMAE should agree on what they see.",
    "grouping": "Channels of a group should respond together, and groups separately. Has a small weight in the sum.",
    "overlap": "Not part of the sum: mean correlation between maps of different groups. It falls as groups separate.",
    "rank": "Dimensions that the backbone's features use (effective rank). Far below the first weights: collapse.",
    "projection_rank": "Effective rank of the projections, which the loss compares.",
    "spread": "Mean deviation of unit features times the root of their width: 0 if all are equal, near 1 if uniform.",
    "uniformity": "log of the mean Gaussian potential of pairs of faces: 0 if all are equal, lower is more uniform.",
    "alignment": "Mean squared distance of the two views of a face, as unit vectors: 0 if they are equal.",
    "probe_rank": "Effective rank of the features of monitor.shards, in evaluation mode.",
    "linear_probe": "Linear probe on labeled faces (monitor.shards); training does not see the labels.",
    "knn_accuracy": "Nearest neighbors on labeled faces (monitor.shards); training does not see the labels.",
    "images_per_second": "Images per second over all processes. Dips are checkpoints or waits for data.",
    "data_wait": "Near 0, the loader is fast enough.",
}


@dataclass(frozen=True)
class ReportStage:
    """One stage of a pipeline: description, location of its result, and seconds (None = skipped)."""

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
    """Content of a report.

    pictured: images of faces by run; faces_of: corpora, "" if no faces of shards are shown; is_synthetic: all faces
    were drawn by this program; notes: reasons for missing images.
    """

    runs: list[RunRecord]
    tables: Tables
    commands: list[str]
    extras: Extras
    pictured: list[tuple[RunRecord, "list[ReportFigure]"]] = field(default_factory=list)
    faces_of: str = ""
    is_synthetic: bool = False
    notes: list[str] = field(default_factory=list)

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
        shards: source of faces; without shards, the page contains only synthetic faces.

    Raises:
        UserError: If a format is unknown; see also `read_runs`, `results_of`, `read_face_set` and `figures`.
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
        pictured, notes = _synthetic(runs)
        return Content(runs, found, commands, extras, pictured, is_synthetic=True, notes=notes)
    from simfle.report.face_samples import read_face_set
    from simfle.report.visualizations import figures

    album = read_face_set(shards)
    pictured = [(run, figures(run.folder, album)) for run in runs]
    return Content(runs, found, commands, extras, pictured, album.source(), album.is_synthetic)


def _synthetic(runs: Sequence[RunRecord]) -> "tuple[list[tuple[RunRecord, list[ReportFigure]]], list[str]]":
    """Draw masks and reconstructions of synthetic faces for the runs with a complete checkpoint.

    A run whose checkpoint cannot be read is named in the notes: the curves and results of the page do not need it.
    """
    trained = [run for run in runs if run_files.complete_checkpoint_dirs(run.folder)]
    if not trained:
        return [], []
    from simfle.report.face_samples import synthetic_faces
    from simfle.report.visualizations import figures

    album, pictured, notes = synthetic_faces(), [], []
    for run in trained:
        try:
            found = figures(run.folder, album)
        except UserError as error:
            notes.append(str(error))
            continue
        if found:
            pictured.append((run, found))
    return pictured, notes


def render(content: Content) -> str:
    """Render the page. All text from files is escaped; charts are trusted markup."""
    environment = Environment(
        loader=PackageLoader("simfle.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        # This keeps the type Markup. Names on a page must not contain control or bidi characters, either.
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
        "tile": lambda image: _uri(image.kind, image.data),
        "svg": Markup,
    }
    values = {**vars(content), "title": content.title, **_drawn(content), **_told(content)}
    values["first"] = _first(content.runs, values)
    return environment.get_template("page.html").render(values, sections=_sections(content, values))


def _drawn(content: Content) -> dict[str, Any]:
    """Draw the charts: (title, caption, SVG)."""
    runs, shown = content.runs, content.tables
    names = dict.fromkeys(curve.name for run in runs for curve in run.curves)
    speeds = dict.fromkeys(curve.name for run in runs for curve in run.speed)
    measured = dict.fromkeys(curve.name for run in runs for curve in run.features)
    own = [name for name in measured if not name.startswith((INITIAL, RANDOM))]
    kinds = dict.fromkeys((row.benchmark, row.metric) for row in shown.rows)
    compared = []
    for benchmark, metric in kinds:
        rows = [row for row in shown.rows if (row.benchmark, row.metric) == (benchmark, metric)]
        chance = shown.first((benchmark, rows[0].protocol)).data.get("chance")
        caption = (
            "Marks are scores, bars 95 % intervals, gray squares random weights. Where a bar overlaps "
            "another, their order is uncertain."
        )
        compared.append((benchmark, caption, Markup(charts.comparison(rows, shown.names, chance))))
    return {
        "losses": {name: _curves(name, runs, "curves") for name in names},
        "speeds": {name: _curves(name, runs, "speed") for name in speeds},
        "measures": {name: _curves(name, runs, "features") for name in own},
        "seen": {name: _curves(name, runs, "accuracy") for name in _accuracies(runs)},
        "charts": [*compared, *_scores_over_images(content)],
        "matrices": confusions(shown),
    }


def _accuracies(runs: Sequence[RunRecord]) -> list[str]:
    return list(dict.fromkeys(curve.name for run in runs for curve in run.accuracy))


def _curves(name: str, runs: Sequence[RunRecord], kind: str) -> tuple[str, str, Markup]:
    """Return title, explanation, and the chart with a line for each run that has the curve, and for its baselines."""
    lines, over = [], "images" if kind == "accuracy" else "steps"
    scale = 100 if kind == "accuracy" or name == "data_wait" else 1
    for place, run in enumerate(runs):
        label = run.label if len(runs) > 1 else run.name
        found: dict[str, Curve] = {curve.name: curve for curve in getattr(run, kind)}
        references = {curve.name: curve for curve in run.features}
        if name not in found:
            continue
        lines.append(Line(label, place, found[name].steps, [scale * value for value in found[name].values]))
        for prefix in (INITIAL, RANDOM):
            if curve := references.get(prefix + name):
                baseline = "at the start" if run.start and prefix == INITIAL else "random weights"
                ends = found[name].steps
                value = scale * curve.values[-1]  # constant: measured once
                lines.append(Line(label, place, [ends[0], ends[-1]], [value, value], baseline))
    title = charts.readable(name) + (", %" if scale == 100 else "")
    chart = Markup(charts.curves(title, lines, over, logarithmic=name not in LINEAR and scale == 1))
    return title + (" against images seen" if over == "images" else ""), ABOUT.get(name, ""), chart


def _scores_over_images(content: Content) -> list[tuple[str, str, Markup]]:
    """Draw final scores against images seen, for each column of the table with at least two backbones of the runs."""
    seen = {id: images for id, images in _images_seen(content).items() if images}
    drawn = []
    for place in content.tables.places:
        rows = [row for row in content.tables.rows if (row.benchmark, row.protocol) == place]
        points = [(content.tables.names[row.id], seen[row.id], row) for row in rows if row.id in seen]
        if len({images for _, images, _ in points}) < 2:
            continue
        baseline = next((row for row in rows if row.kind == "random"), None)
        title = f"{place[0]}, {charts.readable(place[1])}, against images seen"
        caption = "One point per trained backbone, with its 95 % interval."
        drawn.append((title, caption, Markup(charts.scores_over_images(points, baseline, title))))
    return drawn


def _images_seen(content: Content) -> dict[str, int]:
    """Return backbone id -> images that its run had seen at the exported step, of the runs on the page."""
    batches = {run.folder.resolve().name: run.config["train"]["global_batch"] for run in content.runs}
    found = {}
    for result in content.tables.results:
        card = result.backbone.get("card")
        origin = card.get("run") if isinstance(card, dict) else None
        if result.backbone["kind"] == "random" or not isinstance(origin, dict):
            continue
        step, batch = origin.get("step"), batches.get(str(origin.get("folder")))
        if run_files.is_count(step) and run_files.is_count(batch):
            found[result.backbone["id"]] = int(step or 0) * int(batch or 0)
    return found


def _first(runs: Sequence[RunRecord], values: dict[str, Any]) -> list[tuple[str, str, Markup]]:
    """Take the charts at the top of the page from their groups: loss, learning rate, rank and probes."""
    groups = ((("total",), "losses"), (("lr",), "speeds"), (TOP, "measures"))
    taken = {name: values[group].pop(name) for names, group in groups for name in names if name in values[group]}
    return list((taken | values["seen"]).values())


def _told(content: Content) -> dict[str, Any]:
    """Return facts, settings and facts about the benchmarks."""
    results = content.tables.results
    people = {result.data.get("test", {}).get("people") is not None for result in results}
    return {
        "facts": _facts(content),
        "probed": any(_accuracies(content.runs)),
        "differing": differing(content.runs),
        "drawn_over": "people" if people == {True} else "images" if people == {False} else "people if known",
        "data": list({result.benchmark: result.data for result in results}.items()),
        "settings": _settings(content.tables),
    }


def _settings(tables: Tables) -> list[tuple[str, str]]:
    """Return the settings of each evaluation, with the backbones' names if settings differ between backbones."""
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


def _facts(content: Content) -> list[tuple[str, str, str]]:
    """Return the most important numbers: name, value, and the baseline as text. Trained backbones come first."""
    facts = _score_facts(content.tables)
    if len(content.runs) > 1:
        return facts
    for run in content.runs:
        last = {curve.name: curve.values[-1] for curve in run.features}
        start = "at the start" if run.start else "random weights"
        for name, unit, baseline in (("rank", "", INITIAL), ("knn_accuracy", " %", RANDOM)):
            if name in last:
                below, scale = last.get(baseline + name), 100 if unit else 1
                word = start if baseline == INITIAL else "random weights"
                about = "" if below is None else f"{word}: {scale * below:.1f}{unit}"
                title = "effective rank" if name == "rank" else "kNN accuracy during training"
                facts.append((title, f"{scale * last[name]:.1f}{unit}", about))
        if "samples" in run.last:
            facts.append(("images seen", f"{run.last['samples']:,}", f"in {run.last['step']:,} steps"))
        else:
            facts.append(("steps", f"{run.last['step']:,}", ""))
        if speed := run.typical("images_per_second"):
            facts.append(("images per second", f"{speed:.0f}", ""))
    return facts


def _score_facts(shown: Tables) -> list[tuple[str, str, str]]:
    """Return the scores of the trained backbones in the first columns, each with that of random weights."""
    facts, several = [], len({benchmark for benchmark, _ in shown.places}) > 1
    for place in shown.places[:FACTS]:
        rows = [row for row in shown.rows if (row.benchmark, row.protocol) == place]
        own = [row for row in rows if row.kind != "random"] or rows
        random = next((row for row in rows if row.kind == "random" and row not in own), None)
        for row in own:
            about = f"random weights: {show(random.score, random.metric)}" if random else ""
            where = f" on {row.benchmark}" if several else ""
            title = f"{shown.names[row.id]}: {charts.readable(row.protocol)}{where}, {charts.readable(row.metric)}"
            facts.append((title, show(row.score, row.metric), about))
    return facts


def _sections(content: Content, values: dict[str, Any]) -> list[tuple[str, str]]:
    """Return anchors and names of the sections on the page."""
    sections = [
        ("training", "Training", values["first"]),
        ("faces", "Faces", content.extras.sample),
        ("runs", "Runs", len(content.runs) > 1),
        ("results", "Results", content.tables.rows or content.extras.note),
        ("pictures", "What the models see", content.pictured),
        ("losses", "Losses", values["losses"]),
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
