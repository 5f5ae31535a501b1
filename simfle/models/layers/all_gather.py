"""Gather tensors of all processes, with gradients."""

# n rows of this process, R processes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_is_local_only = False


def all_gather_with_grad(rows: Tensor) -> Tensor:
    """Gather [n, ...] of each process to [R n, ...], in the order of ranks; n must be equal on all processes.

    Gradients flow to all processes: with a loss averaged over processes, as DeepSpeed averages gradients, they equal
    the gradients of one process with the whole batch.
    """
    return _AllGatherWithGrad.apply(rows) if processes() > 1 else rows


def processes() -> int:
    """Return the number of processes, or 1 without a process group or inside `local_only`."""
    return dist.get_world_size() if dist.is_initialized() and not _is_local_only else 1


def rank() -> int:
    """Return the rank of this process, or 0 without a process group or inside `local_only`."""
    return dist.get_rank() if processes() > 1 else 0


@contextmanager
def local_only() -> Iterator[None]:
    """Disable collectives in this block, for a trial that may fail on some processes only."""
    global _is_local_only  # noqa: PLW0603 - global like the process group
    before, _is_local_only = _is_local_only, True
    try:
        yield
    finally:
        _is_local_only = before


class _AllGatherWithGrad(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.count = len(rows)
        parts = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total[dist.get_rank() * ctx.count : (dist.get_rank() + 1) * ctx.count]
