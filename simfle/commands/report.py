"""`tools/report.py`: one page about one or several runs."""

from pathlib import Path
from typing import Annotated

import typer

from simfle.commands.app import command, echo


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="folders of runs; several are compared")],
    out: Annotated[
        Path | None, typer.Option(help="the page; default RUN/report.html, of several runs beside the first")
    ] = None,
    results: Annotated[
        list[Path] | None, typer.Option(help="a folder of evaluations outside the runs; may be repeated")
    ] = None,
    shards: Annotated[
        list[str] | None,
        typer.Option(
            help="shards for masks, reconstructions, activation maps and neighbours; may be repeated. The page then "
            "holds images of faces, which are personal data; without it there is none on it"
        ),
    ] = None,
    format: Annotated[
        list[str] | None, typer.Option(help="html, markdown, csv, json; may be repeated; default html")
    ] = None,
) -> None:
    """Write a self-contained page: results with intervals, losses, throughput, pictures, how to get them again.

    For example: simfle report runs/simfle runs/byol --shards shards/mine --format html --format csv
    """
    from simfle.report.report import write_report

    written = write_report(runs, out, results or (), shards=shards or (), formats=format or ("html",))
    for path in written:
        echo(f"report: {path}")


main = command(report)
