"""`simfle export`: export a run's backbone for timm, torchvision, onnxruntime and model hubs."""

from pathlib import Path
from typing import Annotated

import typer

from simfle.commands.app import command, echo
from simfle.errors import UserError

FORMATS = ("timm", "onnx", "huggingface")
ENCODERS = ("online", "target", "both")


def export_backbone(
    run: Annotated[Path, typer.Argument(help="run folder")],
    out: Annotated[Path | None, typer.Option(help="output folder (default: RUN/export)")] = None,
    format: Annotated[
        list[str] | None, typer.Option(help="timm (always written), onnx, huggingface (repeatable)")
    ] = None,
    encoder: Annotated[str, typer.Option(help="network for onnx and huggingface: online, target or both")] = "online",
) -> None:
    """Export the online and the target backbone of a run's newest complete checkpoint.

    timm: backbone.safetensors (timm's parameter names; for ResNets torchvision's, without fc) and backbone.json.
    onnx: backbone.onnx, uint8 images of any size to features, checked against torch with onnxruntime.
    huggingface: a folder for timm and transformers with config.json, model.safetensors and a model card.
    """
    wanted = format or []
    for name in wanted:
        if name not in FORMATS:
            raise UserError(f"--format={name}: unknown. Fix: choose one of {', '.join(FORMATS)}.")
    if encoder not in ENCODERS:
        raise UserError(f"--encoder={encoder}: unknown. Fix: choose one of {', '.join(ENCODERS)}.")
    from simfle.export.timm import export_backbones

    for name, path in export_backbones(run, out).items():
        echo(f"{name}: {path}")
        if encoder in (name, "both"):
            _more(run, path, wanted)


def _more(run: Path, path: Path, wanted: list[str]) -> None:
    """Write the other formats next to the weights file."""
    from simfle.eval.backbones.load import load_backbone

    if "onnx" in wanted:
        from simfle.export.onnx import NAME, export_onnx

        difference = export_onnx(load_backbone(path), path.with_name(NAME))
        echo(f"onnx: {path.with_name(NAME)} (maximum difference from torch: {difference:.1e} of the largest feature)")
    if "huggingface" in wanted:
        from simfle.export import huggingface

        folder = path.with_name(huggingface.NAME)
        echo(f"huggingface: {huggingface.export_huggingface(run, load_backbone(path), folder)}")


main = command(export_backbone)
