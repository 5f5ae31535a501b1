"""tools/verify_shards.py: are the shards what their manifest says?"""

import os
from typing import Annotated

import typer

from simfle.commands.app import command, echo


def verify_shards(
    folder: Annotated[str, typer.Argument(metavar="SHARDS", help="Folder with a manifest.json, or its URL.")],
    decode: Annotated[float, typer.Option(help="Share of the images to decode in full, 0 to 1.")] = 1.0,
    workers: Annotated[int, typer.Option(help="Processes; 0: as many as there are cores.")] = 0,
) -> None:
    """Check sizes, hashes, indexes, labels and images of a folder of shards. Exit code 1 if anything is wrong."""
    from shards.printable import one_line
    from shards.verify import verify
    from simfle.commands.build_report import Meter
    from simfle.errors import UserError

    cores = len(os.sched_getaffinity(0))
    with Meter() as meter:
        verdict = verify(folder, decode, workers if workers > 0 else cores, lambda done: meter("checking", done, 0))
    for note in verdict.notes:
        echo(one_line(f"note: {note}"))
    for problem in verdict.problems:
        echo(one_line(problem))
    if verdict.problems:
        raise UserError(f"{folder}: {len(verdict.problems)} problems; build these shards again, or copy them again")
    manifest = verdict.manifest
    echo(f"{folder}: all is well: {len(manifest.shards)} shards, {manifest.samples} samples, {verdict.decoded} decoded")


main = command(verify_shards)
