"""The revision that results are said to come from: of this program's own checkout, or none."""

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from simfle.config.schema import PretrainConfig
from simfle.slurm import submit
from simfle.slurm.config import ClusterConfig

ROOT = Path(__file__).parents[4]


def git(folder: Path, *words: str) -> str:
    own = ["-c", "user.name=tester", "-c", "user.email=tester@localhost"]
    done = subprocess.run(["git", "-C", str(folder), *own, *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def told(code: Path) -> str:
    """Return the revision that the copy of this program in `code` reports."""
    program = (
        f"import sys; sys.path.insert(0, {str(code)!r}); from simfle.runtime.provenance import "
        "git_revision as r; print(r())"
    )
    return subprocess.run(
        [sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True
    ).stdout.strip()


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A repository of another project, with one commit."""
    git(tmp_path, "init", "-q")
    (tmp_path / "file").touch()
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-q", "-m", "theirs")
    return tmp_path


def test_installed_inside_of_another_repository_it_has_no_revision(foreign: Path) -> None:
    installed = foreign / ".venv" / "lib"
    (installed / "simfle/runtime").mkdir(parents=True)
    (installed / "shards").mkdir()
    for name in ("simfle/__init__", "simfle/version", "simfle/runtime/__init__", "simfle/runtime/provenance"):
        shutil.copy(ROOT / f"{name}.py", installed / f"{name}.py")
    shutil.copy(ROOT / "shards/__init__.py", installed / "shards")
    assert told(installed) == "None"


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="this is no checkout")
def test_the_copy_of_a_submission_has_the_revision_that_it_was_made_of(foreign: Path) -> None:
    ours = git(ROOT, "rev-parse", "HEAD")
    assert told(ROOT) == ours
    config = PretrainConfig()
    config = replace(config, train=replace(config.train, run_dir=str(foreign / "runs/one")))
    assert told(submit.prepare(config, ClusterConfig()) / "code") == ours
