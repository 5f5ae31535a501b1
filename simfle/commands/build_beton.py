"""`tools/build_beton.py`: a labelled split of shards as one file for FFCV, which evaluation reads when it is there."""

from pathlib import Path
from typing import Annotated

import typer

from simfle.commands.app import command, echo
from simfle.commands.shards_report import local


def build_beton(
    shards: Annotated[Path, typer.Argument(metavar="SHARDS", parser=local, help="Folder with a manifest.json.")],
    out: Annotated[
        Path | None, typer.Argument(help="The .beton; default: SHARDS/SPLIT.beton, where evaluation looks by itself.")
    ] = None,
    split: Annotated[str, typer.Option(help="Which split; only its labelled samples are taken.")] = "train",
) -> None:
    """Write the labelled samples of a split as a .beton, the JPEGs unchanged, with label, id and key of each.

    FFCV must be installed; docs/evaluation.md says how. An older file of that name is replaced.
    """
    from simfle.commands.build_report import Meter
    from simfle.errors import UserError
    from simfle.eval import beton

    path = out or shards / f"{split}.beton"
    if path.suffix != ".beton":
        raise UserError(f"OUT: {path} must end in .beton")
    if not path.parent.is_dir():
        raise UserError(f"OUT: there is no folder {path.parent}")
    with Meter() as meter:
        about = beton.build_beton(shards, path, split, lambda done, total: meter("beton", done, total))
    echo(f"{path}: {about.samples} samples of {split!r}, {len(about.classes)} classes, {about.bytes / 1e6:.1f} MB")


main = command(build_beton)
