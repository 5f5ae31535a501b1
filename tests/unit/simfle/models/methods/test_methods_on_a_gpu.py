"""Every method's step as a GPU would be given it: shapes, types and devices, without a GPU and without its memory."""

# Fake tensors refuse operands on different devices, and a value that the host would have to wait for (.item()).
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from helpers.tiny_methods import NAMES, VIEWS, batch, config
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from simfle.batch import Batch
from simfle.config.schema import ModelConfig
from simfle.models.base import scaled
from simfle.models.registry import build_method
from simfle.plan.model_cost import launches_kernel
from simfle.train.checkpointing.state_dict import copy_tensors

pytestmark = pytest.mark.slow

CUDA = torch.device("cuda:0")
# Kernels of forward and EMA, counted, and up to a tenth more. (Backward needs a driver: autograd has a
# thread for each GPU.)
BUDGET = {
    "simfle": 730,
    "byol": 430,
    "simsiam": 250,
    "simclr": 195,
    "moco": 325,
    "mocov3": 460,
    "swav": 245,
    "vicreg": 235,
    "mae": 320,
    "dino": 455,
    "care": 735,
    "fra": 910,
}


@contextmanager
def autocast() -> Iterator[None]:
    """bf16 on CUDA: torch.autocast turns itself off where there is no GPU."""
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    torch.set_autocast_enabled("cuda", True)
    torch.autocast_increment_nesting()
    try:
        yield
    finally:
        if not torch.autocast_decrement_nesting():
            torch.clear_autocast_cache()
        torch.set_autocast_enabled("cuda", False)


class Launches(TorchDispatchMode):
    """Counts operations, and keeps the devices of their results."""

    def __init__(self) -> None:
        super().__init__()
        self.count, self.devices = 0, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += launches_kernel(func)
        result = func(*args, **(kwargs or {}))
        for each in result if isinstance(result, tuple | list) else (result,):
            if isinstance(each, torch.Tensor):
                self.devices.add(each.device)
        return result


def step(model: ModelConfig) -> tuple[dict[str, torch.Tensor], Launches]:
    with torch.device("meta"):
        method = build_method(model, VIEWS).train()
    with FakeTensorMode(allow_non_fake_inputs=True):
        method.to_empty(device=CUDA)
        images = [torch.empty(8, 32, 32, 3, dtype=torch.uint8, device=CUDA).permute(0, 3, 1, 2) for _ in range(3)]
        draws = torch.empty(8, dtype=torch.float64, device=CUDA)
        given = Batch(*images, torch.empty(8, dtype=torch.int64, device=CUDA), draws)
        with Launches() as launches:
            with autocast():
                losses = method(given)
            method.on_step_end(0.5)
    return losses, launches


@pytest.mark.parametrize("name", NAMES)
def test_a_step_stays_on_the_gpu(name: str) -> None:
    losses, launches = step(config(name))
    assert {value.device for value in losses.values()} == {CUDA}
    assert launches.devices == {CUDA}
    assert losses["total"].dtype == torch.float32
    assert launches.count <= BUDGET[name]


def test_the_variants_of_simfle_stay_on_the_gpu() -> None:
    attending = replace(config("simfle").facemae, cross_attention=True, masking="random")
    for changes in ({"distillation": "predict"}, {"grouping_init": "reference"}, {"facemae": attending}):
        assert step(config("simfle", **changes))[1].devices == {CUDA}


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "convnext_atto"])
def test_other_backbones_stay_on_the_gpu(name: str) -> None:
    losses, launches = step(config("simfle", backbone=name))
    assert launches.devices == {CUDA}
    assert losses["total"].dtype == torch.float32


def test_dino_with_a_warm_up_and_frozen_prototypes_stays_on_the_gpu() -> None:
    warm = replace(config("dino").dino, warmup_fraction=0.3, frozen_fraction=0.1)
    assert step(config("dino", dino=warm))[1].devices == {CUDA}


def test_one_pass_normalises_as_the_plain_formula() -> None:
    model, images = build_method(config("byol"), VIEWS), batch().view1
    plain = model.normalize(images)
    once = scaled(images, model.scale, model.shift, torch.float32)
    assert torch.allclose(once, plain, atol=1e-6)
    assert once.is_contiguous(memory_format=torch.channels_last)
    narrow = scaled(images, model.scale, model.shift, torch.bfloat16)
    assert torch.equal(narrow, once.bfloat16())


def test_tensors_of_several_types_are_copied() -> None:
    tensors = [torch.rand(3), torch.arange(2), torch.rand(()), torch.tensor(7)]
    into = [torch.zeros_like(each) for each in tensors]
    copy_tensors(into, tensors)
    assert all(map(torch.equal, into, tensors))
