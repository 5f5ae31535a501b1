"""What a long run takes of the machine, over thousands of small steps with checkpoints: memory, handles, threads, shm.

PYTHONPATH=.:tests python tests/soak/growth.py --steps 20000
"""

import argparse
import json
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from distributed import runs
from drawn import make_faces
from faults import story as telling
from faults.nursery import Nursery


@dataclass(frozen=True)
class Sight:
    """A process after `step` steps. megabytes: resident; files: open ones; shm: files in /dev/shm; run_: its folder."""

    step: int
    megabytes: float
    files: int
    threads: int
    shm: int
    run_megabytes: float


def look(pid: int, run: Path, step: int) -> Sight:
    proc = Path(f"/proc/{pid}")
    status = dict(line.split(":", 1) for line in (proc / "status").read_text().splitlines())
    sizes = []
    for path in run.rglob("*"):
        try:
            sizes.append(path.stat().st_size)
        except OSError:
            continue  # a checkpoint that is just deleted
    return Sight(
        step,
        round(int(status["VmRSS"].split()[0]) / 1024, 1),
        len(list((proc / "fd").iterdir())),
        int(status["Threads"]),
        len(list(Path("/dev/shm").iterdir())),
        round(sum(sizes) / 1e6, 2),
    )


def last_step(file: Path) -> int:
    """The step of the last whole line, without reading the others."""
    if not file.exists():
        return 0
    with file.open("rb") as lines:
        lines.seek(max(0, file.stat().st_size - 2000))
        whole = lines.read().splitlines(keepends=True)
    done = [json.loads(line)["step"] for line in whole[-3:] if line.startswith(b"{") and line.endswith(b"\n")]
    return max(done, default=0)


def watch(folder: Path, steps: int, seconds: float) -> list[Sight]:
    """Train for `steps`, or as many as fit into `seconds`, and look twenty times."""
    faces, run = folder / "faces", folder / "run"
    make_faces(faces, "--people", "8", "--shard-samples", "32")
    settings = [*telling.SMALL, "train.record_samples=false", f"train.steps={steps}"]
    settings += ["train.global_batch=4", "train.checkpoint_every=100", "train.log_every=10", "train.images_every=500"]
    nursery = Nursery(folder / "tmp", *telling.MODULES)
    found: list[Sight] = []
    try:
        child = nursery.start(runs.command(1, faces, run, *settings)[1:], folder / "log")
        end = time.monotonic() + seconds
        while child.poll() is None and time.monotonic() < end:
            step = last_step(run / "metrics.jsonl")
            if step and (not found or step >= found[-1].step + max(1, steps // 40)):
                found.append(look(child.pid, run, step))
            time.sleep(0.2)
        if child.poll() is None:
            found.append(look(child.pid, run, last_step(run / "metrics.jsonl")))
        child.send(telling.signal.SIGTERM)
        assert child.wait(120) == 0, child.output
    finally:
        nursery.close()
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--seconds", type=float, default=7200.0, help="stop after so long, wherever the run is")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        for sight in watch(Path(place), options.steps, options.seconds):
            sys.stdout.write(json.dumps(asdict(sight)) + "\n")
