"""Say what the machine lacks before anything is installed. Standard library only: runs before there is a venv."""

import importlib.util
import shutil
import sys
from pathlib import Path

NEEDED_GB = 15  # torch, CUDA libraries and DALI, unpacked, plus pip's temporary copies


def problems() -> list[str]:
    """One line per missing thing, each with the command that mends it."""
    found = []
    if sys.version_info < (3, 10):  # noqa: UP036 - this script is what tells a user of an old Python
        found.append(
            f"Python {sys.version.split()[0]} is too old: install 3.10 or newer, then: make PYTHON=python3.11 ..."
        )
    if importlib.util.find_spec("ensurepip") is None or importlib.util.find_spec("venv") is None:
        found.append("Python's venv module is missing: apt-get install python3-venv")
    free = shutil.disk_usage(Path(__file__).parent).free / 1e9
    if free < NEEDED_GB:
        found.append(f"{free:.0f} GB free on this disk, about {NEEDED_GB} GB are needed for the packages: make room")
    return found


if __name__ == "__main__":
    for line in problems():
        print(f"setup: {line}", file=sys.stderr)
    sys.exit(1 if problems() else 0)
