"""Choose the ZeRO stage; synchronize partitions at stage 3."""

from dataclasses import dataclass
from typing import Any

import torch

from simfle.config.schema import OptimConfig, TrainConfig

AUTO = -1  # train.zero_stage=auto
STAGE_0_HEADROOM = 8  # stage 0 needs this many times the bytes that a run keeps between steps


@dataclass(frozen=True)
class ZeroStage:
    """ZeRO stage, and the reason for its choice."""

    number: int
    reason: str


def choose_zero_stage(train: TrainConfig, optim: OptimConfig, processes: int, held: float, memory: float) -> ZeroStage:
    """Return the effective ZeRO stage.

    A single process cannot split tensors and would only make extra copies. Stages 1 and 2 call a hook for each
    parameter, at 12 to 19 times stage 0's cost for the host, and wait for the GPU after each backward pass: auto
    chooses stage 0 if memory suffices.

    held: bytes of parameters, gradients and optimizer at stage 0. memory: bytes of one process, the minimum over all.
    """
    if processes == 1:
        return ZeroStage(0, "there is one process, so nothing to share")
    if train.zero_stage != AUTO:
        return ZeroStage(train.zero_stage, "as configured")
    if optim.name == "lars":
        return ZeroStage(0, "lars needs the norm of each layer")
    fits = f"parameters, gradients and optimizer, {held / 1e9:.1f} GB, fit {memory / held:.1f} times into memory"
    return (
        ZeroStage(0, fits)
        if STAGE_0_HEADROOM * held <= memory
        else ZeroStage(2, f"{fits}; less than {STAGE_0_HEADROOM}")
    )


def held_bytes(trained: float, frozen: float, optimizer_tensors: int) -> float:
    """Return the bytes kept at stage 0: trained and frozen parameters, gradients and optimizer tensors."""
    return frozen + trained * (2 + optimizer_tensors)


def wait_for_partitions(engine: Any) -> None:
    """Wait at stage 3 until optimizer and EMA have written the partitions.

    DeepSpeed gathers partitions on a separate stream that waits for no other stream: the next forward pass could read
    old values.
    """
    if engine.zero_optimization_stage() == 3 and engine.device.type == "cuda":
        torch.cuda.current_stream(engine.device).synchronize()
