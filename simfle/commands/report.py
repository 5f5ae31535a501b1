"""`simfle report`: write a report about one or several runs."""

from pathlib import Path
from typing import Annotated

import typer

from simfle.commands.app import command, echo


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="run folders; several are compared")],
    out: Annotated[
        Path | None, typer.Option(help="report file (default: RUN/report.html; for several runs, beside the first)")
    ] = None,
    results: Annotated[
        list[Path] | None, typer.Option(help="folder of evaluations outside the runs (repeatable)")
    ] = None,
    shards: Annotated[
        list[str] | None,
        typer.Option(
            help="shards for masks, reconstructions, activation maps and nearest neighbors (repeatable); the page then "
            "contains images of faces, which are personal data"
        ),
    ] = None,
    format: Annotated[
        list[str] | None, typer.Option(help="html, markdown, csv, json (repeatable; default: html)")
    ] = None,
) -> None:
    """Write a self-contained page: results with intervals, losses, throughput, images, commands to reproduce them.

    For example: simfle report runs/simfle runs/byol --shards shards/mine --format html --format csv
    """
    from simfle.report.report import write_report

    written = write_report(runs, out, results or (), shards=shards or (), formats=format or ("html",))
    for path in written:
        echo(f"report: {path}")


main = command(report)
