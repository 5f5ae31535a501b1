"""`simfle shards remove`: remove samples or a person from finished shards."""

from pathlib import Path
from typing import Annotated

import typer

from simfle.commands.app import command, echo
from simfle.commands.shards.output import DUPLICATES, SHEET, default_output_beside, local
from simfle.config.overrides import shell_line

# Files that may hold samples: betons, tars that are not in the manifest, remains of a killed process, and lists of
# img2dataset.
HOLDING = (".beton", ".tar", ".idx", ".tmp", ".parquet")


def remove_samples(
    folder: Annotated[
        Path, typer.Argument(metavar="SHARDS", parser=local, help="folder of shards, rewritten in place")
    ],
    key: Annotated[list[str] | None, typer.Option(help="key of a sample (repeatable)")] = None,
    person: Annotated[
        str | None, typer.Option(help="remove all samples of this person (the group in their json)")
    ] = None,
    keys_file: Annotated[
        Path | None, typer.Option("--list", help="keys, one per line, or JSON Lines of simfle shards duplicates")
    ] = None,
    reason: Annotated[str, typer.Option(help="reason for the record; do not name the person here")] = "",
) -> None:
    """Rewrite shards without the given samples. If interrupted, rerun the command to complete it.

    removed.jsonl records date, number, reason and hashes of the keys, but nothing from the images. Sample ids shift, so
    runs on these shards can no longer be resumed.
    """
    from shards.edit.remove import REMOVAL_LOG, read_list
    from shards.edit.remove import remove_samples as remove
    from shards.format.manifest import REJECTED
    from simfle.errors import UserError

    keys = [*(key or ()), *(read_list(keys_file) if keys_file else ())]
    if not keys and person is None:
        if keys_file is None:
            raise UserError("no samples are selected. Fix: pass --key, --person or --list.")
        echo(f"{keys_file} is empty")
        return
    done = remove(folder, keys, person, reason)
    if done.resumed:
        echo(f"an interrupted removal was {done.resumed} first")
    if done.already:
        echo(f"{done.already} of these samples were already removed")
    if done.anonymized_rejects:
        echo(f"removed their names from {done.anonymized_rejects} lines of {folder / REJECTED}")
    if done.samples or done.resumed or done.anonymized_rejects:
        for path in _others(folder):
            echo(f"delete {path}: it may contain removed samples")
    if not done.samples:
        return
    echo(f"{done.samples} samples removed, {done.shards} shards rewritten; see {folder / REMOVAL_LOG}")
    echo("sample ids have shifted: runs on these shards can no longer be resumed; export them, or start new runs")
    echo("not changed: copies (from subset, split or merge), caches, betons, images in reports, weights of runs")
    echo(f"next: {shell_line('simfle', 'shards', 'verify', folder)}")


def _others(folder: Path) -> list[Path]:
    """Return existing outputs of other tools, in or beside the folder, that removal does not rewrite."""
    from shards.format.manifest import index_name, read_manifest

    known = {name for info in read_manifest(folder).shards for name in (info.file, index_name(info.file))}
    inside = [path for path in sorted(folder.iterdir()) if path.name not in known and path.name.endswith(HOLDING)]
    unfinished = folder.with_name(f"{folder.name}.partial")
    return [
        path
        for path in (
            *inside,
            default_output_beside(folder, SHEET),
            default_output_beside(folder, DUPLICATES),
            unfinished,
        )
        if path.exists()
    ]


main = command(remove_samples)
