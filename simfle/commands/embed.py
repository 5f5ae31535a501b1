"""`simfle embed`: write features of images or shards to a file."""

from pathlib import Path
from typing import Annotated

import typer

from simfle.commands.app import command, echo


def embed(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="folder of shards or of images")],
    backbone: Annotated[
        str, typer.Argument(metavar="BACKBONE", help="run folder, backbone.safetensors, or a name such as timm:NAME")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="file to write: .npz, .parquet or .csv")],
    split: Annotated[list[str] | None, typer.Option(help="split of the shards (repeatable; default: all)")] = None,
    batch: Annotated[int, typer.Option(help="images per forward pass", min=1)] = 64,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, or one GPU such as cuda:1")] = "auto",
) -> None:
    """Write path, key, split, label, person and features [n, C] of all images; unknown values are empty.

    For example: simfle embed shards/mine runs/mine features.npz
    """
    from simfle.api.embedding import embed as run
    from simfle.commands.logs import show_logs

    show_logs()
    found = run(data, backbone, out, splits=split or (), batch=batch, device=device)
    count, features = found["features"].shape
    echo(f"{out}: {count} images, {features} features each; {', '.join(found)}")


main = command(embed)
