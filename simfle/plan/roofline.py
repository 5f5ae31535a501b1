"""Minimum time of a step: for each part, the longer of compute time and memory time.

Bytes are those of an eager step: each operation reads its operands from the device's memory and writes its results
there. Fused kernels (compile) move fewer bytes, so they can be faster than this minimum.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from simfle.config.schema import TrainConfig
from simfle.plan.hardware import Constants
from simfle.plan.model_cost import CONVOLUTIONS, PRODUCTS, REST, ModelCost
from simfle.runtime.distributed import BatchLayout

FP32 = 4
TARGET, GOOD = 0.40, 0.55  # fractions of the roofline that a step should reach: at least, preferably


@dataclass(frozen=True)
class RooflinePart:
    """Part of a process's step: floating-point operations, bytes, and the minimum seconds.

    compute: seconds of the operations at the device's peak; memory: seconds of the bytes at its bandwidth; seconds: the
    longer of the two, named by `bound`.
    """

    name: str
    flops: float
    bytes: float
    compute: float
    memory: float
    seconds: float
    bound: str


def roofline(train: TrainConfig, work: ModelCost, batch: BatchLayout, device: str, c: Constants) -> list[RooflinePart]:
    """Return convolutions, matrix products, other operations, and the update, of one process and step."""
    peak = c.of(device, "peak") * (c["fp32"] if train.precision == "fp32" else 1.0)
    bandwidth, times, micro = c.of(device, "bandwidth"), batch.grad_accum_steps, batch.micro_batch
    flops = {CONVOLUTIONS: work.conv(micro), PRODUCTS: work.matmul(micro), REST: 0.0}
    parts = [(name, times * flops[name], times * moved(micro)) for name, moved in work.moved.items()]
    parts.append(("optimizer and EMA", 0.0, update_bytes(train, work, batch.processes)))
    found = []
    for name, number, size in parts:
        compute, memory = number / peak, size / bandwidth
        bound = "arithmetic" if compute > memory else "memory"
        found.append(RooflinePart(name, number, size, compute, memory, max(compute, memory), bound))
    return found


def roofline_table(parts: Sequence[RooflinePart], images: int) -> str:
    """Return a Markdown table of the parts of a step of `images` images, their sum, and the target."""
    lines = ["| part | TFLOP | GB | by operations | by bytes | minimum | bound |", "|---|---:|---:|---:|---:|---:|---|"]
    for part in parts:
        times = (f"{seconds * 1e3:.1f} ms" for seconds in (part.compute, part.memory, part.seconds))
        lines.append(
            f"| {part.name} | {part.flops / 1e12:.2f} | {part.bytes / 1e9:.1f} | {' | '.join(times)} | {part.bound} |"
        )
    flops, moved, total = (sum(getattr(part, name) for part in parts) for name in ("flops", "bytes", "seconds"))
    lines.append(f"| step of {images:,} images | {flops / 1e12:.2f} | {moved / 1e9:.1f} | | | {total * 1e3:.1f} ms | |")
    rates = (("limit", 1.0), ("target, at least", TARGET), ("target, preferably", GOOD))
    lines += [f"| {name}, {share:.0%} | | | | | {share * images / total:,.0f} images/s | |" for name, share in rates]
    return "\n".join(lines)


def update_bytes(train: TrainConfig, work: ModelCost, processes: int) -> float:
    """Return the bytes that optimizer and EMA read and write in one process."""
    share = 1 if train.zero_stage == 0 else 1 / processes
    moved = FP32 * work.trained * share * (3 + 2 * work.optimizer_tensors)  # read p, g, states; write p, states
    return moved + 3 * FP32 * (work.parameters - work.trained) * (share if train.zero_stage == 3 else 1)
