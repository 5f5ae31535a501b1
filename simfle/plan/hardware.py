"""Constants of the planner that cannot be computed, each with its source. Benchmark results in JSON replace them."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from shards.io.atomic import read_bytes
from simfle.errors import UserError

MEASURED, PUBLISHED, ASSUMED = "measured here", "published", "assumed"
# A ResNet-50 step on one image of 224 px: three forwards of 2 x 4.09 G multiply-adds.
RESNET50_STEP = 3 * 2 * 4.09e9


@dataclass(frozen=True)
class Constant:
    """Number in bytes, seconds, floating-point operations, watts or g CO2e per kWh, its kind, and its source."""

    value: float
    kind: str
    source: str


CONSTANTS: dict[str, Constant] = {
    "h100.memory": Constant(80e9, PUBLISHED, "NVIDIA's data sheet, H100 SXM5 80 GB"),
    "h100.bandwidth": Constant(3.35e12, PUBLISHED, "NVIDIA's data sheet"),
    "h100.peak": Constant(989e12, PUBLISHED, "NVIDIA's data sheet, dense bf16"),
    "h100.conv": Constant(
        2470 * 3.35 / 2.04 * RESNET50_STEP, ASSUMED, "the A100's, times the ratio of memory bandwidths"
    ),
    "h100.matmul": Constant(0.4 * 989e12, ASSUMED, "40 % of peak"),
    "h100.nvlink": Constant(360e9, ASSUMED, "80 % of 450 GB/s each way"),
    "h100.dali": Constant(5000, ASSUMED, "three views; the A100's decoding alone"),
    "h100.watts": Constant(10200 / 8, PUBLISHED, "an eighth of a DGX H100's maximum of 10.2 kW, NVIDIA's data sheet"),
    "h200.memory": Constant(141e9, PUBLISHED, "NVIDIA's data sheet, H200 SXM 141 GB"),
    "h200.bandwidth": Constant(4.8e12, PUBLISHED, "NVIDIA's data sheet"),
    "h200.peak": Constant(989e12, PUBLISHED, "NVIDIA's data sheet, dense bf16"),
    "h200.conv": Constant(
        2470 * 4.8 / 2.04 * RESNET50_STEP, ASSUMED, "the A100's, times the ratio of memory bandwidths"
    ),
    "h200.matmul": Constant(0.4 * 989e12, ASSUMED, "40 % of peak"),
    "h200.nvlink": Constant(360e9, ASSUMED, "80 % of 450 GB/s each way"),
    "h200.dali": Constant(5000, ASSUMED, "as the H100"),
    "h200.watts": Constant(10200 / 8, ASSUMED, "as the H100"),
    "a100.memory": Constant(80e9, PUBLISHED, "NVIDIA's data sheet, A100 SXM4 80 GB"),
    "a100.bandwidth": Constant(2.04e12, PUBLISHED, "NVIDIA's data sheet"),
    "a100.peak": Constant(312e12, PUBLISHED, "NVIDIA's data sheet, dense bf16"),
    "a100.conv": Constant(
        2470 * RESNET50_STEP, PUBLISHED, "ResNet-50 training, 2,470 images/s, DeepLearningExamples, AMP"
    ),
    "a100.matmul": Constant(0.4 * 312e12, ASSUMED, "40 % of peak"),
    "a100.nvlink": Constant(240e9, ASSUMED, "80 % of 300 GB/s each way"),
    "a100.dali": Constant(3000, ASSUMED, "three views; decoding alone is 5,000-7,000, DALI issue 5362"),
    "a100.watts": Constant(6500 / 8, PUBLISHED, "an eighth of a DGX A100's maximum of 6.5 kW, NVIDIA's data sheet"),
    "cpu.memory": Constant(16e9, ASSUMED, "main memory of one process"),
    "cpu.bandwidth": Constant(10e9, ASSUMED, "main memory, one core"),
    "cpu.peak": Constant(348e9, MEASURED, "one core of an AMD EPYC, bf16: bench_step, docs/benchmarks.md"),
    "cpu.conv": Constant(180e9, MEASURED, "the same: ResNet-50 forward and backward, 4 images"),
    "cpu.matmul": Constant(132e9, MEASURED, "the same: FaceMAE forward and backward, 4 images"),
    "cpu.nvlink": Constant(2e9, ASSUMED, "gloo over the loopback interface"),
    "cpu.dali": Constant(140, PUBLISHED, "three views, one thread, CPU mode: a trial of this project"),
    "fp32": Constant(0.4, ASSUMED, "speed of train.precision=fp32 (TF32 convolutions) relative to bf16 on a GPU"),
    "cpu.watts": Constant(10, ASSUMED, "one core of a server, with its share of the node"),
    "network.efficiency": Constant(0.8, ASSUMED, "fraction of the network's rate that a ring all-reduce reaches"),
    "network.latency": Constant(15e-6, ASSUMED, "per collective and doubling of processes"),
    "host.operation": Constant(8e-6, ASSUMED, "host time to launch one operation on a GPU from Python"),
    "host.copy": Constant(5e9, ASSUMED, "from a GPU to pageable host memory"),
    "loader.core": Constant(790, MEASURED, "three views with OpenCV on one core of an AMD EPYC: bench_loader"),
    "storage.read": Constant(10e9, ASSUMED, "the shared file system, all nodes together"),
    "storage.write": Constant(1e9, ASSUMED, "one process writing a checkpoint"),
    "storage.hash": Constant(1.5e9, ASSUMED, "SHA-256 on one core"),
    "node.memory": Constant(512e9, ASSUMED, "main memory of a node, which caches shards"),
    "power.pue": Constant(1.54, PUBLISHED, "mean of the data centers in Uptime Institute's survey of 2025"),
    "grid.intensity": Constant(473, PUBLISHED, "g CO2e per kWh: world in 2024, Ember, Global Electricity Review 2025"),
}
DEVICES = tuple(sorted({name.split(".")[0] for name in CONSTANTS if name.endswith(".conv")}))


def device_kind(name: str) -> str:
    """Return the planner's name of a device (a100, cpu, ...) from its full name; empty for another device."""
    return next((kind for kind in DEVICES if kind in name.lower()), "")


