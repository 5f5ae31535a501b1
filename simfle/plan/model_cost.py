"""Count parameters and operations of the configured network, on the real module without memory or computation."""

# B micro-batch
import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from simfle.batch import Batch
from simfle.config.schema import PretrainConfig, ViewsConfig
from simfle.models.registry import build_method
from simfle.optim import STATES

CONVOLUTIONS, PRODUCTS, REST = "convolutions", "matrix products", "norms and elementwise"
MATRICES = ("mm", "linear", "attention", "einsum", "matmul")  # parts of the names of matrix products
NO_KERNEL = ("empty", "_unsafe_view")  # in the name of an operation that only allocates, or only changes a shape


@dataclass(frozen=True)
class LinearCost:
    """A quantity that is linear in the micro-batch."""

    fixed: float
    each: float

    def __call__(self, batch: int) -> float:
        return self.fixed + self.each * batch


@dataclass(frozen=True)
class ModelCost:
    """Cost of one process's network. Parameters are counted in numbers, buffers in bytes.

    trained: parameters updated by the optimizer; narrow, narrow_trained: all and trained parameters that DeepSpeed
    sends in bf16 under autocast; norms: BatchNorm passes of a forward pass; operations: launches per micro-batch.
    conv, matmul: floating-point operations, forward and backward; activations: bytes kept for backward; moved: bytes
    read and written by each kind of operation. All of these are for B images.
    """

    parameters: int
    trained: int
    narrow: int
    narrow_trained: int
    buffers: int
    optimizer_tensors: int
    norms: int
    operations: int
    conv: LinearCost
    matmul: LinearCost
    activations: LinearCost
    moved: dict[str, LinearCost] = field(default_factory=dict)


def measure_cost(config: PretrainConfig) -> ModelCost:
    """Build the method of `config` without memory, run a forward and backward pass of 2 and of 3 images, and count.

    The network is not compiled: the counts are those of an eager step.

    Raises:
        UserError: If the model cannot be built.
    """
    with torch.device("meta"):
        model = build_method(replace(config.model, compile="false"), config.views).train()
    parameters = list(model.parameters())
    typical = [module for module in model.modules() if type(module) in (nn.Linear, nn.Conv2d)]
    narrow = {id(parameter): parameter for module in typical for parameter in module.parameters(recurse=False)}
    if config.train.precision != "bf16":
        narrow = {}
    saved = model.state_dict(keep_vars=True)
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu")
        low, high = (_step(model, config.views, config.train.precision, count) for count in (2, 3))
    lines = {name: _line(low[name], high[name]) for name in ("conv", "matmul", "activations")}
    return ModelCost(
        parameters=sum(parameter.numel() for parameter in parameters),
        trained=sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        narrow=sum(parameter.numel() for parameter in narrow.values()),
        narrow_trained=sum(parameter.numel() for parameter in narrow.values() if parameter.requires_grad),
        buffers=sum(buffer.nbytes for name, buffer in model.named_buffers() if name in saved),
        optimizer_tensors=len(STATES[config.optim.name]),
        norms=low["norms"],
        operations=low["operations"],
        **lines,
        moved={kind: _line(low[kind], high[kind]) for kind in (CONVOLUTIONS, PRODUCTS, REST)},
    )


def _line(at2: float, at3: float) -> LinearCost:
    return LinearCost(at2 - 2 * (at3 - at2), at3 - at2)


def launches_kernel(func: Any) -> bool:
    """Return whether a dispatched operation starts a kernel. Views, allocations and queries (prim::device) do not."""
    name = func.name()
    return name.startswith("aten::") and not func.is_view and not any(word in name for word in NO_KERNEL)


class _Operations(TorchDispatchMode):
    """Count launched operations, BatchNorms, and the bytes that kernels read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.launched = self.norms = 0
        self.moved = dict.fromkeys((CONVOLUTIONS, PRODUCTS, REST), 0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name()
        self.norms += "batch_norm" in name and "backward" not in name
        result = func(*args, **(kwargs or {}))
        if launches_kernel(func):
            self.launched += 1
            matrices = any(word in name for word in MATRICES)
            kind = CONVOLUTIONS if "convolution" in name else PRODUCTS if matrices else REST
            read = args[1:] if name == "aten::copy_" else args  # its first operand is only written
            self.moved[kind] += sum(each.nbytes for each in tree_leaves((read, kwargs, result)) if _is_tensor(each))
        return result


def convolution_gradients(
    grad_output: Any, images: Any, weight: Any, *options: Any, out_shape: Any = None, **_: Any
) -> int:
    """Count the operations of a convolution's backward pass: those of the forward pass for each gradient asked for.

    torch's own count ignores groups, so that the gradients of a depthwise convolution of C channels count C times.

    Args:
        grad_output: shape of the output.
        images: shape of the input.
        weight: shape of the weight.
        options: bias sizes, stride, padding, dilation, transposed, output padding, groups, output mask.
        out_shape: shapes of the gradients, not used.
    """
    places = images if options[4] else grad_output  # each reads the whole weight
    forward = 2 * places[0] * math.prod(places[2:]) * math.prod(weight)
    return forward * sum(options[7][:2])


GRADIENTS = {torch.ops.aten.convolution_backward: convolution_gradients}


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


def _step(model: nn.Module, views: ViewsConfig, precision: str, count: int) -> dict[str, int]:
    """Run one forward and backward pass of `count` images on tensors with shapes and types, but without memory."""
    own = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}
    kept = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage  # a reference, so that its address is not reused
        return tensor

    operations, flops = _Operations(), FlopCounterMode(display=False, custom_mapping=GRADIENTS)
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")
    with flops, operations, hooks:
        with autocast:
            losses = model(_images(views, count))
        activations = sum(storage.nbytes() for storage in kept.values())
        losses["total"].backward()
    by_operation = flops.get_flop_counts()["Global"]
    total = sum(by_operation.values())
    conv = sum(number for operation, number in by_operation.items() if "convolution" in str(operation))
    model.zero_grad(set_to_none=True)
    return {
        "conv": conv,
        "matmul": total - conv,
        "activations": activations,
        "norms": operations.norms,
        "operations": operations.launched,
        **operations.moved,
    }


def _images(views: ViewsConfig, count: int) -> Batch:
    sides = (views.size, views.size, views.face_size)
    view1, view2, face = (
        torch.empty(count, side, side, 3, dtype=torch.uint8).permute(0, 3, 1, 2) for side in sides
    )  # channels_last, like the loader's images
    ids, draw = torch.empty(count, dtype=torch.int64), torch.empty(count, dtype=torch.float64)
    return Batch(view1, view2, face, ids, draw)
