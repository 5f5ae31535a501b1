"""`simfle shards verify`: check shards against their manifest."""

import os
from typing import Annotated

import typer

from simfle.commands.app import command, echo


def verify_shards(
    folder: Annotated[str, typer.Argument(metavar="SHARDS", help="folder with a manifest.json, or its URL")],
    decode: Annotated[float, typer.Option(help="fraction of the images to decode completely, 0 to 1")] = 1.0,
    workers: Annotated[int, typer.Option(help="number of processes (0 = number of cores)")] = 0,
) -> None:
    """Check sizes, hashes, indexes, labels and images of a folder of shards. Exit code 1 if there is a problem."""
    from shards.edit.verify import verify
    from shards.printable import one_line
    from simfle.commands.next_steps import show_pretraining
    from simfle.errors import UserError
    from simfle.runtime.build_meter import ProgressMeter

    cores = len(os.sched_getaffinity(0))
    with ProgressMeter() as meter:
        verdict = verify(folder, decode, workers if workers > 0 else cores, lambda done: meter("checking", done, 0))
    for note in verdict.notes:
        echo(one_line(f"note: {note}"))
    for problem in verdict.problems:
        echo(one_line(problem))
    if verdict.problems:
        raise UserError(
            f"{folder}: {len(verdict.problems)} problems, listed above. Fix: rebuild these shards, or copy them again."
        )
    manifest = verdict.manifest
    echo(f"{folder}: no problems: {len(manifest.shards)} shards, {manifest.samples} samples, {verdict.decoded} decoded")
    show_pretraining(folder, manifest)


main = command(verify_shards)
