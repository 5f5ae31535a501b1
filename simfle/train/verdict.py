"""Reduce the status of a step across all processes in one small all-reduce: losses, NaN, stop, corrupt samples."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Verdict:
    """Result, the same on every process. losses: means over processes and micro-batches; damaged: new corrupt ones."""

    losses: dict[str, float]
    finite: bool
    stop: bool
    damaged: int


class Ballot:
    """All-reduce that starts between the last forward pass and its backward pass, read after the backward is queued.

    The host waits while the GPU has work: nothing stalls, and a bad loss is known before the optimizer steps.
    """

    def __init__(self, losses: dict[str, Tensor], accumulation: int, stop: bool, damaged: int) -> None:
        self._names = list(losses)
        values = torch.stack([losses[name].detach().float() for name in self._names]) / accumulation
        known = [torch.full_like(values[0], float(value)) for value in (stop, damaged)]
        flags = torch.stack([(~values.isfinite().all()).float(), *known])
        votes = torch.cat([values, flags])
        dist.all_reduce(votes)
        self._votes = votes.to("cpu", non_blocking=True)
        self._ready = torch.cuda.Event() if votes.is_cuda else None
        if self._ready is not None:
            self._ready.record()

    def read(self) -> Verdict:
        """Wait for the reduction and return its result."""
        if self._ready is not None:
            self._ready.synchronize()
        *values, bad, stops, damaged = self._votes.tolist()
        mean = [value / dist.get_world_size() for value in values]
        return Verdict(dict(zip(self._names, mean, strict=True)), bad == 0, stops > 0, round(damaged))
