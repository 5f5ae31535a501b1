"""Execute SLURM.md: its output is what the launcher prints, and its commands are accepted."""

import re
import shlex
import sys
from pathlib import Path

import pytest
from distributed.launch import ROOT
from helpers import cli_runner
from helpers.synthetic_shards import make_faces

PAGE = (ROOT / "SLURM.md").read_text()
LINES = re.sub(r" *\\\n +", " ", PAGE).splitlines()  # join lines that end in a backslash
COMMANDS = [line.strip() for line in LINES if line.startswith(("    python ", "    simfle "))]
# Commands inside sentences of the page, and the tests that run them.
ELSEWHERE = {
    "scancel --signal=QUIT N": "test_pretrain.py",
    "scontrol update JobId=N StartTime=now": "slurm.py",
    "scontrol requeue": "test_pretrain.py",
}


@pytest.fixture(scope="module")
def enough(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return more faces than the recipe's global batch of 256."""
    out = tmp_path_factory.mktemp("enough") / "faces"
    make_faces(out, "--people", "32")
    return out


@pytest.fixture
def here(tmp_path: Path, enough: Path) -> Path:
    """Return a folder like the reader's: shards/faces, a run."""
    for name in ("launchers", "tools", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "faces").symlink_to(enough)
    (tmp_path / "runs" / "faces").mkdir(parents=True)
    (tmp_path / "runs" / "faces" / "config.yaml").write_text("train: {steps: 3}\n")
    return tmp_path


def run(folder: Path, command: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a launcher in this process, to import torch once; `simfle` in its own process. Return its output."""
    monkeypatch.chdir(folder)
    program, script, *words = shlex.split(command)
    if program == "simfle":
        done = cli_runner.run(sys.executable, "-m", "simfle", script, *words, timeout=800)
    else:
        done = cli_runner.run(sys.executable, ROOT / script, *words)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_script_on_the_page_is_what_dry_run_prints(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (command,) = [line for line in COMMANDS if line.endswith("--dry-run")]
    shown = re.search(r"```\n(#!/bin/bash.*?)```", PAGE, re.DOTALL).group(1)
    printed = run(here, command, monkeypatch).replace(str(here / "runs/faces"), "RUN").replace(sys.executable, "PYTHON")
    assert printed == shown


@pytest.mark.parametrize("command", [line for line in COMMANDS if not line.endswith("--dry-run")])
def test_what_the_page_tells_to_type_is_accepted(here: Path, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if "slurm_" in command:  # other tests submit jobs
        command = command.replace(" --follow", "").replace(" --local", "") + " --dry-run"
    if "bench " in command:  # the page's own numbers
        command += " --processes 1 --steps 4"
    assert run(here, command, monkeypatch)


@pytest.mark.parametrize("words", ELSEWHERE)
def test_what_it_says_in_passing_is_done_by_a_test(words: str) -> None:
    assert f"`{words}`" in PAGE or words in PAGE
    parts = [f'"{part}"' for part in words.split() if "N" not in part.split("=")[-1] and part != "N"]
    text = (ROOT / "tests" / "cluster" / ELSEWHERE[words]).read_text()
    assert all(part in text for part in parts), parts