@dataclass(frozen=True)
class Constants:
    """Constants by name."""

    figures: dict[str, Constant]

    def __getitem__(self, name: str) -> float:
        return self.figures[name].value

    def of(self, device: str, name: str) -> float:
        """Return a constant for a kind of device.

        Raises:
            UserError: If this device has no such constant.
        """
        if device not in DEVICES:
            raise UserError(
                f"--gpu {device!r}: unknown. Fix: use one of {', '.join(DEVICES)}; --constants can change their values."
            )
        return self[f"{device}.{name}"]

    def replaced(self, values: Mapping[str, float], source: str) -> "Constants":
        """Return constants of which some have other values, assumed by the user."""
        return Constants(self.figures | {name: Constant(value, ASSUMED, source) for name, value in values.items()})

    def unmeasured(self, names: Sequence[str]) -> list[str]:
        """Return those of `names` that have not been measured on the target machine."""
        return [name for name in names if self.figures[name].kind != MEASURED]


def load_constants(files: Sequence[Path]) -> Constants:
    """Return the table above, in which the values of the files replace constants.

    A file is a JSON object of name: value, or a benchmark's JSON with `constants`.

    Raises:
        UserError: If a file is missing or does not hold such an object, a name is unknown, or a value is not a positive
            number.
    """
    figures = dict(CONSTANTS)
    for file in files:
        try:
            found = json.loads(read_bytes(file))
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"--constants {file}: cannot be read as JSON: {error}. Fix: correct the file.") from None
        values = found.get("constants", found) if isinstance(found, dict) else None
        if not isinstance(values, dict):
            raise UserError(f"--constants {file}: not a JSON object. Fix: write an object of name: value.")
        for name, value in values.items():
            if name not in CONSTANTS:
                raise UserError(f"--constants {file}: unknown {name!r}. Fix: choose from {', '.join(CONSTANTS)}.")
            if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
                raise UserError(f"--constants {file}: {name}={value!r}: not a positive number. Fix: correct it.")
            figures[name] = Constant(float(value), MEASURED, file.name)
    return Constants(figures)


def network_rate(name: str) -> float:
    """Parse bytes per second of a node in each direction: 100gb, 400gb, ethernet25, 8x400gb (eight adapters).

    Raises:
        UserError: If the name has another form.
    """
    match = re.fullmatch(r"(?:(\d+)x)?(?:ethernet|ib)?(\d+)(?:gb)?", name.lower())
    if match is None or not int(match[2]) or match[1] == "0":
        raise UserError(f"--network {name!r}: unknown. Fix: write 100gb, 400gb, ethernet25 or 8x400gb (adapters).")
    return int(match[1] or 1) * int(match[2]) * 1e9 / 8
