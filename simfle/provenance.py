"""What numbers were computed with: versions of everything that can change them."""

import platform
import subprocess
from importlib import metadata
from pathlib import Path

PACKAGES = (
    "simfle",
    "torch",
    "timm",
    "deepspeed",
    "accelerate",
    "numpy",
    "scikit-learn",
    "nvidia-dali-cuda130",
    "opencv-python-headless",
)
REVISION = "revision.txt"  # beside this file, in a copy of the program that is no checkout


def versions() -> dict[str, str]:
    """Python, machine, and the packages above as far as they are installed."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def git_revision() -> str | None:
    """The commit of the checkout that this program runs from, or that a copy of it was made of; None if neither."""
    here = Path(__file__)
    copied = here.with_name(REVISION)
    if copied.is_file():
        return copied.read_text().strip() or None
    if _git("ls-files", "--error-unmatch", here.name) is None:
        return None  # installed somewhere inside of another repository, whose commits say nothing of us
    return _git("rev-parse", "HEAD")


def _git(*words: str) -> str | None:
    """What git says of this file's folder; None where it fails, or is not there."""
    command = ["git", "-C", str(Path(__file__).parent), *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
