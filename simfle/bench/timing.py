"""Timing rounds, tables and JSON that the benchmarks share."""

import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from shards.redact import to_json
from simfle.errors import UserError
from simfle.runtime.provenance import git_revision, versions


@dataclass(frozen=True)
class Variant:
    """One variant of the work. `run` does one repetition of `items` units (images, operations).

    apart: whether other processes do the work, so that its CPU time is not measured here.
    """

    what: str
    items: float
    run: Callable[[], object]
    apart: bool = False


@dataclass
class Timing:
    """Wall-clock and CPU seconds of each repetition of a variant, and the units of a repetition."""

    what: str
    items: float
    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Units per second of the median repetition."""
        return self.items / statistics.median(self.seconds)

    @property
    def cpu_rate(self) -> float | None:
        """Units per second of CPU time, independent of other load on the core, or None if it was not measured."""
        return self.items / statistics.median(self.cpu) if self.cpu else None

    def as_dict(self) -> dict[str, Any]:
        """Return plain numbers: median rate, rates of the slowest and fastest repetition, rate per CPU second."""
        slowest, fastest = self.items / max(self.seconds), self.items / min(self.seconds)
        return {"what": self.what, "items": self.items, "seconds": self.seconds} | {
            "median": self.rate,
            "lowest": slowest,
            "highest": fastest,
            "cpu": self.cpu,
            "per_cpu_second": self.cpu_rate,
        }


def measure(variants: Mapping[str, Variant], rounds: int, device: torch.device) -> dict[str, Timing]:
    """Run one warm-up repetition of each variant, then `rounds` rounds with one repetition of each variant.

    A temporary slowdown of the machine affects all variants. On a GPU, the clock is read after synchronization.
    """
    if rounds < 1:
        raise UserError(f"--rounds={rounds}: must be at least 1. Fix: pass --rounds 1 or more.")
    found = {name: Timing(way.what, way.items) for name, way in variants.items()}
    for number in range(rounds + 1):
        for name, way in variants.items():
            _wait(device)
            began, used = time.perf_counter(), time.process_time()
            way.run()
            _wait(device)
            if number:
                found[name].seconds.append(time.perf_counter() - began)
                if not way.apart:
                    found[name].cpu.append(time.process_time() - used)
    return found


def report(timings: Mapping[str, Timing], device: torch.device, **more: Any) -> dict[str, Any]:
    """Return the report as plain JSON: figures, command, machine, versions."""
    return {"ways": {name: figures.as_dict() for name, figures in timings.items()}, **more, **about(device)}


def about(device: torch.device) -> dict[str, Any]:
    """Describe the context of figures: command, machine, versions."""
    return {
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "machine": machine(device),
        "versions": versions() | {"revision": git_revision()},
    }


def machine(device: torch.device) -> dict[str, Any]:
    """Describe the machine. load: average over the last minute; figures of a busy machine are unreliable."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "cpu": names[0] if names else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),
    }


def show(title: str, found: Mapping[str, Timing], unit: str, against: str) -> None:
    """Print the rates of the median, slowest and fastest repetition, the rates per CPU second, and ratios to the
    variant `against`."""
    from rich.table import Table

    from simfle.runtime.console import Console

    table = Table(title=f"{title}, {unit}", title_justify="left")
    for column in ("way", "median", "slowest", "fastest", f"x {against}", "per CPU second", f"x {against}"):
        table.add_column(column, justify="left" if column == "way" else "right")
    for name, figures in found.items():
        numbers = figures.as_dict()
        cells = [f"{numbers[key]:,.4g}" for key in ("median", "lowest", "highest")]
        base = found[against]
        same = figures.items == base.items  # otherwise the units differ
        cells += [f"{figures.rate / base.rate:.2f}" if same else "-"]
        rate, base_rate = figures.cpu_rate, base.cpu_rate
        cells += [f"{rate:,.4g}" if rate else "-", f"{rate / base_rate:.2f}" if rate and base_rate and same else "-"]
        table.add_row(name, *cells)
    console = Console(highlight=False, soft_wrap=True)
    console.print(table)
    for name, figures in found.items():
        console.print(f"{name}: {figures.what}")


def save(result: Mapping[str, Any], out: Path | None) -> None:
    """Write the JSON, if requested."""
    if out is not None:
        out.write_text(to_json(result, indent=1) + "\n")


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
