"""Export to ONNX: images to features, normalization included, checked against torch with onnxruntime."""

# B batch, S side of an image, C features
import logging
import warnings
from pathlib import Path

import torch
from torch import Tensor

from shards.io.atomic import replacing
from simfle.errors import UserError
from simfle.eval.backbones.load import LoadedBackbone

NAME = "backbone.onnx"
TOLERANCE = 1e-3  # maximum difference of a feature, relative to the largest feature


def export_onnx(backbone: LoadedBackbone, path: Path) -> float:
    """Write `path`: input `images` [B, 3, S, S] uint8 RGB, output `features` [B, C] float32.

    B is dynamic, S is the card's size. Returns the maximum difference between onnxruntime's and torch's features,
    relative to the largest feature, over batches of 1 and of 3 random images.

    Raises:
        UserError: the extra is not installed, the network cannot be exported, or the difference exceeds TOLERANCE.
    """
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401 - required by torch's exporter
    except ImportError as error:
        raise UserError(f"export: {error.name} is not installed. Fix: pip install 'simfle[onnx]'.") from None
    side = backbone.card.size
    with replacing(path) as file:
        partial = Path(file.name)
        _quietly_export(backbone, partial, side)
        onnx.checker.check_model(str(partial), full_check=True)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(str(partial), options, providers=["CPUExecutionProvider"])
        difference = max(_difference(backbone, session, _images(count, side)) for count in (1, 3))
        if not difference <= TOLERANCE:  # also true for NaN
            raise UserError(
                f"export: the ONNX features of {backbone.card.name} differ from torch's by {difference:.1e} of the "
                f"largest one, more than {TOLERANCE}. Fix: use another format."
            )
    return difference


def _quietly_export(backbone: LoadedBackbone, path: Path, side: int) -> None:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                backbone.module.cpu(),
                (_images(2, side),),
                input_names=["images"],
                output_names=["features"],
                dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
                dynamo=True,
                verbose=False,
            )
    except (RuntimeError, torch.onnx.OnnxExporterError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"export: torch cannot export {backbone.card.name} to ONNX: {reason}. Fix: use another format."
        ) from None
    if program is None:
        raise UserError(f"export: torch wrote no ONNX file for {backbone.card.name}. Fix: use another format.")
    program.save(str(path))


def _images(count: int, side: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)


def _difference(backbone: LoadedBackbone, session: object, images: Tensor) -> float:
    with torch.no_grad():
        wanted = backbone.module(images)
    (found,) = session.run(None, {"images": images.numpy()})  # type: ignore[attr-defined]
    return float((torch.from_numpy(found) - wanted).abs().max() / wanted.abs().max())
