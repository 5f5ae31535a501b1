"""Print a summary as tables for a terminal or a notebook."""

from typing import TYPE_CHECKING

from rich.console import Group
from rich.markup import escape
from rich.table import Table

from simfle.runtime.console import Console

if TYPE_CHECKING:
    from simfle.eval.analysis.summary import Summary

FEW = 20  # with fewer people, bootstrapping them is unreliable
WIDTH = 160  # characters per line if the output is not a terminal


def text(summary: "Summary") -> str:
    """Return the tables without colors."""
    console = Console(width=WIDTH, color_system=None)
    with console.capture() as found:
        console.print(tables(summary))
    return found.get()


def tables(summary: "Summary") -> Group:
    """Return a table per benchmark, and one of the paired tests."""
    made: list[Table | str] = []
    for benchmark in dict.fromkeys(row.benchmark for row in summary.table):
        rows = [row for row in summary.table if row.benchmark == benchmark]
        table = Table(title=f"{escape(benchmark)}: selected on validation, tested on {rows[0].samples} images")
        for name in ("protocol", "metric", "backbone", "seeds"):
            table.add_column(name)
        for name in ("score", "95 % interval", "best on test*"):
            table.add_column(name, justify="right")
        for row in sorted(rows, key=lambda row: row.protocol):
            spread = f" ± {row.spread:.3f}" if row.seeds > 1 else ""
            low, high = row.interval
            best = "" if row.best_on_test is None else f"{row.best_on_test:.3f}"
            numbers = f"{row.score:.3f}{spread}", f"{low:.3f} to {high:.3f}", best
            table.add_row(escape(row.protocol), escape(row.metric), escape(row.id), str(row.seeds), *numbers)
        made.append(table)
        people = rows[0].people
        if people is not None and people < FEW:
            made.append(f"this test set has only {people} people: intervals over so few people are too narrow")
    made.append("* best epoch or candidate, selected on the test split: optimistic, for comparison only")
    if summary.comparisons:
        pairs = Table(title="differences on the same test images (paired, by person where known)")
        for name in ("benchmark", "protocol", "first", "baseline"):
            pairs.add_column(name)
        for name in ("difference", "95 % interval", "p"):
            pairs.add_column(name, justify="right")
        for found in summary.comparisons:
            low, high = found.interval
            numbers = f"{found.difference:+.3f}", f"{low:+.3f} to {high:+.3f}", f"{found.p:.3f}"
            names = (escape(name) for name in (found.benchmark, found.protocol, found.first, found.second))
            pairs.add_row(*names, *numbers)
        made.append(pairs)
    return Group(*made)
