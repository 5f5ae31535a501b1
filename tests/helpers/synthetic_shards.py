"""Shards of synthetic faces, built with the users' command."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def make_faces(out: Path, *options: str) -> None:
    """Build twelve images of 64 px per person; `options` are those of `build_shards.py procedural`."""
    size = ["--images-per-person", "12", "--size", "64", "--workers", "1"]
    command = [sys.executable, "tools/build_shards.py", "procedural", str(out), *size, *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
