"""Charts as inline SVG: text is kept as text, the size is flexible, and the colors suit color-blind readers."""

import io
import re
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from shards.printable import printable
from simfle.eval.analysis.metrics import LOWER_IS_BETTER
from simfle.eval.analysis.summary import SummaryRow
from simfle.report.load_runs import Curve

# Okabe and Ito's palette. Lines also differ in their dashes, for prints and color-blind readers.
BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, GRAY = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#767676",
)  # fmt: skip
LINES = [BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, "#222222"]
DASHES = ["-", "--", "-.", ":"]
LONGEST = 18  # maximum characters of a class name at an axis
SHARES = frozenset({"accuracy", "balanced_accuracy", "macro_f1"})  # shown in percent
STYLE: Any = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#999999",
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "legend.frameon": False,
}


def curves(name: str, found: Sequence[tuple[str, Curve]]) -> str:
    """Draw one quantity over the steps, one line per run; logarithmic if it spans more than two decades."""
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": name}):
        figure = Figure(figsize=(4.2, 2.6 + 0.24 * len(found) * (len(found) > 1)), layout="constrained")
        axes = figure.subplots()
        for place, (run, curve) in enumerate(found):
            color, dashes = LINES[place % len(LINES)], DASHES[place // len(LINES) % len(DASHES)]
            if len(found) > 1:
                dashes = DASHES[place % len(DASHES)]
            axes.plot(curve.steps, curve.values, color=color, linestyle=dashes, linewidth=1.8, label=_plain(run))
        values = [value for _, curve in found for value in curve.values]
        if min(values) > 0 and max(values) > 100 * min(values):
            axes.set_yscale("log")
        axes.set_xlabel("step")
        axes.margins(x=0.02)
        if len(found) > 1:
            figure.legend(loc="outside lower left", ncols=1)
        last = "; ".join(f"{run} ends at {curve.values[-1]:.4g}" for run, curve in found)
        return _svg(figure, f"{name} over {found[0][1].steps[-1]:.0f} steps: {last}")


def comparison(rows: Sequence[SummaryRow], names: dict[str, str], chance: float | None) -> str:
    """Draw one metric on one benchmark: score of each backbone and protocol with its 95 % interval, and chance."""
    metric, shown = rows[0].metric, list(rows)[::-1]
    scale = 100 if metric in SHARES else 1
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": f"{rows[0].benchmark} {metric}"}):
        figure = Figure(figsize=(5.2, 0.9 + 0.42 * len(shown)), layout="constrained")
        axes = figure.subplots()
        for place, row in enumerate(shown):
            low, high = (scale * value for value in row.interval)
            color, mark = (GRAY, "s") if row.kind == "random" else (BLUE, "o")
            axes.plot([low, high], [place, place], color=color, linewidth=3, solid_capstyle="round", alpha=0.45)
            axes.plot([scale * row.score], [place], mark, color=color, markersize=7)
        labels = [printable(f"{names[row.id]}, {row.protocol}") for row in shown]
        axes.set_yticks(range(len(shown)), labels, parse_math=False)
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


def confusion(table: Sequence[Sequence[float]], classes: Sequence[str], salt: str) -> str:
    """Draw a confusion matrix: rows are true classes, columns predicted ones, in percent of the row."""
    counts = np.array(table, dtype=float)
    share = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = 1.5 + 0.42 * len(classes)
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": salt, "axes.grid": False}):
        figure = Figure(figsize=(side, side), layout="constrained")
        axes = figure.subplots()
        edges = np.arange(len(classes) + 1) - 0.5
        axes.pcolormesh(edges, edges, share, cmap="Blues", vmin=0, vmax=100, edgecolors="white")  # a palette of one hue
        axes.invert_yaxis()
        axes.set_aspect("equal")
        for row, values in enumerate(share):
            for column, value in enumerate(values):
                color = "white" if value > 55 else "#222222"
                axes.text(column, row, f"{value:.0f}", ha="center", va="center", color=color, fontsize=9)
        labels = [name if len(name) <= LONGEST else name[: LONGEST - 1] + "…" for name in map(printable, classes)]
        axes.set_xticks(range(len(labels)), labels, rotation=60, ha="right", parse_math=False)
        axes.set_yticks(range(len(labels)), labels, parse_math=False)
        axes.set_xlabel("predicted")
        axes.set_ylabel("truth")
        axes.spines[:].set_visible(False)
        found = "; ".join(f"{name} {share[place, place]:.0f} %" for place, name in enumerate(classes))
        return _svg(figure, f"Confusion matrix. Recall: {found}")


def readable(metric: str) -> str:
    """Convert balanced_accuracy -> balanced accuracy."""
    return metric.replace("_", " ")


def _plain(text: str) -> str:
    """Escape text: matplotlib hides labels that begin with an underscore and parses $ as mathematics."""
    return printable(text).lstrip("_").replace("$", r"\$")


def _svg(figure: Figure, description: str) -> str:
    """Return the figure as an <svg> element that fills the available width."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    head, rest = text.split(">", 1)
    head = re.sub(r'\s(width|height)="[^"]*"', "", head)
    label = description.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return f'{head} role="img" aria-label="{label}">{rest}'
