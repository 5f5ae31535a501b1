"""Fixtures that several rooms share: a corpus of drawn faces, built once per session by the real command."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
os.environ.setdefault("OMP_NUM_THREADS", "1")  # one order of sums, and two cores for several processes


@pytest.fixture(scope="session")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of 240 drawn faces of 20 people, three quarters in split train: several shards of 32 samples."""
    out = tmp_path_factory.mktemp("shards") / "faces"
    size = ["--people", "20", "--images-per-person", "12", "--size", "64", "--shard-samples", "32", "--workers", "1"]
    command = [sys.executable, "tools/build_shards.py", "procedural", str(out), *size]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out
