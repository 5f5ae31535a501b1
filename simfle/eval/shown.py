"""A summary as tables for a terminal or a notebook."""

from typing import TYPE_CHECKING

from rich.console import Group
from rich.markup import escape
from rich.table import Table

from simfle.console import Console

if TYPE_CHECKING:
    from simfle.eval.summary import Summary

FEW = 20  # people, below which drawing them anew says too little of others
WIDTH = 160  # characters, where no terminal says how wide it is


def text(summary: "Summary") -> str:
    """The tables without colours."""
    console = Console(width=WIDTH, color_system=None)
    with console.capture() as found:
        console.print(tables(summary))
    return found.get()


def tables(summary: "Summary") -> Group:
    """A table of each benchmark, and one of the paired tests."""
    made: list[Table | str] = []
    for benchmark in dict.fromkeys(row.benchmark for row in summary.table):
        rows = [row for row in summary.table if row.benchmark == benchmark]
        table = Table(title=f"{escape(benchmark)}: chosen on validation, measured on {rows[0].samples} test images")
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
            made.append(
                f"only {people} people in this test: intervals over so few are too narrow, one person's is a point"
            )
    made.append("* the papers' habit: the best epoch or candidate on the test images. For comparison only.")
    if summary.comparisons:
        pairs = Table(title="differences on the same test images (paired, by person where known)")
        for name in ("benchmark", "protocol", "first", "less second"):
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
