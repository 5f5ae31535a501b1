"""Charts as inline SVG: text is kept as text, the size is flexible, and the page's theme sets the colors."""

# n points
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from shards.printable import printable
from simfle.eval.analysis.metrics import LOWER_IS_BETTER
from simfle.eval.analysis.summary import SummaryRow

# Okabe and Ito's palette; lines also differ in their dashes, and points in their shapes, for color-blind readers
BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, GRAY = (
    "#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#767676",
)  # fmt: skip
INK, SOFT, GRID = "#1b1b1b", "#5a5a5a", "#dedede"
LINES = [BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, INK]
Dashes = Literal["-", "--", "-.", ":"]
DASHES: list[Dashes] = ["-", "--", "-.", ":"]
MARKERS = "os^DvPX*"
THEME = {
    BLUE: "blue", ORANGE: "orange", GREEN: "green", VERMILION: "vermilion", PURPLE: "purple", SKY: "sky", GRAY: "gray",
    INK: "ink", SOFT: "soft", GRID: "line",
}  # fmt: skip
"""Color in a chart -> CSS variable in style.css, with one value in the light and one in the dark theme."""
SHARES = frozenset({"accuracy", "balanced_accuracy", "macro_f1"})  # shown in percent
STYLE: Any = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 12,
    "text.color": INK,
    "axes.labelcolor": SOFT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GRAY,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "legend.frameon": False,
}
WORDS = {
    "linear": "linear probe",
    "linear_fast": "linear probe (fast)",
    "knn": "kNN",
    "finetune": "fine-tuning",
    "scratch": "training from scratch",
    "landmarks": "landmark regression",
    "cam": "activation maps",
    "nme": "normalized mean error",
    "total": "total loss",
    "lr": "learning rate",
    "rank": "effective rank of the features",
    "projection_rank": "effective rank of the projections",
    "probe_rank": "effective rank on validation images",
    "knn_accuracy": "kNN accuracy",
    "linear_probe": "linear probe accuracy",
    "images_per_second": "images per second",
    "data_wait": "share of time waiting for data",
}
"""Name in files -> name on the page."""


@dataclass(frozen=True)
class Line:
    """Curve of a run in a chart.

    place: number of the run, which selects the color; x, y: of equal length; baseline: name of the reference that the
    line shows; "" for the run itself.
    """

    label: str
    place: int
    x: list[float]
    y: list[float]
    baseline: str = ""


def curves(name: str, lines: Sequence[Line], over: str = "steps", *, logarithmic: bool = True) -> str:
    """Draw one quantity over steps or images as an SVG element.

    Args:
        name: title of the quantity.
        lines: at least one; baselines are thin, dashed for random weights and dotted for other weights.
        over: unit of x, steps or images.
        logarithmic: whether the y axis may be logarithmic, which it is for values over more than two decades.
    """
    runs, baselines = [line for line in lines if not line.baseline], [line for line in lines if line.baseline]
    several = len(runs) > 1
    rows = len(runs) * several + len({line.baseline for line in baselines})
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": f"{name} {over}"}):
        figure = Figure(figsize=(4.6, 2.7 + 0.25 * rows), layout="constrained")
        axes = figure.subplots()
        for line in [*baselines, *runs]:
            color = GRAY if line.baseline and not several else LINES[line.place % len(LINES)]
            dashes = DASHES[line.place % len(DASHES)] if several else "-"
            width, mark = (2.0, "o" if len(line.x) == 1 else "") if not line.baseline else (1.3, "")
            dashes = _dashes(line.baseline) if line.baseline else dashes
            axes.plot(line.x, line.y, color=color, linestyle=dashes, linewidth=width, marker=mark)
        values = [value for line in lines for value in line.y]
        if logarithmic and min(values) > 0 and max(values) > 100 * min(values):
            axes.set_yscale("log")
        axes.set_xlabel("images seen" if over == "images" else "step")
        axes.margins(x=0.02)
        _short_numbers(axes)
        if rows:
            _legend(figure, runs if several else [], baselines)
        last = "; ".join(f"{_title(line)} ends at {line.y[-1]:.4g}" for line in lines)
        return _svg(figure, f"{name} over {max(line.x[-1] for line in lines):.0f} {over}: {last}")


def _title(line: Line) -> str:
    return f"{line.label}, {line.baseline}" if line.baseline else line.label


def _dashes(baseline: str) -> Dashes:
    return "--" if baseline == "random weights" else ":"


def _legend(figure: Figure, runs: Sequence[Line], baselines: Sequence[Line]) -> None:
    """Add a legend below the chart: the runs, and each kind of baseline once."""
    handles = [
        Line2D([], [], color=LINES[line.place % len(LINES)], linestyle=DASHES[line.place % len(DASHES)], linewidth=2)
        for line in runs
    ]
    names = list(dict.fromkeys(line.baseline for line in baselines))
    handles += [Line2D([], [], color=GRAY, linestyle=_dashes(name), linewidth=1.3) for name in names]
    figure.legend(handles, [*(_plain(line.label) for line in runs), *names], loc="outside lower left", ncols=1)


def _short_numbers(axes: Axes) -> None:
    """Write 20k and 3M at the horizontal axis, which would otherwise overlap on a phone."""
    axes.locator_params(axis="x", nbins=5)
    axes.xaxis.set_major_formatter(lambda value, _: short(value))


