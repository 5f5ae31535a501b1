"""Messages of `make` before it installs: on a disk that is too small, almost too small, or large enough."""

import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults.scenario import mounted

SCRIPT = Path(__file__).parents[3] / "tools" / "check_system.py"
CHECKS = runpy.run_path(str(SCRIPT))
too_little, may_not_do = CHECKS["too_little"], CHECKS["may_not_do"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with mounted(tmp_path, megabytes=1):
        yield tmp_path


@pytest.mark.parametrize("free_gb", [0.0, 0.3, 7.9])
def test_a_disk_that_cannot_hold_the_packages_is_refused(free_gb: float) -> None:
    assert f"{free_gb:.1f} GB free" in too_little(free_gb)
    assert may_not_do(free_gb) is None  # one line, not two


@pytest.mark.parametrize("free_gb", [8.0, 10.9])
def test_a_disk_on_which_it_may_do_is_told_and_not_refused(free_gb: float) -> None:
    assert too_little(free_gb) is None
    assert f"{free_gb:.1f} GB free" in may_not_do(free_gb)


@pytest.mark.parametrize("free_gb", [11.0, 500.0])
def test_a_large_disk_is_not_talked_about(free_gb: float) -> None:
    assert too_little(free_gb) is None
    assert may_not_do(free_gb) is None


def checked(folder: Path) -> subprocess.CompletedProcess[str]:
    """The script's own process, in a checkout that lies in `folder`."""
    (folder / "tools").mkdir()
    shutil.copy(SCRIPT, folder / "tools")
    command = [sys.executable, str(folder / "tools" / SCRIPT.name)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_small_disk_ends_make_before_anything_is_installed(small_disk: Path) -> None:
    done = checked(small_disk)
    assert done.returncode == 1
    assert "free disk space" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_environment_that_is_there_need_not_fit_again(small_disk: Path) -> None:
    (small_disk / ".venv").mkdir()
    done = checked(small_disk)
    assert (done.returncode, done.stderr) == (0, "")
