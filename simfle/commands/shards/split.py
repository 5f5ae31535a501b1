"""`simfle shards split`: assign the samples of shards to splits."""

from pathlib import Path
from typing import Annotated

import typer

from simfle.commands.app import command
from simfle.commands.shards.output import local


def split_shards(
    folder: Annotated[Path, typer.Argument(metavar="SHARDS", parser=local, help="folder of shards to split")],
    out: Annotated[Path, typer.Argument(metavar="OUT", parser=local, help="folder of shards to create")],
    splits: Annotated[
        str, typer.Option(help="split names and fractions that sum to 1, such as train=0.8,val=0.1,test=0.1")
    ],
    stratify_by: Annotated[
        str,
        typer.Option(help="group: each person in one split; label: equal fractions of each label; sample: by sample"),
    ] = "group",
    split: Annotated[
        list[str] | None, typer.Option(help="reassign only this split (repeatable), keep the others (default: all)")
    ] = None,
    seed: Annotated[int, typer.Option(help="random seed; another one gives another assignment")] = 0,
    shard_samples: Annotated[int, typer.Option(help="maximum number of samples per shard")] = 2048,
) -> None:
    """Assign samples to named splits. Images are copied byte for byte; only the split in their json changes."""
    from shards.edit.subset import split as divide
    from simfle.commands.shards.output import show_made
    from simfle.runtime.build_meter import ProgressMeter

    with ProgressMeter() as meter:
        made = divide(folder, out, _shares(splits), stratify_by, tuple(split or ()), seed, shard_samples, meter)
    show_made(out, made)


def _shares(text: str) -> dict[str, float]:
    from simfle.errors import UserError

    shares: dict[str, float] = {}
    for item in text.split(","):
        name, _, share = item.partition("=")
        try:
            shares[name.strip()] = float(share)
        except ValueError:
            raise UserError(
                f"--splits={text!r}: {item!r} is not NAME=FRACTION. Fix: write it as train=0.8,val=0.2."
            ) from None
    return shares


main = command(split_shards)
