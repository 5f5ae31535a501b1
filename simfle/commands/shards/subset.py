"""`simfle shards subset`: copy a fraction of the samples of shards."""

from pathlib import Path
from typing import Annotated

import typer

from simfle.commands.app import command
from simfle.commands.shards.output import local


def subset_shards(
    folder: Annotated[Path, typer.Argument(metavar="SHARDS", parser=local, help="folder of shards to read")],
    out: Annotated[Path, typer.Argument(metavar="OUT", parser=local, help="folder of shards to create")],
    fraction: Annotated[float, typer.Option(help="fraction to copy, in (0, 1], such as 0.01 or 0.1")],
    stratify_by: Annotated[
        str,
        typer.Option(help="label: equal fractions of each label; sample: of all samples; group: whole people"),
    ] = "label",
    split: Annotated[
        list[str] | None,
        typer.Option(help="copy a fraction of this split only (repeatable) and the others completely (default: all)"),
    ] = None,
    seed: Annotated[int, typer.Option(help="random seed; another one selects other samples")] = 0,
    shard_samples: Annotated[int, typer.Option(help="maximum number of samples per shard")] = 2048,
) -> None:
    """Copy a fraction of the samples, byte for byte. With the same seed, 10 percent contain the samples of 1
    percent."""
    from shards.edit.subset import subset
    from simfle.commands.shards.output import show_made
    from simfle.runtime.build_meter import ProgressMeter

    with ProgressMeter() as meter:
        made = subset(folder, out, fraction, stratify_by, tuple(split or ()), seed, shard_samples, meter)
    show_made(out, made)


main = command(subset_shards)
