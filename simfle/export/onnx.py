"""Export a network from images of any size to features, with resize and normalization, and check it in onnxruntime."""

# B batch, H x W image, S side of the network's images, C features
import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shards.io.atomic import replacing
from simfle.errors import UserError
from simfle.eval.backbones.load import LoadedBackbone
from simfle.eval.features.resize import resize_tensor

NAME = "backbone.onnx"
TOLERANCE = 1e-3  # maximum difference of a feature, relative to the largest feature
INPUT, RESIZED, OUTPUT = "images", "resized", "features"
OPSET = 18
# `simfle.eval.features.resize.resize_tensor` as a graph: for each axis, weights [S, L] as whole numbers of 2**-22, in
# float64, which is exact. ONNX's own Resize computes them in float32 and is off by a gray level in some ties.
AXIS = """
  {axis}_length = Slice (shape, {number}, {next})
  {axis}_long = Cast <to = 11> ({axis}_length)
  {axis}_scale = Div ({axis}_long, side)
  {axis}_reach = Max ({axis}_scale, one)
  {axis}_middle = Mul (centers, {axis}_scale)
  {axis}_count = Squeeze ({axis}_length)
  {axis}_places = Range (none, {axis}_count, step)
  {axis}_pixels = Cast <to = 11> ({axis}_places)
  {axis}_centers = Add ({axis}_pixels, half)
  {axis}_far = Sub ({axis}_centers, {axis}_middle)
  {axis}_part = Div ({axis}_far, {axis}_reach)
  {axis}_distance = Abs ({axis}_part)
  {axis}_near = Sub (one, {axis}_distance)
  {axis}_raw = Max ({axis}_near, zero)
  {axis}_total = ReduceSum <keepdims = 1> ({axis}_raw, step_axis)
  {axis}_share = Div ({axis}_raw, {axis}_total)
  {axis}_fixed = Mul ({axis}_share, unit)
  {axis}_up = Add ({axis}_fixed, half)
  {axis}_whole = Cast <to = 7> ({axis}_up)
  {axis} = Cast <to = 11> ({axis}_whole)"""
ROUND = """
  {to}_sum = Add ({of}, half_unit)
  {to}_gray = Div ({to}_sum, unit)
  {to}_whole = Cast <to = 7> ({to}_gray)
  {to} = Cast <to = {type}> ({to}_whole)"""
GRAPH = """
<ir_version: {ir}, opset_import: ["" : {opset}]>
resize (uint8[{batch}, 3, height, width] images) => (uint8[{batch}, 3, {side}, {side}] resized)
<double one = {{1}}, double zero = {{0}}, double half = {{0.5}},
 double unit = {{4194304}}, double half_unit = {{2097152}},
 double side = {{{side}}}, int64[1] side_length = {{{side}}}, int64 none = {{0}}, int64 step = {{1}},
 int64[1] step_axis = {{1}}, int64[1] two = {{2}}, int64[1] three = {{3}}, int64[1] four = {{4}}> {{
  shape = Shape (images)
  {rows}
  {columns}
  columns_turned = Transpose <perm = [1, 0]> (columns)
  pixels = Cast <to = 11> (images)
  shrinks = Greater (rows_length, side_length)
  twice = Mul (columns_length, two)
  bound = Add (rows_length, side_length)
  narrow = Less (twice, bound)
  both = And (shrinks, narrow)
  rows_first = Squeeze (both)
  last = If (rows_first) <
    then_branch = rows_then_columns () => (double[b, c, h, w] from_rows) {{
      a = MatMul (rows, pixels)
      {round_a}
      from_rows = MatMul (a_rounded, columns_turned)
    }},
    else_branch = columns_then_rows () => (double[b, c, h, w] from_columns) {{
      e = MatMul (pixels, columns_turned)
      {round_e}
      from_columns = MatMul (rows, e_rounded)
    }}>
  {round_last}
}}
"""


def export_onnx(backbone: LoadedBackbone, path: Path) -> float:
    """Write `path`: input `images` [B, 3, H, W] uint8 RGB, output `features` [B, C] float32; B, H and W are dynamic.

    Return the maximum difference between onnxruntime's and torch's features, relative to the largest feature, over
    batches of 1 to 3 random images, of the network's size and of other sizes.

    Raises:
        UserError: If the extra is not installed, the network cannot be exported, or the difference exceeds TOLERANCE.
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
        model = onnx.load(str(partial))
        onnx.save(_with_resize(model, side), str(partial))
        onnx.checker.check_model(str(partial), full_check=True)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(str(partial), options, providers=["CPUExecutionProvider"])
        shapes = ((1, side, side), (3, side, side), (3, side + side // 2, side), (2, side, 2 * side))
        difference = max(_difference(backbone, session, _images(*shape)) for shape in shapes)
        if not difference <= TOLERANCE:  # this is also true for NaN
            raise UserError(
                f"export: the ONNX features of {backbone.card.name} differ from torch's by {difference:.1e} of the "
                f"largest feature, more than {TOLERANCE}. Fix: use another format."
            )
    return difference


def _quietly_export(backbone: LoadedBackbone, path: Path, side: int) -> None:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                backbone.module.cpu(),
                (_images(2, side, side),),
                input_names=[RESIZED],
                output_names=[OUTPUT],
                dynamic_shapes={INPUT: {0: torch.export.Dim("batch")}},
                opset_version=OPSET,
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


def _with_resize(model: Any, side: int) -> Any:
    """Return the network [B, 3, side, side] after a resize of [B, 3, H, W], both uint8."""
    from onnx import compose, numpy_helper, parser

    text = GRAPH.format(
        ir=model.ir_version, opset=model.opset_import[0].version, side=side,
        batch=model.graph.input[0].type.tensor_type.shape.dim[0].dim_param,
        rows=AXIS.format(axis="rows", number="two", next="three"),
        columns=AXIS.format(axis="columns", number="three", next="four"),
        round_a=ROUND.format(of="a", to="a_rounded", type=11), round_e=ROUND.format(of="e", to="e_rounded", type=11),
        round_last=ROUND.format(of="last", to=RESIZED, type=2),
    )  # fmt: skip
    resize = parser.parse_model(text)
    centers = numpy_helper.from_array(np.arange(side)[:, None] + 0.5, "centers")  # [S, 1]
    resize.graph.initializer.append(centers)
    for number, node in enumerate(resize.graph.node):
        node.name = f"resize_{number}"
    return compose.merge_models(resize, model, [(RESIZED, RESIZED)])  # refuses names that both have


def _images(count: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)


def _difference(backbone: LoadedBackbone, session: Any, images: Tensor) -> float:
    with torch.no_grad():
        wanted = backbone.module(resize_tensor(images, backbone.card.size))
    (found,) = session.run(None, {INPUT: images.numpy()})
    return float((torch.from_numpy(found) - wanted).abs().max() / wanted.abs().max())
