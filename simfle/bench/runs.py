"""Wall-clock and CPU seconds of repeated measurements, as a table; training runs for measurements."""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from simfle.config.schema import PretrainConfig
from simfle.errors import UserError


@dataclass
class Measurement:
    """Repeated work. target_seconds: target in wall-clock seconds (0 = none)."""

    what: str
    target_seconds: float = 0.0
    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def cpu_median(self) -> float:
        return statistics.median(self.cpu)

    def add(self, work: Callable[[], object]) -> None:
        """Time another repetition in this process; `work` itself synchronizes the GPU."""
        began, used = time.perf_counter(), time.process_time()
        work()
        self.seconds.append(time.perf_counter() - began)
        self.cpu.append(time.process_time() - used)

    def as_dict(self) -> dict[str, Any]:
        return {
            "what": self.what,
            "aim": self.target_seconds,
            "seconds": self.seconds,
            "cpu": self.cpu,
            "median": self.median,
            "lowest": min(self.seconds),
            "highest": max(self.seconds),
            "cpu_median": self.cpu_median,
        }


def show(title: str, found: Mapping[str, Measurement]) -> None:
    """Print the table: median, fastest and slowest repetition in seconds, CPU seconds, the target."""
    from rich.table import Table

    from simfle.runtime.console import Console

    table = Table(title=f"{title}, seconds", title_justify="left")
    for column in ("way", "median", "fastest", "slowest", "CPU", "aim"):
        table.add_column(column, justify="left" if column == "way" else "right")
    for name, turns in found.items():
        cells = [f"{value:.3g}" for value in (turns.median, min(turns.seconds), max(turns.seconds), turns.cpu_median)]
        table.add_row(name, *cells, f"{turns.target_seconds:g}" if turns.target_seconds else "")
    Console(highlight=False, soft_wrap=True).print(table)


@contextmanager
def scratch(config: PretrainConfig) -> Iterator[PretrainConfig]:
    """Return the configuration with a temporary run folder and, without named shards, synthetic faces.

    The run writes no images and no regular checkpoints.
    """
    with tempfile.TemporaryDirectory(prefix="simfle-bench-") as name:
        folder = Path(name)
        data = config.data
        if not data.shards:
            data = replace(data, shards=[str(drawn(folder / "faces"))])
        train = replace(config.train, run_dir=str(folder / "run"), steps=10**6, log_images_every=0, stop_after_step=0)
        yield replace(config, data=data, train=train)


def drawn(out: Path, people: int = 64) -> Path:
    """Build shards of synthetic faces. Raises UserError if the build fails."""
    command = [sys.executable, "-m", "simfle", "shards", "build", "procedural", str(out), "--people", str(people)]
    done = subprocess.run([*command, "--images-per-person", "8"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(
            f"synthetic faces could not be built: {(done.stderr.strip().splitlines() or ['no message'])[-1]}"
        )
    return out


class ProcessUse(NamedTuple):
    """Use of a process and its children: wall-clock and CPU seconds, and peak resident bytes of the largest process."""

    seconds: float
    cpu: float
    peak: int


def run_once(command: Sequence[str], codes: Sequence[int], environment: Mapping[str, str] | None = None) -> ProcessUse:
    """Run a command to its end.

    Args:
        command: its words.
        codes: accepted exit codes.
        environment: additional variables.

    Raises:
        UserError: If the exit code is not among `codes`. The error contains the process's last message.
    """
    own = None if environment is None else os.environ | dict(environment)
    with tempfile.TemporaryFile("w+") as errors:
        began = time.perf_counter()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors, env=own)
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode not in codes:
            errors.seek(0)
            words = (errors.read().strip().splitlines() or ["no message"])[-1]
            raise UserError(f"{' '.join(command[1:4])} exited with code {process.returncode}: {words}")
    return ProcessUse(seconds, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024)
