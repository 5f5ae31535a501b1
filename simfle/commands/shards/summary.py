"""`simfle shards inspect`: summarize a folder of shards in numbers and as a contact sheet."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from simfle.commands.app import command
from simfle.commands.shards.output import SHEET, default_output_beside, local
from simfle.runtime.console import Console

if TYPE_CHECKING:
    from shards.edit.summary import ShardSummary

BAR = 30  # characters of the longest bar
MOST_LABELS = 40  # rows of the histogram


def inspect_shards(
    folder: Annotated[Path, typer.Argument(metavar="SHARDS", parser=local, help="folder with a manifest.json")],
    contact_sheet: Annotated[
        Path | None,
        typer.Option(help="PNG of sample faces with their labels (default: SHARDS.png beside the folder)"),
    ] = None,
    samples: Annotated[int, typer.Option(help="number of faces on the sheet (0 = no sheet)")] = 64,
    side: Annotated[int, typer.Option(help="side of each face in pixels")] = 112,
    split: Annotated[list[str] | None, typer.Option(help="only this split (repeatable)")] = None,
    seed: Annotated[int, typer.Option(help="random seed; another one selects other faces")] = 0,
    duplicates: Annotated[bool, typer.Option("--duplicates", help="also count duplicates; decodes all images")] = False,
    workers: Annotated[int, typer.Option(help="number of processes for --duplicates (0 = number of cores)")] = 0,
) -> None:
    """Print the label histogram, sizes, splits and people of shards, and write a contact sheet."""
    from shards.dedup.duplicates import find_duplicates
    from shards.dedup.perceptual_hash import NEAR
    from shards.edit.summary import draw_contact_sheet, summarize
    from simfle.errors import UserError
    from simfle.runtime.build_meter import ProgressMeter

    if not 16 <= side <= 1024:
        raise UserError(f"--side={side}: out of range. Fix: choose 16 to 1024.")
    console = Console(highlight=False, soft_wrap=True)
    with ProgressMeter() as meter:
        looked = summarize(folder, tuple(split or ()), samples, seed, meter)
    for line in _lines(folder, looked):
        console.print(line, markup=False)
    console.print(_histogram(looked))
    if duplicates:
        with ProgressMeter() as meter:
            cores = workers or len(os.sched_getaffinity(0))
            lines = find_duplicates(folder, None, tuple(split or ()), NEAR, cores, meter)
        exact = sum(line["kind"] == "exact" for line in lines)
        console.print(f"duplicates: {exact} exact, {len(lines) - exact} near; list them with simfle shards duplicates")
    if samples:
        path = contact_sheet or default_output_beside(folder, SHEET)
        try:
            draw_contact_sheet(folder, looked, side).save(path, "PNG")
        except OSError as error:
            raise UserError(
                f"--contact-sheet={path}: cannot be written: {error.strerror or error}. Fix: choose another file."
            ) from None
        console.print(f"sheet: {path}, {len(looked.sheet)} faces; it contains personal data", markup=False)


def _lines(folder: Path, looked: "ShardSummary") -> list[str]:
    """Return a few lines with corpus, terms, counts and sizes."""
    import numpy as np

    manifest = looked.manifest
    rejected = ", ".join(f"{count} {reason}" for reason, count in manifest.rejected.items())
    lines = [f"{folder}: {manifest.corpus}, {manifest.entries} entries listed, rejected: {rejected or 'none'}"]
    if manifest.terms:
        lines.append(f"terms of use: {manifest.terms}")
    size = sum(shard.bytes for shard in manifest.shards) / 1e6
    lines.append(f"{manifest.samples} samples in {len(manifest.shards)} shards, {size:.1f} MB")
    for name, values in (("width", looked.sides[:, 0]), ("height", looked.sides[:, 1]), ("bytes", looked.bytes)):
        known = values[values > 0]
        if len(known):
            low, middle, high = np.percentile(known, (0, 50, 100), method="nearest")
            lines.append(f"{name}: {low} to {high}, median {middle}")
    if looked.people:
        lines.append("people: " + ", ".join(f"{split} {count}" for split, count in looked.people.items()))
    return lines


def _histogram(looked: "ShardSummary") -> Table:
    splits = list(dict.fromkeys(split for split, _ in looked.counts))
    sums = {label: sum(looked.counts[split, label] for split in splits) for _, label in looked.counts}
    names = sorted(
        sums, key=lambda label: looked.manifest.labels.index(label) if label in looked.manifest.labels else 1e9
    )
    table = Table(title="samples", title_justify="left")
    table.add_column("label")
    for split in splits:
        table.add_column(escape(split), justify="right")
    table.add_column("")
    for label in names[:MOST_LABELS]:
        bar = "\u2588" * max(1, round(BAR * sums[label] / max(sums.values())))
        table.add_row(escape(label) or "(unlabeled)", *(str(looked.counts[split, label]) for split in splits), bar)
    if len(names) > MOST_LABELS:
        table.add_row(f"({len(names) - MOST_LABELS} more)", *("..." for _ in splits), "")
    return table


main = command(inspect_shards)
