"""Tensors of all processes, with gradients."""

# n rows of this process, R processes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_alone = False


def collect(rows: Tensor) -> Tensor:
    """[n, ...] of each process -> [R n, ...], in the order of ranks; all processes must bring equally many.

    Gradients flow to all of them: with a loss averaged over processes, as DeepSpeed averages gradients, they are those
    of one process that holds the whole batch.
    """
    return _Collect.apply(rows) if processes() > 1 else rows


def processes() -> int:
    """How many there are; 1 without a process group, or while this one is `alone`."""
    return dist.get_world_size() if dist.is_initialized() and not _alone else 1


def rank() -> int:
    """Of this process; 0 without a process group, or while this one is `alone`."""
    return dist.get_rank() if processes() > 1 else 0


@contextmanager
def alone() -> Iterator[None]:
    """What a method computes here waits for nobody: for a trial that may fail on some processes and not on others."""
    global _alone  # noqa: PLW0603 - as the process group itself is
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


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
