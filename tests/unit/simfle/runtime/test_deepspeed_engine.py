"""Host cost of a step as counts: launched kernels, called hooks."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers.tiny_methods import VIEWS, batch, config
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from simfle.bench import step
from simfle.config.schema import OptimConfig, PretrainConfig, TrainConfig
from simfle.models.registry import build_method
from simfle.optim import build_optimizer
from simfle.plan.model_cost import launches_kernel
from simfle.runtime.deepspeed_engine import init_deepspeed
from simfle.runtime.distributed import BatchLayout, World, init_distributed
from simfle.train.checkpointing.state_dict import load_optimizer

pytestmark = pytest.mark.slow

# Kernels of a whole step of the tiny BYOL: forward, backward, status, optimizer, EMA, buffers. Counted, and a tenth.
BUDGET = 640
BESIDE_AUTOGRAD = 2  # kernels of a backward pass at stage 0 that are not autograd's


class Kernels(TorchDispatchMode):
    """Counts kernels; one of many tensors (foreach) counts once."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += launches_kernel(func)
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    train = TrainConfig(run_dir=str(tmp_path_factory.mktemp("run")), device="cpu", precision="fp32")
    with init_distributed(train) as found:
        yield found


def hooks(model: nn.Module) -> int:
    """Parameters whose gradients call a hook."""
    return sum(bool(parameter._post_accumulate_grad_hooks) for parameter in model.parameters())


def backward(stage: int) -> tuple[int, int]:
    """Kernels of DeepSpeed's backward pass at a stage, and hooks."""
    model = build_method(config("simsiam"), VIEWS).train()
    optimizer = build_optimizer(list(model.parameters()), OptimConfig())
    train = TrainConfig(global_batch=4, device="cpu", precision="fp32")
    engine = init_deepspeed(model, optimizer, BatchLayout(4, 4, 1), train, OptimConfig(), stage=stage)
    total = engine(batch(4))["total"]
    with Kernels() as found:
        engine.backward(total)
    return found.count, hooks(model)


def test_a_backward_at_stage_0_is_autograds_alone(world: World) -> None:
    total = build_method(config("simsiam"), VIEWS).train()(batch(4))["total"]
    with Kernels() as plain:
        total.backward()
    count, called = backward(0)
    assert called == 0
    assert count <= plain.count + BESIDE_AUTOGRAD
    more, called = backward(2)  # what stage 0 saves
    assert called
    assert more > count


def test_weights_have_the_memory_format_of_images_where_zero_flattens_nothing(world: World) -> None:
    """And so do gradients and the optimizer's tensors: fused optimizers pair their elements by address."""
    for stage in (0, 2):
        model = build_method(config("simsiam"), VIEWS).train()
        optimizer = build_optimizer(list(model.parameters()), OptimConfig())
        train = TrainConfig(global_batch=4, device="cpu", precision="fp32")
        engine = init_deepspeed(model, optimizer, BatchLayout(4, 4, 1), train, OptimConfig(), stage=stage)
        wide = [each for each in model.parameters() if each.dim() == 4]
        matching = [each.is_contiguous(memory_format=torch.channels_last) for each in wide]
        assert all(matching) == (stage == 0)
        if stage == 0:
            load_optimizer(engine, ("momentum_buffer",), {}, 0)
            engine.backward(engine(batch(4))["total"])
            for parameter in model.parameters():
                assert parameter.grad.stride() == parameter.stride()
                assert optimizer.state[parameter]["momentum_buffer"].stride() == parameter.stride()


def test_a_step_launches_no_more_kernels_than_its_budget(world: World, tmp_path: Path) -> None:
    train = TrainConfig(run_dir=str(tmp_path), global_batch=8, device="cpu", precision="fp32")
    run = step.ours(PretrainConfig(model=config("byol"), views=VIEWS, train=train), batch(8), world)
    run()
    with Kernels() as found:
        run()
    assert found.count <= BUDGET
