"""Check the machine before installation, with the standard library only, because there is no venv yet."""

import importlib.util
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Measured in a fresh environment: torch, CUDA libraries and DALI take 7.9 GB unpacked, and up to 10.9 GB with pip's
# temporary copies. The copies may be on another disk (TMPDIR), so only the first value is required.
KEPT_GB = 8
HEIGHT_GB = 11


def lacks() -> list[str]:
    """Return one line per missing requirement, each with a fix."""
    found = []
    if sys.version_info < (3, 11):  # required by the versions in constraints.txt
        found.append(
            f"Python {sys.version.split()[0]} is too old. Fix: install 3.11 or newer, then make PYTHON=python3.11 ..."
        )
    if importlib.util.find_spec("ensurepip") is None or importlib.util.find_spec("venv") is None:
        found.append("Python's venv module is missing. Fix: apt-get install python3-venv")
    return found


def too_little(free_gb: float) -> str | None:
    """Return why a new installation does not fit into the free space, or None if it fits."""
    if free_gb >= KEPT_GB:
        return None
    return f"{free_gb:.1f} GB free on this disk, but the packages take {KEPT_GB} GB. Fix: free disk space"


def may_not_do(free_gb: float) -> str | None:
    """Return a warning if pip's temporary copies may not fit beside the packages."""
    if not KEPT_GB <= free_gb < HEIGHT_GB:
        return None
    return (
        f"{free_gb:.1f} GB free on this disk, but installation takes up to {HEIGHT_GB} GB ({KEPT_GB} afterwards). "
        "Fix, if it fails: free disk space or set TMPDIR to another disk"
    )


def main() -> int:
    found, warning = lacks(), None
    if not (ROOT / ".venv").exists():  # an existing environment needs no more space
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
