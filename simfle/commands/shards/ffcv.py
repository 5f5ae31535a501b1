"""`simfle shards ffcv`: write a labeled split of shards as one FFCV file, which evaluation reads if present."""

from pathlib import Path
from typing import Annotated

import typer

from simfle.commands.app import command, echo
from simfle.commands.shards.output import local


def build_beton(
    shards: Annotated[Path, typer.Argument(metavar="SHARDS", parser=local, help="folder with a manifest.json")],
    out: Annotated[
        Path | None,
        typer.Argument(help=".beton file to write (default: SHARDS/SPLIT.beton, where evaluation looks for it)"),
    ] = None,
    split: Annotated[str, typer.Option(help="split whose labeled samples are written")] = "train",
) -> None:
    """Write the labeled samples of a split as a .beton: the unchanged JPEGs with their labels, ids and keys.

    FFCV must be installed; see docs/evaluation.md. An existing file of that name is replaced.
    """
    from simfle.errors import UserError
    from simfle.eval.features import ffcv_format
    from simfle.runtime.build_meter import ProgressMeter

    path = out or shards / f"{split}.beton"
    if path.suffix != ".beton":
        raise UserError(f"OUT={path}: must end in .beton. Fix: rename it.")
    if not path.parent.is_dir():
        raise UserError(f"OUT={path}: its folder does not exist. Fix: create {path.parent}.")
    with ProgressMeter() as meter:
        about = ffcv_format.write_ffcv(shards, path, split, lambda done, total: meter("beton", done, total))
    echo(f"{path}: {about.samples} samples of {split!r}, {len(about.classes)} classes, {about.bytes / 1e6:.1f} MB")


main = command(build_beton)
