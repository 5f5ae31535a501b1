"""tools/remove_samples.py: take samples or a person out of finished shards."""

from pathlib import Path
from typing import Annotated

import typer

from simfle.commands.app import command, echo
from simfle.commands.shards_report import DUPLICATES, SHEET, beside, local
from simfle.words import shell_line

# Of files that may hold samples: betons, tars that are not in the manifest, what a killed process left, lists of
# img2dataset.
HOLDING = (".beton", ".tar", ".idx", ".tmp", ".parquet")


def remove_samples(
    folder: Annotated[
        Path, typer.Argument(metavar="SHARDS", parser=local, help="Folder of shards, rewritten in place.")
    ],
    key: Annotated[list[str] | None, typer.Option(help="Key of a sample; may be given repeatedly.")] = None,
    person: Annotated[str | None, typer.Option(help="All samples of this person (the group in their json).")] = None,
    list_file: Annotated[
        Path | None, typer.Option("--list", help="File of keys, one a line, or JSON lines as of find_duplicates.")
    ] = None,
    reason: Annotated[str, typer.Option(help="Why, for the record; do not name the person here.")] = "",
) -> None:
    """Rewrite the shards that hold these samples without them; killed anywhere, the same command finishes.

    removed.jsonl keeps date, number, reason and hashes of the keys, nothing of the images. Sample ids shift: runs that
    were trained on these shards refuse to go on with them.
    """
    from shards.manifest import REJECTED
    from shards.remove import RECORD, read_list
    from shards.remove import remove_samples as remove
    from simfle.errors import UserError

    keys = [*(key or ()), *(read_list(list_file) if list_file else ())]
    if not keys and person is None:
        if list_file is None:
            raise UserError("nothing to remove: give --key, --person or --list")
        echo(f"{list_file} lists nothing")
        return
    done = remove(folder, keys, person, reason)
    if done.resumed:
        echo(f"a removal that had been interrupted was {done.resumed} first")
    if done.already:
        echo(f"{done.already} of what is asked for had been taken out before")
    if done.blanked:
        echo(f"{done.blanked} lines of {folder / REJECTED} named them, and no longer do")
    if done.samples or done.resumed or done.blanked:
        for path in _others(folder):
            echo(f"delete: {path}, made before, may hold what was removed")
    if not done.samples:
        return
    echo(f"{done.samples} samples removed, {done.shards} shards written anew; see {folder / RECORD}")
    echo("sample ids have shifted: a run trained on these shards refuses to go on; export it, or start a new one")
    echo("not touched: copies (by subset, split or merge, elsewhere), caches, betons, pictures, weights of runs")
    echo(f"next: {shell_line('simfle', 'shards', 'verify', folder)}")


def _others(folder: Path) -> list[Path]:
    """What other tools made of these shards, by default in the folder or beside it, and removal does not rewrite."""
    from shards.manifest import index_name, read_manifest

    known = {name for info in read_manifest(folder).shards for name in (info.file, index_name(info.file))}
    inside = [path for path in sorted(folder.iterdir()) if path.name not in known and path.name.endswith(HOLDING)]
    unfinished = folder.with_name(f"{folder.name}.partial")
    return [path for path in (*inside, beside(folder, SHEET), beside(folder, DUPLICATES), unfinished) if path.exists()]


main = command(remove_samples)
