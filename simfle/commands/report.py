"""`tools/report.py`: one HTML page about a run."""

from pathlib import Path
from typing import Annotated

import typer

from simfle.commands.app import command


def report(
    run: Annotated[Path, typer.Argument(help="a run's folder")],
    out: Annotated[Path | None, typer.Option(help="the page; default RUN/report.html")] = None,
    results: Annotated[Path | None, typer.Option(help="results of an evaluation; default RUN/results.json")] = None,
) -> None:
    """Write one self-contained HTML page: losses, masks and reconstructions, results, how to get them again."""
    from simfle.report.report import write_report

    typer.echo(f"report: {write_report(run, out, results)}")


main = command(report)
