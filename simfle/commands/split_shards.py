"""tools/split_shards.py: divide the samples of shards into splits."""

from pathlib import Path
from typing import Annotated

import typer

from simfle.commands.app import command
from simfle.commands.shards_report import local


def split_shards(
    folder: Annotated[Path, typer.Argument(metavar="SHARDS", parser=local, help="Folder of shards to divide.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", parser=local, help="Folder of shards to make.")],
    into: Annotated[str, typer.Option(help="Names and shares that sum to 1, such as train=0.8,val=0.1,test=0.1.")],
    by: Annotated[
        str, typer.Option(help="group: no person is divided; label: the same shares of each label; sample: of all.")
    ] = "group",
    split: Annotated[
        list[str] | None, typer.Option(help="Divide this split only, repeatable; others are kept. Default: all.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Another seed divides them otherwise.")] = 0,
    shard_samples: Annotated[int, typer.Option(help="Most samples in one shard.")] = 2048,
) -> None:
    """Divide samples into named splits. Images stay byte for byte; only the split in their json changes."""
    from shards.subset import split as divide
    from simfle.commands.build_report import Meter
    from simfle.commands.shards_report import show_made

    with Meter() as meter:
        made = divide(folder, out, _shares(into), by, tuple(split or ()), seed, shard_samples, meter)
    show_made(out, made)


def _shares(text: str) -> dict[str, float]:
    from simfle.errors import UserError

    shares: dict[str, float] = {}
    for item in text.split(","):
        name, _, share = item.partition("=")
        try:
            shares[name.strip()] = float(share)
        except ValueError:
            raise UserError(f"--into {text!r}: {item!r} is not NAME=SHARE; write train=0.8,val=0.2") from None
    return shares


main = command(split_shards)
