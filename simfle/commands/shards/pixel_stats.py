"""`simfle shards statistics`: compute pixel normalization for a corpus."""

from pathlib import Path
from typing import Annotated

import typer

from simfle.commands.app import command, echo
from simfle.commands.shards.output import local


def shards_statistics(
    folder: Annotated[Path, typer.Argument(metavar="SHARDS", parser=local, help="folder of shards")],
    split: Annotated[
        list[str] | None, typer.Option(help="split of the shards (repeatable; default: train if it exists)")
    ] = None,
    images: Annotated[int, typer.Option(help="maximum number of images, taken evenly", min=1)] = 20_000,
) -> None:
    """Print mean and standard deviation of the pixels as overrides for `simfle pretrain`."""
    from shards.edit.pixel_stats import pixel_stats
    from shards.reading.dataset import ShardDataset

    every = ShardDataset(folder)
    chosen = split or (["train"] if "train" in every.manifest.splits else [])
    found = pixel_stats(ShardDataset(folder, chosen), images)
    echo(f"# {found.images} images of {folder}, splits: {', '.join(chosen) or 'all'}", err=True)
    for name in ("mean", "std"):
        echo(f"model.{name}=[{','.join(f'{value:.4f}' for value in getattr(found, name))}]")


main = command(shards_statistics)
