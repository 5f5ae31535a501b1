"""Record the versions of everything that can change results."""

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
REVISION = "revision.txt"  # holds the revision in a copy of the program without git, in the package's folder


def versions() -> dict[str, str]:
    """Return versions of Python, the machine and the installed packages of PACKAGES."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def git_revision() -> str | None:
    """Return the commit of this program's checkout, or of the checkout it was copied from; None if there is neither."""
    here = Path(__file__)
    copied = here.parents[1] / REVISION
    if copied.is_file():
        return copied.read_text().strip() or None
    if _git("ls-files", "--error-unmatch", here.name) is None:
        return None  # installed inside another repository, whose commits are unrelated
    return _git("rev-parse", "HEAD")


def _git(*words: str) -> str | None:
    """Return the output of git in this file's folder, or None if git fails or is missing."""
    command = ["git", "-C", str(Path(__file__).parent), *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
