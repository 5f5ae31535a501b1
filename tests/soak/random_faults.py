"""Many random faults over one run, and over one build of shards; in the end both must be as if nothing had been.

make soak, or: PYTHONPATH=.:tests python tests/soak/random_faults.py --faults 100 --seed 0
"""

import argparse
import hashlib
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from distributed import runs
from faults import scenario as telling
from faults.fork_server import At, Child, ForkServer
from helpers.synthetic_shards import make_faces

KILLED = -signal.SIGKILL
STEPS_PER_FAULT = 2  # about what a start gets done before it is hurt
LIVE = ("kill", "kill at a file", "torn write", "term", "int", "usr2", "disk full", "stop")
DAMAGE = ("bit", "empty", "missing", "marker", "metrics", "board", "times", "stray")


def soak_run(nursery: ForkServer, folder: Path, faces: Path, faults: int, seed: int) -> tuple[Counter[str], str]:
    """Hurt one run `faults` times; the kinds, with their number. AssertionError where anything differs in the end.

    Told beside: the steps that were saved when the last fault had been done, of all. Faults before a run's first
    checkpoint would prove little.
    """
    draw = random.Random(seed)
    steps = max(12, STEPS_PER_FAULT * faults)
    settings = (*telling.SMALL, f"train.steps={steps}", "train.checkpoint_every=2")
    done: Counter[str] = Counter()

    def start(name: str, *more: str, **how: object) -> Child:
        words = runs.command(1, faces, folder / name, *settings, *more)[1:]
        return nursery.start(words, folder / "log", **how)

    whole = start("whole")
    assert whole.wait(3600) == 0, whole.output
    run = folder / "run"
    while sum(done.values()) < faults:
        if runs.metrics(run) and draw.random() < 0.3 and len(list(run.glob("checkpoints/step-*/COMPLETE"))) > 1:
            kind = draw.choice(DAMAGE)
            damage(run, kind, draw)
            done[f"damage: {kind}"] += 1
        kind = draw.choice(LIVE)
        if hurt(run, kind, draw, start):
            done[kind] += 1
    saved = newest_step(run)
    last = start("run")
    assert last.wait(3600) == 0, last.output
    telling.check_same(run, folder / "whole")
    telling.check_tidy(run)
    return done, f"{saved} of {steps} steps"


def hurt(run: Path, kind: str, draw: random.Random, start: object) -> bool:
    """Start the run, hurt it, and check how it ends; whether it lived long enough to be hurt."""
    assert callable(start)
    if kind == "kill at a file":
        child = start("run", at=At(str(run), nth=draw.randint(1, 60)))
        return ended(child, KILLED, 0) == KILLED
    if kind == "torn write":
        child = start("run", largest=draw.randint(20_000, 3_000_000), deadly=True)
        return ended(child, -signal.SIGXFSZ, 0) == -signal.SIGXFSZ
    before, wanted = file_number(run), newest_step(run) + draw.randint(0, 5)
    child = start("run")
    deadline = time.monotonic() + 300
    # A start drops the lines of steps that its checkpoint does not know, in a new file.
    while child.poll() is None and (file_number(run) == before or len(runs.metrics(run)) < wanted):
        assert time.monotonic() < deadline, child.output
        time.sleep(0.01)
    time.sleep(draw.uniform(0, 0.2))
    if child.poll() is not None:
        assert child.code == 0, child.output
        return False
    if kind == "stop":
        child.send(signal.SIGSTOP)
        time.sleep(0.3)
        child.send(signal.SIGCONT)
        child.send(signal.SIGTERM)
        ended(child, 0, -signal.SIGTERM)
    elif kind == "kill":
        child.send(signal.SIGKILL)
        ended(child, KILLED, 0)
    elif kind == "disk full":
        child.limit_files(draw.choice((10_000, 100_000, 2_000_000)))
        if ended(child, 1, 0) == 1:
            assert child.last_line.startswith("error: "), child.output
            assert "Traceback" not in child.output.rpartition("resuming after")[2], child.output
    else:
        number = {"term": signal.SIGTERM, "int": signal.SIGINT, "usr2": signal.SIGUSR2}[kind]
        child.send(number)
        ended(child, 0, -number, 130)  # before its first step a run has nothing to save, and dies of the signal
    return True


def newest_step(run: Path) -> int:
    """Return the step of the newest complete checkpoint, from which the next start resumes."""
    return max((int(marker.parent.name[5:]) for marker in run.glob("checkpoints/step-*/COMPLETE")), default=0)


def file_number(run: Path) -> int:
    """Return the last step of metrics.jsonl, or 0 if there is no such file."""
    file = run / "metrics.jsonl"
    return file.stat().st_ino if file.exists() else 0


def ended(child: Child, *codes: int) -> int:
    code = child.wait(600)
    assert code in codes, f"exit code {code}, not one of {codes}:\n{child.output}"
    return code


