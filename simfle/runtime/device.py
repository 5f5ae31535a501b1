"""Device of this process: kernels, DeepSpeed's accelerator, memory, and torch's errors on failure."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from simfle.errors import DeviceFailedError, UserError

OUT_OF_MEMORY = ("out of memory", "alloc_failed", "allocation_failed", "memoryallocation", "defaultcpuallocator")
# These AcceleratorErrors recur on every node: the cause is a bug, or a GPU that this build of torch does not support.
NOT_RETRYABLE = ("device-side assert", "no kernel image", "invalid device", "invalid argument", "invalid configuration")
# Failures of a GPU that cuDNN, cuBLAS or DALI report in a plain RuntimeError.
DEVICE_FAILURE = (
    "uncorrectable ecc",
    "eccuncorrectable",
    "launch failure",
    "launchfailure",
    "_status_execution_failed",
)


@contextmanager
def kernels(device: torch.device, *, deterministic: bool) -> Iterator[None]:
    """Choose the kernels of attention and cuDNN within a block: the fastest, or deterministic ones.

    The backward passes of flash, memory-efficient and cuDNN attention add in any order, and
    `use_deterministic_algorithms(warn_only=True)` does not disable them. On a CPU, torch's flash attention takes three
    to four times as long in bf16 as its plain formula.
    """
    cuda, cudnn = torch.backends.cuda, torch.backends.cudnn
    before = cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(), cuda.cudnn_sdp_enabled(), cudnn.benchmark
    on_gpu = device.type == "cuda"
    cuda.enable_flash_sdp(before[0] and on_gpu and not deterministic)
    cuda.enable_mem_efficient_sdp(before[1] and not deterministic)
    cuda.enable_cudnn_sdp(before[2] and not deterministic)
    # The benchmark tries all of cuDNN's kernels on each new shape. All batches have one shape; the fastest kernel may
    # differ between runs.
    cudnn.benchmark = on_gpu and not deterministic
    try:
        yield
    finally:
        cuda.enable_flash_sdp(before[0])
        cuda.enable_mem_efficient_sdp(before[1])
        cuda.enable_cudnn_sdp(before[2])
        cudnn.benchmark = before[3]


def set_ds_accelerator(kind: str) -> None:
    """Make DeepSpeed use `kind` ("cpu" or "cuda"). DeepSpeed would keep its first choice as long as the process, such
    as a notebook, runs."""
    from deepspeed.accelerator import get_accelerator, set_accelerator
    from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator
    from deepspeed.accelerator.cuda_accelerator import CUDA_Accelerator

    if get_accelerator().device_name() != kind:
        set_accelerator({"cpu": CPU_Accelerator, "cuda": CUDA_Accelerator}[kind]())


def memory_bytes(device: torch.device) -> float:
    """Return the memory of a GPU in bytes, or on a CPU, this process's share of the machine's memory."""
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return machine / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def out_of_memory(error: BaseException) -> bool:
    """Return whether torch, cuBLAS, cuDNN or DALI ran out of memory, on the GPU or in the machine."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in OUT_OF_MEMORY)


def device_failed(error: BaseException) -> bool:
    """Return whether the GPU failed (an ECC error, a launch failure): the run may resume on another GPU."""
    if not isinstance(error, RuntimeError) or out_of_memory(error):
        return False
    text = str(error).lower()
    if isinstance(error, torch.AcceleratorError):
        return not any(sign in text for sign in NOT_RETRYABLE)
    return any(sign in text for sign in DEVICE_FAILURE)


@contextmanager
def device_errors_as_user_errors(fix: str) -> Iterator[None]:
    """Convert out-of-memory errors and GPU failures to one line. `fix` is an action that reduces the memory.

    Raises:
        UserError: If the memory is full; a rerun would fill it again.
        DeviceFailedError: If the GPU failed; the run may resume on another node.
    """
    try:
        yield
    except RuntimeError as error:
        words = (str(error).strip() or type(error).__name__).splitlines()[0]
        if out_of_memory(error):
            raise UserError(f"memory is full: {words}. Fix: {fix}.") from error
        if device_failed(error):
            raise DeviceFailedError(
                f"the GPU failed: {words}. Fix: rerun on another node; nvidia-smi -q -d ECC and the kernel's log (Xid) "
                "show the cause"
            ) from error
        raise
