"""Minimum time of a step: for each part, the longer of compute time and memory time.

Bytes are those of an eager step: each operation reads its operands from the device's memory and writes its results
there. Fused kernels (compile) move fewer bytes, so they can be faster than this minimum.
"""

from dataclasses import dataclass

from simfle.config.schema import PretrainConfig
from simfle.plan.hardware import Constants
from simfle.plan.model_cost import CONVOLUTIONS, PRODUCTS, REST, ModelCost
from simfle.runtime.distributed import BatchLayout

FP32 = 4


@dataclass(frozen=True)
class RooflinePart:
    """Part of a process's step: floating-point operations, bytes, the minimum seconds, and their bound."""

    name: str
    flops: float
    bytes: float
    seconds: float
    bound: str


def roofline(
    config: PretrainConfig, work: ModelCost, batch: BatchLayout, device: str, c: Constants
) -> list[RooflinePart]:
    """Return convolutions, matrix products, other operations, and the update, of one process and step."""
    peak = c.of(device, "peak") * (c["fp32"] if config.train.precision == "fp32" else 1.0)
    bandwidth, times, micro = c.of(device, "bandwidth"), batch.grad_accum_steps, batch.micro_batch
    flops = {CONVOLUTIONS: work.conv(micro), PRODUCTS: work.matmul(micro), REST: 0.0}
    parts = [(name, times * flops[name], times * moved(micro)) for name, moved in work.moved.items()]
    parts.append(("optimizer and EMA", 0.0, update_bytes(config, work, batch.processes)))
    found = []
    for name, number, size in parts:
        seconds = number / peak, size / bandwidth
        found.append(
            RooflinePart(name, number, size, max(seconds), "arithmetic" if seconds[0] > seconds[1] else "memory")
        )
    return found


def update_bytes(config: PretrainConfig, work: ModelCost, processes: int) -> float:
    """Return the bytes that optimizer and EMA read and write in one process."""
    share = 1 if config.train.zero_stage == 0 else 1 / processes
    moved = FP32 * work.trained * share * (3 + 2 * work.optimizer_tensors)  # read p, g, states; write p, states
    return moved + 3 * FP32 * (work.parameters - work.trained) * (share if config.train.zero_stage == 3 else 1)
