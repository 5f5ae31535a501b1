"""SIGKILL at random moments of a build: whatever stands there then, the resumed build ends with the same bytes.

A few kills over drawn faces by default. For many kills over another corpus, which takes minutes:
SHARDS_KILLS=30 SHARDS_KILL_FACES=path/to/faces python -m pytest tests/unit/shards/build/test_builder_kill.py -s
--timeout 7200
"""

import hashlib
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from helpers.corpus_fixtures import BUILD, VERIFY, run

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("SHARDS_KILLS", "4"))
FACES = os.environ.get("SHARDS_KILL_FACES", "")
SEED = int(os.environ.get("SHARDS_KILL_SEED", "0"))
WORKERS = (1, 2, 3)
PEOPLE = r"^(?:.*/)?(.*?)_?\d+\.\w+$"
FOLDER = ["folder", FACES, "--val-fraction", 0.2, "--group-pattern", PEOPLE, "--shard-samples", 128]
DRAWN = ["procedural", "--people", 24, "--images-per-person", 7, "--size", 96, "--shard-samples", 8]


def digests(folder: Path) -> dict[str, str]:
    """sha256 of every file."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def built(command: list[object]) -> float:
    """Run a build to its end in a separate process; return its duration."""
    start = time.monotonic()
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    return time.monotonic() - start


def killed(command: list[object], after: float) -> bool:
    """Start a command in a separate process group and kill the group; return whether it was still running."""
    words = [str(word) for word in command]
    output = subprocess.DEVNULL
    process = subprocess.Popen(words, stdout=output, stderr=output, start_new_session=True)
    try:
        process.wait(after)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return True
    return False


def test_killed_at_random_moments(tmp_path: Path) -> None:
    command = [*BUILD, *(FOLDER if FACES else DRAWN)]
    command.insert(len(BUILD) + 1 + bool(FACES), tmp_path / "out")
    length = built([*command, "--workers", 2])
    whole = digests(tmp_path / "out")
    assert run(*VERIFY, tmp_path / "out").returncode == 0
    shutil.rmtree(tmp_path / "out")

    draw = random.Random(SEED)
    kills = same = 0
    resumed_from = []
    while kills < KILLS:
        # As a build is killed earlier or later, and perhaps killed again while it resumes, all its stages are met.
        for workers in draw.choices(WORKERS, k=draw.choice((1, 1, 2))):
            if killed([*command, "--workers", workers], draw.uniform(0.1, 0.9) * length):
                kills += 1
                work = tmp_path / "out.partial" / "work"
                resumed_from.append(len(list(work.glob("*-*.json"))) if (work / "plan.json").exists() else -1)
        built([*command, "--workers", draw.choice(WORKERS)])
        assert digests(tmp_path / "out") == whole
        assert not (tmp_path / "out.partial").exists()
        same += 1
        shutil.rmtree(tmp_path / "out")
        print(f"{kills} kills, {same} builds byte-identical", flush=True)
    assert same
    print(f"a build takes {length:.1f} s; shards that stood at each kill (-1: not even the plan): {resumed_from}")
