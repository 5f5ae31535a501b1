"""`launchers/slurm_eval.py` on a real cluster: one task per unit; complete units are skipped."""

import subprocess
import sys
from pathlib import Path

import pytest
from cluster.slurm import Cluster, until
from distributed import runs
from distributed.launch import ROOT, environment

UNITS = 4  # linear_fast and knn, for the run's backbone and a random one


def submit(slurm: Cluster, run: Path, faces: Path, *words: str) -> tuple[str, str]:
    """Return the printed output and the job number."""
    command = [sys.executable, "launchers/slurm_eval.py", "--run", str(run), "--cluster", "configs/cluster/cpu.yaml"]
    command += ["--protocols", "linear_fast,knn", f"shards=[{faces}]", "val_fraction=0.3", *words]
    own = environment(**slurm.environment)
    done = subprocess.run(command, cwd=ROOT, env=own, capture_output=True, text=True, timeout=800, check=False)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("job ")]
    return done.stderr, line.split()[1].rstrip(":")


def results(run: Path) -> dict[Path, bytes]:
    return {path.relative_to(run): path.read_bytes() for path in sorted(run.glob("eval/*/*/*/seed-*.json"))}


def wait(slurm: Cluster, number: str, run: Path) -> None:
    """Wait until no task of the array is left; fail with the logs."""
    until(lambda: not slurm.call("squeue", "--noheader", "--jobs", number, check=False).strip(), 240)
    logs = [file.read_text() for file in run.glob("slurm/*-eval*/*_log.out")]
    assert not any("error:" in log for log in logs), logs


@pytest.fixture
def finished(faces: Path, tmp_path: Path) -> Path:
    """Return the folder of a finished run."""
    runs.finish(1, faces, tmp_path / "run", "train.steps=2")
    return tmp_path / "run"


def test_every_unit_is_a_task_and_what_is_done_is_skipped(slurm: Cluster, faces: Path, finished: Path) -> None:
    printed, number = submit(slurm, finished, faces, "--watch")
    assert f"{UNITS} tasks" in printed
    assert "checkpoint of step 2" in printed
    wait(slurm, number, finished)
    first = results(finished)
    assert len(first) == UNITS
    _, number = submit(slurm, finished, faces)
    wait(slurm, number, finished)
    assert results(finished) == first
    logs = [file.read_text() for file in finished.glob(f"slurm/*-eval*/{number}_*_log.out")]
    assert sum("already complete" in log for log in logs) == UNITS