def damage(run: Path, kind: str, draw: random.Random) -> None:
    """Corrupt files between two starts: only the newest checkpoint, so that an older one stays valid."""
    newest = max(marker.parent for marker in run.glob("checkpoints/step-*/COMPLETE"))
    file = newest / draw.choice(("model.safetensors", "optim.safetensors", "state.json"))
    if kind == "bit":
        content = bytearray(file.read_bytes())
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        file.write_bytes(content)
    elif kind == "empty":
        file.write_bytes(b"")
    elif kind == "missing":
        file.unlink()
    elif kind == "marker":
        (newest / "COMPLETE").unlink()
    elif kind == "metrics":
        with (run / "metrics.jsonl").open("ab") as end:
            end.write(b'{"step": 7, "losses": {"to')
    elif kind == "board":
        shutil.rmtree(run / "tensorboard", ignore_errors=True)
    elif kind == "times":
        for path in run.rglob("*"):
            when = draw.uniform(0, 4e9)
            telling.os.utime(path, (when, when))
    else:
        (run / "checkpoints" / f".step-{draw.randrange(10**8):08d}.partial").mkdir()


def soak_build(nursery: ForkServer, folder: Path, faults: int, seed: int) -> tuple[Counter[str], str]:
    """Hurt builds of the same shards `faults` times, each build until it stands; all must have the same bytes.

    Told beside: how many builds that were hurt came to their end.
    """
    draw = random.Random(seed)
    out = folder / "shards"
    build = ["tools/build_shards.py", "procedural", str(out), "--people", "6", "--images-per-person", "4"]
    build += ["--size", "64", "--shard-samples", "4", "--workers", "1"]
    whole = nursery.start(build, folder / "log")
    assert whole.wait(600) == 0, whole.output
    expected = digests(out)
    shutil.rmtree(out)
    done: Counter[str] = Counter()
    built = 0
    while sum(done.values()) < faults:
        kind = draw.choice(("kill at a file", "kill", "torn write", "disk full", "int", "term"))
        if hurt_build(nursery, build, folder, kind, draw):
            done[kind] += 1
        if out.exists() or sum(done.values()) == faults:
            # Also one that stands is started again: killed after its last rename, it has not cleaned up.
            last = nursery.start(build, folder / "log")
            assert last.wait(600) == 0, last.output
            assert digests(out) == expected
            assert not out.with_name("shards.partial").exists()
            shutil.rmtree(out)
            built += 1
    return done, f"{built} builds"


def hurt_build(nursery: ForkServer, build: list[str], folder: Path, kind: str, draw: random.Random) -> bool:
    log = folder / "log"
    if kind == "kill at a file":
        at = At(str(folder / "shards"), nth=draw.randint(1, 80))
        return ended(nursery.start(build, log, at=at), KILLED, 0) == KILLED
    if kind in ("torn write", "disk full"):
        size = draw.randint(200, 15_000)
        child = nursery.start(build, log, largest=size, deadly=kind == "torn write")
        code = ended(child, -signal.SIGXFSZ if kind == "torn write" else 1, 0)
        assert code != 1 or child.last_line.startswith("error: "), child.output
        return code != 0
    child = nursery.start(build, log)
    time.sleep(draw.uniform(0.0, 1.0))
    if child.poll() is not None:
        assert child.code == 0, child.output
        return False
    number = {"kill": signal.SIGKILL, "int": signal.SIGINT, "term": signal.SIGTERM}[kind]
    child.send(number)
    return ended(child, -number, 130, 0) != 0


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def nursery_of(folder: Path) -> ForkServer:
    return ForkServer(folder / "tmp", *telling.MODULES, "simfle.commands.shards.build", "shards.sources.registry")


def soak(folder: Path, nursery: ForkServer, run_faults: int, build_faults: int, seed: int) -> dict[str, Any]:
    """Both, in `folder`, which holds the nursery's; what was done, and how long it took."""
    faces = folder / "faces"
    make_faces(faces, "--people", "8", "--shard-samples", "32")
    found: dict[str, Any] = {}
    try:
        for name, count in (("build", build_faults), ("run", run_faults)):
            began, before = time.monotonic(), len(nursery.children)
            if name == "build":
                done, reached = soak_build(nursery, folder, count, seed)
            else:
                done, reached = soak_run(nursery, folder, faces, count, seed)
            seconds, starts = round(time.monotonic() - began), len(nursery.children) - before
            about = {"faults": sum(done.values()), "starts": starts, "seconds": seconds, "reached": reached}
            found[name] = about | {"kinds": dict(sorted(done.items()))}
    finally:
        left = [pid for child in nursery.children for pid in telling.session(child.pid)]
        for child in nursery.children:
            child.send(signal.SIGKILL)
    assert not left
    assert not sorted(path.name for path in (folder / "tmp").iterdir())
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=100, help="of each: over the run, and over the build")
    parser.add_argument("--build-faults", type=int, help="over the build, if not as many")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        builds = options.faults if options.build_faults is None else options.build_faults
        parent = nursery_of(Path(place))
        try:
            result = soak(Path(place), parent, options.faults, builds, options.seed)
        finally:
            parent.close()
    sys.stdout.write(json.dumps(result, indent=1) + "\n")
