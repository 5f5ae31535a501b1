"""Measure the resources of long work: thousands of small steps with checkpoints, then hundreds of evaluations.

PYTHONPATH=.:tests python tests/soak/leak_check.py --steps 20000 --seeds 200
"""

import argparse
import json
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from distributed import runs
from faults import scenario as telling
from faults.fork_server import Child, ForkServer
from helpers.synthetic_shards import make_faces


@dataclass(frozen=True)
class Sight:
    """A process after `done` steps or evaluations. megabytes: resident; files: open ones; shm: files in /dev/shm;
    run_megabytes: the run's folder.
    """

    done: int
    megabytes: float
    files: int
    threads: int
    shm: int
    run_megabytes: float


def look(pid: int, run: Path, done: int) -> Sight | None:
    """Return the resources of a process now, or None if it has just ended."""
    proc = Path(f"/proc/{pid}")
    status = dict(line.split(":", 1) for line in (proc / "status").read_text().splitlines())
    if "VmRSS" not in status:  # it waits for its parent to take note
        return None
    sizes = []
    for path in run.rglob("*"):
        try:
            sizes.append(path.stat().st_size)
        except OSError:
            continue  # a checkpoint that is just deleted
    return Sight(
        done,
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


def units_done(run: Path) -> int:
    return sum(1 for _ in run.glob("eval/*/*/*/seed-*.json"))


def watch(child: Child, run: Path, count: Callable[[], int], total: int, seconds: float) -> list[Sight]:
    """Look at a process forty times until it has done `total`, or as much as fits into `seconds`; then stop it."""
    found: list[Sight] = []
    end = time.monotonic() + seconds
    while child.poll() is None and time.monotonic() < end:
        done = count()
        if done and (not found or done >= found[-1].done + max(1, total // 40)):
            sight = look(child.pid, run, done)
            found += [sight] if sight else []
        time.sleep(0.2)
    child.send(signal.SIGTERM)
    code = child.wait(120)
    assert code in (0, -signal.SIGTERM), child.output
    return found


def grow(folder: Path, steps: int, seeds: int, seconds: float) -> dict[str, list[Sight]]:
    """Train one run of the tests' model in one process, and evaluate its backbone with many seeds in another."""
    faces, run = folder / "faces", folder / "run"
    make_faces(faces, "--people", "8", "--shard-samples", "32")
    settings = [*telling.SMALL, "train.log_sample_ids=false", f"train.steps={steps}"]
    settings += [
        "train.global_batch=4",
        "train.checkpoint_every=100",
        "train.log_every=10",
        "train.log_images_every=500",
    ]
    words = ["launchers/evaluate.py", "--run", str(run), f"shards=[{faces}]", "protocols=[linear_fast,knn,linear]"]
    words += ["val_fraction=0.3", f"seeds={list(range(seeds))}", "bootstrap_samples=20", "linear.epochs=2"]
    nursery = ForkServer(folder / "tmp", *telling.MODULES)
    try:
        child = nursery.start(runs.command(1, faces, run, *settings)[1:], folder / "log")
        found = {"training": watch(child, run, lambda: last_step(run / "metrics.jsonl"), steps, seconds)}
        child = nursery.start(words, folder / "log")
        return found | {"evaluation": watch(child, run, lambda: units_done(run), 5 * seeds, seconds)}
    finally:
        nursery.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--seeds", type=int, default=200, help="of the evaluations")
    parser.add_argument("--seconds", type=float, default=7200.0, help="stop each after so long, wherever it is")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        for what, sights in grow(Path(place), options.steps, options.seeds, options.seconds).items():
            for sight in sights:
                sys.stdout.write(json.dumps({"of": what} | asdict(sight)) + "\n")
