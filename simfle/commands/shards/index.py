"""`simfle shards index`: write a manifest for tars from webdataset or img2dataset."""

import os
from pathlib import Path
from typing import Annotated

import typer

from simfle.commands.app import command, echo
from simfle.commands.shards.output import local
from simfle.config.overrides import shell_line


def index_shards(
    folder: Annotated[Path, typer.Argument(metavar="DIR", parser=local, help="folder of .tar files")],
    terms: Annotated[str, typer.Option(help="terms of use of the images, kept in the manifest")] = "",
    workers: Annotated[int, typer.Option(help="number of processes (0 = number of cores)")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace existing indexes")] = False,
) -> None:
    """Index tars written by webdataset's ShardWriter or img2dataset. The tars are not changed.

    data.shards=[DIR] also reads tars without an index, but scans every tar at each start. No image is decoded; samples
    without a JPEG, PNG or WebP are skipped, counted and listed in rejected.jsonl. To check every image and apply its
    EXIF rotation, build shards from the folder: simfle shards build webdataset.
    """
    from shards.format.external_tars import index_folder, list_tars
    from simfle.runtime.build_meter import ProgressMeter

    total = len(list_tars(folder))
    cores = len(os.sched_getaffinity(0))
    with ProgressMeter() as meter:
        manifest = index_folder(
            folder, terms, workers if workers > 0 else cores, overwrite, lambda done: meter("indexing", done, total)
        )
    counts = ", ".join(f"{count} {reason}" for reason, count in manifest.rejected.items())
    echo(
        f"{folder}: {len(manifest.shards)} tars, {manifest.entries} samples = {manifest.samples} usable + "
        f"{sum(manifest.rejected.values())} skipped{f' ({counts}): see {folder}/rejected.jsonl' if counts else ''}"
    )
    echo(f"next: {shell_line('simfle', 'shards', 'verify', folder)}")


main = command(index_shards)
