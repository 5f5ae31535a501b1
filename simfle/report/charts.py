"""Charts as inline SVG: text stays text, no fixed size, colours that colour-blind readers tell apart."""

import io
import re
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from simfle.report.gather import Curve

# Okabe and Ito's palette
BLUE, ORANGE, GREEN, VERMILION, PURPLE, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#767676"
COLOURS = {
    "total": "#222222",
    "similarity": BLUE,
    "reconstruction": GREEN,
    "distillation": ORANGE,
    "grouping": PURPLE,
    "overlap": PURPLE,
}
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
}


def curve(data: Curve) -> str:
    """One loss over the steps; on a logarithmic scale where it spans more than two decades."""
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": data.name}):
        figure = Figure(figsize=(4.2, 2.6), layout="constrained")
        axes = figure.subplots()
        axes.plot(data.steps, data.values, color=COLOURS.get(data.name, VERMILION), linewidth=1.8)
        positive = [value for value in data.values if value > 0]
        if len(positive) == len(data.values) and max(positive) > 100 * min(positive):
            axes.set_yscale("log")
        axes.set_xlabel("step")
        axes.margins(x=0.02)
        return _svg(figure, f"{data.name} loss over {data.steps[-1]:.0f} steps, last value {data.values[-1]:.4g}")


def comparison(results: dict[str, Any]) -> str:
    """Balanced accuracy of each backbone by each protocol, with its 95 % interval, and chance."""
    rows = results["summary"][::-1]
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": "comparison"}):
        figure = Figure(figsize=(5.2, 0.9 + 0.42 * len(rows)), layout="constrained")
        axes = figure.subplots()
        for place, row in enumerate(rows):
            low, high = (100 * value for value in row["interval"])
            colour = GREY if row["kind"] == "random" else BLUE
            axes.plot([low, high], [place, place], color=colour, linewidth=3, solid_capstyle="round", alpha=0.45)
            axes.plot([100 * row["balanced_accuracy"]], [place], "o", color=colour, markersize=7)
        axes.set_yticks(range(len(rows)), [f"{row['protocol']}, {row['kind']}" for row in rows], parse_math=False)
        axes.set_ylim(-0.6, len(rows) - 0.4)
        axes.axvline(100 * results["data"]["chance"], color=VERMILION, linestyle="--", linewidth=1.2)
        axes.annotate(
            "chance",
            (100 * results["data"]["chance"], 1),
            xycoords=("data", "axes fraction"),
            xytext=(4, -8),
            textcoords="offset points",
            color=VERMILION,
            fontsize=10,
        )
        axes.set_xlim(left=0)
        axes.set_xlabel("balanced accuracy, %")
        return _svg(figure, "Balanced accuracy with 95 % intervals; the same numbers are in the table below")


def _svg(figure: Figure, description: str) -> str:
    """The figure as an <svg> element that takes the width it is given."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    head, rest = text.split(">", 1)
    head = re.sub(r'\s(width|height)="[^"]*"', "", head)
    label = description.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return f'{head} role="img" aria-label="{label}">{rest}'
