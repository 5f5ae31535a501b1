"""Weak scaling: the same work per process on 1, 2, 4 ... processes, in one process group and in separate ones."""

import os
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from shards.io.atomic import read_bytes
from simfle.config.overrides import format_override
from simfle.errors import UserError
from simfle.runtime.ports import free_port
from simfle.runtime.run_files import parse_metrics

WARM_UP = 3  # steps that are not measured


@dataclass(frozen=True)
class ScalingResult:
    """Images/s of `processes` processes: in one process group, and as concurrent processes without communication."""

    processes: int
    together: float
    alone: float

    @property
    def communication(self) -> float:
        """Fraction of the time spent on communication and waiting, 0 to 1."""
        return max(0.0, 1 - self.together / self.alone)


def measure(words: list[str], processes: int, share: int, steps: int, folder: Path) -> ScalingResult:
    """Train `steps` steps of `share` samples per process, with and without communication.

    words: config and key=value as for simfle pretrain.

    Raises:
        UserError: If a process failed. The error contains its last message.
    """
    one_world = [_start(words, folder / f"together{processes}", share * processes, steps, rank, processes, port)
                 for port in [free_port()] for rank in range(processes)]  # fmt: skip
    _wait(one_world)
    alone = [
        _start(words, folder / f"alone{processes}-{k}", share, steps, 0, 1, free_port(), local_rank=k)
        for k in range(processes)
    ]
    _wait(alone)
    together = _speed(folder / f"together{processes}")
    return ScalingResult(processes, together, sum(_speed(folder / f"alone{processes}-{k}") for k in range(processes)))


def _start(
    words: list[str], run: Path, batch: int, steps: int, rank: int, size: int, port: int, local_rank: int | None = None
) -> "subprocess.Popen[str]":
    local_rank = rank if local_rank is None else local_rank  # the GPU it uses
    own = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": local_rank, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": port}
    environment = os.environ | {name: str(value) for name, value in own.items()}
    environment |= {"MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
    program = "from simfle.commands.pretrain import main; main()"
    settings = run_settings(run, batch, steps, on_gpu=torch.cuda.is_available())
    command = [sys.executable, "-c", program, *words, *settings]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=pipe, text=True)


def run_settings(run: Path, batch: int, steps: int, *, on_gpu: bool) -> list[str]:
    """Return the settings of a measured run, as key=value."""
    settings = [format_override("train.run_dir", run), f"train.global_batch={batch}", f"train.steps={steps}"]
    settings += ["train.log_every=1", "train.log_images_every=0", f"train.checkpoint_every={steps}"]
    settings.append("train.micro_batch=0")
    # On a CPU, decoding would take the cores of the processes' arithmetic. On a GPU, one thread could be the limit.
    return settings if on_gpu else [*settings, "data.decode_threads=1"]


def _wait(running: "list[subprocess.Popen[str]]") -> None:
    for process in running:
        _, errors = process.communicate()
        if process.returncode:
            for other in running:
                other.kill()
            raise UserError(f"a process of the benchmark failed: {(errors.strip().splitlines() or ['no message'])[-1]}")


def _speed(run: Path) -> float:
    lines = parse_metrics(read_bytes(run / "metrics.jsonl"))
    return statistics.median(line["images_per_second"] for line in lines[WARM_UP:])
