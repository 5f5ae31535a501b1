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
    """The commit of the checkout that this program runs from; None outside of one."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
