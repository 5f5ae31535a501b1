"""tools/subset_shards.py: a share of the samples of shards."""

from pathlib import Path
from typing import Annotated

import typer

from simfle.commands.app import command
from simfle.commands.shards_report import local


def subset_shards(
    folder: Annotated[Path, typer.Argument(metavar="SHARDS", parser=local, help="Folder of shards to take from.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", parser=local, help="Folder of shards to make.")],
    fraction: Annotated[float, typer.Option(help="Share to take, such as 0.01 or 0.1, in (0, 1].")],
    by: Annotated[
        str,
        typer.Option(
            help="label: the same share of each label; sample: of all samples; group: of the people, who stay whole."
        ),
    ] = "label",
    split: Annotated[
        list[str] | None,
        typer.Option(help="Take the share of this split only, repeatable; others are copied whole. Default: of all."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Another seed takes others.")] = 0,
    shard_samples: Annotated[int, typer.Option(help="Most samples in one shard.")] = 2048,
) -> None:
    """Copy a share of the samples, byte for byte. With the same seed 1 percent is contained in 10 percent."""
    from shards.subset import subset
    from simfle.commands.build_report import Meter
    from simfle.commands.shards_report import show_made

    with Meter() as meter:
        made = subset(folder, out, fraction, by, tuple(split or ()), seed, shard_samples, meter)
    show_made(out, made)


main = command(subset_shards)
