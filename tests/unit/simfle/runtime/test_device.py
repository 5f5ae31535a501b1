"""The device's settings and failures, as far as a machine without a GPU can show them; tests/gpu has the rest."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers.tiny_methods import VIEWS, config

from simfle.config.schema import OptimConfig, TrainConfig
from simfle.errors import DeviceFailedError, UserError
from simfle.models.registry import build_method
from simfle.optim import build_optimizer
from simfle.runtime.deepspeed_engine import init_deepspeed
from simfle.runtime.device import (
    device_errors_as_user_errors,
    device_failed,
    kernels,
    out_of_memory,
    set_ds_accelerator,
)
from simfle.runtime.distributed import compute_batch_layout, init_distributed
from simfle.slurm.task import is_peer_loss

FULL = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB"),
    torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"),
]
FAILED = [
    torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered\nCUDA kernel errors might be"),
    torch.AcceleratorError("CUDA error: unspecified launch failure"),
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`"),
    RuntimeError("Critical error in pipeline: CUDA runtime API error cudaErrorECCUncorrectable (214)"),
]
BUGS = [
    torch.AcceleratorError("CUDA error: device-side assert triggered"),
    torch.AcceleratorError("CUDA error: no kernel image is available for execution on the device"),
    RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
    ValueError("out of memory"),
]


@pytest.mark.parametrize("error", FULL, ids=lambda error: str(error)[:30])
def test_a_full_memory_is_one_line_that_says_what_helps(error: Exception) -> None:
    assert out_of_memory(error)
    assert not device_failed(error)
    with (
        pytest.raises(UserError, match=r"^memory is full: .*\. Fix: less of it\.$"),
        device_errors_as_user_errors("less of it"),
    ):
        raise error


@pytest.mark.parametrize("error", FAILED, ids=lambda error: str(error)[:30])
def test_a_failed_gpu_is_a_lost_node(error: Exception) -> None:
    assert device_failed(error)
    assert is_peer_loss(error)
    with pytest.raises(DeviceFailedError, match="the GPU failed") as told, device_errors_as_user_errors(""):
        raise error
    assert is_peer_loss(told.value)


@pytest.mark.parametrize("error", BUGS, ids=lambda error: str(error)[:30])
def test_what_would_happen_again_is_no_lost_node(error: Exception) -> None:
    assert not device_failed(error)
    assert not out_of_memory(error)
    assert not is_peer_loss(error)
    with pytest.raises(type(error)), device_errors_as_user_errors(""):
        raise error


def attention() -> tuple[bool, ...]:
    cuda = torch.backends.cuda
    found = cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(), cuda.cudnn_sdp_enabled()
    return *found, torch.backends.cudnn.benchmark


def test_deterministic_attention_is_the_plain_formula() -> None:
    before = attention()
    with kernels(torch.device("cuda"), deterministic=True):
        assert attention() == (False, False, False, False)
        assert torch.backends.cuda.math_sdp_enabled()
    with kernels(torch.device("cuda"), deterministic=False):
        assert attention() == (*before[:3], True)
    with kernels(torch.device("cpu"), deterministic=False):
        assert attention() == (False, *before[1:3], False)
    assert attention() == before


@pytest.fixture
def accelerator() -> Iterator[None]:
    yield
    set_ds_accelerator("cpu")


@pytest.mark.usefixtures("accelerator")
def test_a_run_on_the_cpu_fixes_no_device_for_the_next(tmp_path: Path) -> None:
    """And its engine times nothing: that would make the host wait for the GPU."""
    train = TrainConfig(run_dir=str(tmp_path), global_batch=4, device="cpu", precision="fp32")
    with init_distributed(train) as world:
        from deepspeed.accelerator import get_accelerator

        model = build_method(config("simsiam"), VIEWS).to(memory_format=torch.channels_last)
        optimizer = build_optimizer(list(model.parameters()), OptimConfig())
        engine = init_deepspeed(model, optimizer, compute_batch_layout(train, world.world_size), train, OptimConfig())
        assert not engine.tput_timer.config.enabled
        assert not engine.wall_clock_breakdown()
        assert engine.device.type == "cpu"
    set_ds_accelerator("cuda")
    assert get_accelerator().device_name() == "cuda"
    assert get_accelerator().communication_backend_name() == "nccl"
    os.environ["DS_ACCELERATOR"] = "cuda"  # as it stays in a process that a launcher started
    with init_distributed(train):
        assert get_accelerator().device_name() == "cpu"
