"""tools/index_shards.py: a manifest for tars that webdataset or img2dataset wrote."""

import os
from pathlib import Path
from typing import Annotated

import typer

from simfle.commands.app import command, echo
from simfle.commands.shards_report import local
from simfle.words import shell_line


def index_shards(
    folder: Annotated[Path, typer.Argument(metavar="DIR", parser=local, help="Folder of .tar files.")],
    terms: Annotated[str, typer.Option(help="Terms of use of the images, kept in the manifest.")] = "",
    workers: Annotated[int, typer.Option(help="Processes; 0: as many as there are cores.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace indexes that are there.")] = False,
) -> None:
    """Index tars that webdataset's ShardWriter or img2dataset wrote. The tars stay as they are.

    data.shards=[DIR] reads them without this too, but examines every tar at each start. No image is decoded: samples
    without a JPEG, PNG or WebP are left out, counted, and listed in rejected.jsonl. To check every image and turn it
    upright, build shards from the folder: simfle shards build webdataset.
    """
    from shards.foreign import index_folder, tars_in
    from simfle.commands.build_report import Meter

    total = len(tars_in(folder))
    cores = len(os.sched_getaffinity(0))
    with Meter() as meter:
        manifest = index_folder(
            folder, terms, workers if workers > 0 else cores, overwrite, lambda done: meter("indexing", done, total)
        )
    counts = ", ".join(f"{count} {reason}" for reason, count in manifest.rejected.items())
    echo(
        f"{folder}: {len(manifest.shards)} tars, {manifest.entries} samples = {manifest.samples} usable + "
        f"{sum(manifest.rejected.values())} left out{f' ({counts}): see {folder}/rejected.jsonl' if counts else ''}"
    )
    echo(f"next: {shell_line('simfle', 'shards', 'verify', folder)}")


main = command(index_shards)
