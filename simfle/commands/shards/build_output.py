"""Final report of a build."""

from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from shards.printable import one_line
from simfle.commands.next_steps import show_pretraining
from simfle.config.overrides import shell_line
from simfle.runtime.console import Console

if TYPE_CHECKING:
    from shards.build.builder import BuildReport

MOST_LABELS = 20  # rows of the table


def show(out: Path | str, report: "BuildReport", rate: float) -> None:
    """Print the result: samples per label and split, rejects by reason, notes, output folder and next commands."""
    console = Console(highlight=False, soft_wrap=True)
    manifest = report.manifest
    if report.up_to_date:
        console.print(
            f"{out} is already complete: {manifest.samples} samples of the same list and options.", markup=False
        )
        # The source files are not read again.
        if rejected := sum(manifest.rejected.values()) - manifest.rejected.get("removed", 0):
            console.print(
                f"rejected when it was built: {rejected}, see {out}/rejected.jsonl; if files have been fixed "
                "or replaced since then, delete that folder and rerun the command",
                markup=False,
            )
        _show_notes(console, report)
        show_pretraining(out, manifest)
        return
    console.print(_table(report))
    counts = ", ".join(f"{count} {reason}" for reason, count in manifest.rejected.items())
    console.print(
        f"{manifest.entries} entries = {_written(report)} "
        f"+ {sum(manifest.rejected.values())} rejected{f' ({counts}): see {out}/rejected.jsonl' if counts else ''}",
        markup=False,
    )
    if report.resumed:
        console.print(f"{report.resumed} shards were kept from an earlier run.")
    _show_notes(console, report)
    size = sum(shard.bytes for shard in manifest.shards) / 1e6
    console.print(f"{out}: {len(manifest.shards)} shards, {size:.1f} MB, {rate:.0f} images/s", markup=False)
    show_pretraining(out, manifest, shell_line("simfle", "shards", "verify", out))


def _show_notes(console: Console, report: "BuildReport") -> None:
    for note in report.notes:
        console.print(one_line(f"note: {note}"), markup=False)


def _written(report: "BuildReport") -> str:
    """Describe the written entries, and the number of samples if a photo gives several."""
    manifest = report.manifest
    first = manifest.samples - manifest.extra_samples
    if manifest.extra_samples:
        return f"{first} written as {manifest.samples} samples ({report.bytes_kept} kept as is)"
    return f"{first} written ({report.bytes_kept} kept as is)"


def _table(report: "BuildReport") -> Table:
    splits, labels = report.manifest.splits, report.manifest.labels
    table = Table(title=f"{escape(report.manifest.corpus)}: samples written", title_justify="left")
    table.add_column("label")
    for split in splits:
        table.add_column(split, justify="right")
    names = [*labels, ""] if any(report.written[split, ""] for split in splits) else list(labels)
    for name in names[:MOST_LABELS]:
        table.add_row(escape(name) or "(unlabeled)", *(str(report.written[split, name]) for split in splits))
    if len(names) > MOST_LABELS:
        table.add_row(f"({len(names) - MOST_LABELS} more)", *("..." for _ in splits))
    totals = (sum(count for (place, _), count in report.written.items() if place == split) for split in splits)
    table.add_row("all", *map(str, totals), end_section=True)
    return table
