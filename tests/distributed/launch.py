"""Run a script of this folder on several real processes, as torchrun does, and collect their output."""

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def environment(**more: str) -> dict[str, str]:
    """Return this process's environment without launcher variables; one thread each, for a fixed order of sums."""
    dropped = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    path = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
    return kept | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": path} | more


def processes(count: int, script: Path, *arguments: str) -> list[str]:
    """Return the standard output of each rank; fail with the output of the first that failed."""
    shared = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1"}
    shared["MASTER_PORT"] = str(free_port())
    running = []
    for rank in range(count):
        own = environment(**shared, RANK=str(rank), LOCAL_RANK=str(rank))
        command = [sys.executable, str(script), *arguments]
        pipe = subprocess.PIPE
        running.append(subprocess.Popen(command, env=own, cwd=ROOT, stdout=pipe, stderr=pipe, text=True))
    ends = [process.communicate(timeout=800) for process in running]
    for process, (out, err) in zip(running, ends, strict=True):
        assert process.returncode == 0, out[-2000:] + err[-4000:]
    return [out for out, _ in ends]
