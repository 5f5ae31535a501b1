"""Say what the machine lacks before anything is installed. Standard library only: runs before there is a venv."""

import importlib.util
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Measured on a fresh environment: torch, CUDA libraries and DALI unpacked take 7.9 GB and, with pip's temporary copies,
# 10.9 GB at their height. The copies may lie on another disk (TMPDIR), so only the first is a reason to refuse.
KEPT_GB = 8
HEIGHT_GB = 11


def lacks() -> list[str]:
    """One line per missing thing, each with the command that mends it."""
    found = []
    if sys.version_info < (3, 10):  # noqa: UP036 - this script is what tells a user of an old Python
        found.append(
            f"Python {sys.version.split()[0]} is too old: install 3.10 or newer, then: make PYTHON=python3.11 ..."
        )
    if importlib.util.find_spec("ensurepip") is None or importlib.util.find_spec("venv") is None:
        found.append("Python's venv module is missing: apt-get install python3-venv")
    return found


def too_little(free_gb: float) -> str | None:
    """Why an installation into an empty environment cannot end on a disk with so much free."""
    if free_gb >= KEPT_GB:
        return None
    return f"{free_gb:.1f} GB free on this disk, the packages take {KEPT_GB} GB: make room"


def may_not_do(free_gb: float) -> str | None:
    """A word of warning where pip's temporary copies may not fit beside the packages."""
    if not KEPT_GB <= free_gb < HEIGHT_GB:
        return None
    return (
        f"{free_gb:.1f} GB free on this disk, installing takes {HEIGHT_GB} GB at its height, of which {KEPT_GB} stay: "
        "if it fails, make room or set TMPDIR to another disk"
    )


def main() -> int:
    found, warning = lacks(), None
    if not (ROOT / ".venv").exists():  # what is there already need not fit again
        free = shutil.disk_usage(ROOT).free / 1e9
        found += filter(None, [too_little(free)])
        warning = may_not_do(free)
    for line in found:
        print(f"setup: {line}", file=sys.stderr)
    if not found and warning:
        print(f"setup: {warning}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
