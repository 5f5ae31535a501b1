"""`simfle shards duplicates`: find duplicate images within a corpus or between corpora."""

import json
import os
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from simfle.commands.app import command, echo
from simfle.commands.shards.output import DUPLICATES, default_output_beside, local
from simfle.config.overrides import shell_line
from simfle.runtime.console import Console


def find_duplicates(
    folder: Annotated[Path, typer.Argument(metavar="SHARDS", parser=local, help="folder of shards to search")],
    against: Annotated[
        Path | None,
        typer.Option(
            metavar="SHARDS", parser=local, help="search these shards for the images, instead of SHARDS itself"
        ),
    ] = None,
    split: Annotated[list[str] | None, typer.Option(help="only this split (of --against if given); repeatable")] = None,
    distance: Annotated[int, typer.Option(help="maximum Hamming distance of near duplicates, 0 to 16 of 64 bits")] = 8,
    keys_file: Annotated[
        Path | None,
        typer.Option(
            "--list",
            help="JSON Lines file to write (default: SHARDS.duplicates.jsonl beside the folder)",
        ),
    ] = None,
    workers: Annotated[int, typer.Option(help="number of processes (0 = number of cores)")] = 0,
) -> None:
    """Find duplicate images: exact, re-encoded, resized or slightly cropped copies.

    The first image of each set of duplicates is not listed, so the list can be passed to simfle shards remove --list.
    """
    from shards.dedup.duplicates import find_duplicates as find
    from shards.io.atomic import write_atomic
    from simfle.runtime.build_meter import ProgressMeter

    with ProgressMeter() as meter:
        lines = find(folder, against, tuple(split or ()), distance, workers or len(os.sched_getaffinity(0)), meter)
    path = keys_file or default_output_beside(folder, DUPLICATES)
    write_atomic(path, "".join(json.dumps(line) + "\n" for line in lines).encode())
    where = f"in {against}" if against else "before it"
    if not lines:
        echo(f"no image of {folder} has a duplicate {where}")
        return
    console = Console(highlight=False, soft_wrap=True)
    console.print(_table(lines, f"images of {folder} with a duplicate {where}"))
    echo(f"{len(lines)} images, listed in {path}")
    remove = shell_line("simfle", "shards", "remove", folder, "--list", path)
    if against is None or against.resolve() == folder.resolve():
        echo(f"next: {remove} --reason duplicates")
    else:
        echo(f"next: review them, then run {remove}, or build with --exclude")


def _table(lines: list[dict[str, Any]], title: str) -> Table:
    counts: dict[tuple[str, str], Counter[str]] = {}
    for line in lines:
        row = counts.setdefault((line["split"], line["of_split"]), Counter())
        row[line["kind"]] += 1
        row["label"] += line.get("label") != line.get("of_label")
        row["group"] += line.get("group") != line.get("of_group")
    table = Table(title=escape(title), title_justify="left")
    for name in ("split", "duplicate in split"):
        table.add_column(name)
    for name in ("exact", "near", "of another label", "of another person"):
        table.add_column(name, justify="right")
    for (split, other), row in sorted(counts.items()):
        table.add_row(escape(split), escape(other), *(str(row[name]) for name in ("exact", "near", "label", "group")))
    return table


main = command(find_duplicates)
