"""`tools/export_backbone.py`: from a run to backbone files that timm and torchvision load."""

from pathlib import Path
from typing import Annotated

import typer

from simfle.commands.app import command


def export_backbone(
    run: Annotated[Path, typer.Argument(help="a run's folder")],
    out: Annotated[Path | None, typer.Option(help="where to; default RUN/export")] = None,
) -> None:
    """Write the online and the target backbone of a run's newest complete checkpoint.

    Each becomes backbone.safetensors (timm's key names; for ResNets torchvision's, without fc) and backbone.json.
    """
    from simfle.eval.export import export_backbones

    for network, path in export_backbones(run, out).items():
        typer.echo(f"{network}: {path}")


main = command(export_backbone)
