"""Reduce the status of a step across all processes in one small all-reduce: losses, NaN, stop, corrupt samples."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class StepStatus:
    """Status of a step, the same on every process. losses: means over processes and micro-batches; corrupt: number of
    new corrupt samples."""

    losses: dict[str, float]
    finite: bool
    stop: bool
    corrupt: int


class StepReduction:
    """All-reduce that starts between the last forward pass and its backward pass, read after the backward is queued.

    The host waits while the GPU has work, so the GPU does not stall, and a bad loss is known before the optimizer step.
    """

    def __init__(self, losses: dict[str, Tensor], grad_accum_steps: int, stop: bool, corrupt: int) -> None:
        self._names = list(losses)
        values = torch.stack([losses[name].detach().float() for name in self._names]) / grad_accum_steps
        known = [torch.full_like(values[0], float(value)) for value in (stop, corrupt)]
        flags = torch.stack([(~values.isfinite().all()).float(), *known])
        votes = torch.cat([values, flags])
        dist.all_reduce(votes)
        self._reduced = votes.to("cpu", non_blocking=True)
        self._ready = torch.cuda.Event() if votes.is_cuda else None
        if self._ready is not None:
            self._ready.record()

    def read(self) -> StepStatus:
        """Wait for the reduction and return its result."""
        if self._ready is not None:
            self._ready.synchronize()
        *values, bad, stops, corrupt = self._reduced.tolist()
        mean = [value / dist.get_world_size() for value in values]
        return StepStatus(dict(zip(self._names, mean, strict=True)), bad == 0, stops > 0, round(corrupt))
