"""Tensors of all processes, with gradients."""

# n rows of this process, R processes
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def collect(rows: Tensor) -> Tensor:
    """[n, ...] of each process -> [R n, ...], in the order of ranks; all processes must bring equally many.

    Gradients flow to all of them: with a loss averaged over processes, as DeepSpeed averages gradients, they are those
    of one process that holds the whole batch.
    """
    return _Collect.apply(rows) if processes() > 1 else rows


def processes() -> int:
    """How many there are; 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Of this process; 0 without a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


class _Collect(torch.autograd.Function):
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