def short(value: float) -> str:
    """Format 1500 as 1.5k and 3000000 as 3M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{unit}"
    return f"{value:.4g}"


def comparison(rows: Sequence[SummaryRow], names: dict[str, str], chance: float | None) -> str:
    """Draw one metric on one benchmark: score of each backbone and protocol with its 95 % interval, and chance."""
    metric, shown = rows[0].metric, list(rows)[::-1]
    scale = 100 if metric in SHARES else 1
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": f"{rows[0].benchmark} {metric}"}):
        figure = Figure(figsize=(5.4, 0.9 + 0.4 * len(shown)), layout="constrained")
        axes = figure.subplots()
        for place, row in enumerate(shown):
            low, high = (scale * value for value in row.interval)
            color, mark, size = (GRAY, "s", 5) if row.kind == "random" else (BLUE, "o", 9)
            axes.plot([low, high], [place, place], color=color, linewidth=size / 2, solid_capstyle="round", alpha=0.45)
            axes.plot([scale * row.score], [place], mark, color=color, markersize=size)
        labels = [printable(f"{names[row.id]}\n{readable(row.protocol)}") for row in shown]
        axes.set_yticks(range(len(shown)), labels, parse_math=False, fontsize=10)
        for text, row in zip(axes.get_yticklabels(), shown, strict=True):
            text.set_color(SOFT if row.kind == "random" else INK)
        axes.set_ylim(-0.6, len(shown) - 0.4)
        if chance is not None and metric in SHARES:
            axes.axvline(100 * chance, color=VERMILION, linestyle="--", linewidth=1.2)
            top = (100 * chance, 1)
            options: dict[str, Any] = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
            axes.annotate("chance", top, xytext=(4, -8), color=VERMILION, fontsize=10, **options)
        if metric in SHARES:
            axes.set_xlim(left=0)
        unit = ", %" if metric in SHARES else ", lower is better" if metric in LOWER_IS_BETTER else ""
        axes.set_xlabel(readable(metric) + unit)
        return _svg(figure, f"{readable(metric)} with 95 % intervals; the same numbers are in the table")


def scores_over_images(points: Sequence[tuple[str, float, SummaryRow]], baseline: SummaryRow | None, salt: str) -> str:
    """Draw the scores of several backbones against the images that each has seen: (name, images, row)."""
    metric = points[0][2].metric
    scale = 100 if metric in SHARES else 1
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": salt}):
        figure = Figure(figsize=(4.6, 2.9 + 0.25 * len(points)), layout="constrained")
        axes = figure.subplots()
        handles = []
        for place, (name, images, row) in enumerate(points):
            color, mark = LINES[place % len(LINES)], MARKERS[place % len(MARKERS)]
            low, high = (scale * value for value in row.interval)
            axes.plot([images, images], [low, high], color=color, linewidth=3, alpha=0.45)
            axes.plot([images], [scale * row.score], mark, color=color, markersize=8)
            handles.append(Line2D([], [], color=color, marker=mark, linestyle="", label=_plain(name)))
        if baseline is not None:
            axes.axhline(scale * baseline.score, color=GRAY, linestyle="--", linewidth=1.3)
            handles.append(Line2D([], [], color=GRAY, linestyle="--", linewidth=1.3, label="random weights"))
        axes.set_xlabel("images seen")
        axes.set_ylabel(readable(metric) + (", %" if metric in SHARES else ""))
        axes.margins(x=0.08)
        _short_numbers(axes)
        figure.legend(handles=handles, loc="outside lower left", ncols=1)
        said = "; ".join(f"{name}: {row.score:.4g} after {images:.0f} images" for name, images, row in points)
        return _svg(figure, f"{readable(metric)} against images seen: {said}")


def embedding(points: NDArray[np.floating], labels: Sequence[str], title: str) -> str:
    """Draw points [n, 2] with one color and shape per label; axes without numbers, since only distances matter."""
    names = sorted(set(labels))
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": title, "axes.grid": False}):
        figure = Figure(figsize=(4.6, 4.4 + 0.25 * -(-len(names) // 3)), layout="constrained")
        axes = figure.subplots()
        found = np.array(labels)
        for place, name in enumerate(names):
            of_class = points[found == name]
            color, mark = LINES[place % len(LINES)], MARKERS[place % len(MARKERS)]
            axes.plot(of_class[:, 0], of_class[:, 1], mark, color=color, markersize=4.5, alpha=0.75, markeredgewidth=0,
                      label=_plain(name))  # fmt: skip
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_aspect("equal", adjustable="datalim")
        for spine in axes.spines.values():
            spine.set_visible(True)
        figure.legend(loc="outside lower left", ncols=3, handletextpad=0.1, columnspacing=1, markerscale=1.4)
        return _svg(figure, f"{title}: {len(labels)} faces as points, colored by {len(names)} labels")


def readable(name: str) -> str:
    """Convert a name in files to one on the page: knn -> kNN, linear@0.1 -> linear probe, 10 % of labels."""
    word, _, share = name.partition("@")
    text = WORDS.get(word, word.replace("_", " "))
    try:
        return f"{text}, {100 * float(share):g} % of labels" if share else text
    except ValueError:
        return f"{text}@{share}"


def _plain(text: str) -> str:
    """Escape text: matplotlib hides labels that begin with an underscore and parses $ as mathematics."""
    return printable(text).lstrip("_").replace("$", r"\$")


def _svg(figure: Figure, description: str) -> str:
    """Return the figure as an <svg> element that fills the available width and follows the page's theme."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    head, rest = text.split(">", 1)
    head = re.sub(r'\s(width|height)="[^"]*"', "", head)
    rest = re.sub(r"(?<=: )#[0-9a-f]{6}(?=[;\"])", lambda found: _themed(found[0]), rest)
    label = description.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return f'{head} role="img" aria-label="{label}">{rest}'


def _themed(color: str) -> str:
    return f"var(--{THEME[color]})" if color in THEME else color
