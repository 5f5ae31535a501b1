"""Slurm's programs that hang, say nonsense or give a number twice, and run folders that are not as they should be."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from distributed.launch import ROOT, environment

from simfle.commands.watch import ENDED, facts, screen
from simfle.errors import UserError
from simfle.runtime.console import Console
from simfle.slurm import events, scheduler
from simfle.slurm.config import ClusterConfig
from simfle.slurm.events import TaskExit
from simfle.slurm.requeue import end
from simfle.slurm.status import find_runs, status
from simfle.slurm.submit import submit

pytestmark = pytest.mark.slow


def program(folder: Path, name: str, text: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of programs that come before all others."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    monkeypatch.setattr(scheduler, "_silences", [])
    return tmp_path / "bin"


def test_a_wrapped_program_that_hangs_is_ended_with_what_it_started_and_others_are_not_asked(
    programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A site's script around scontrol: killed alone, it would leave a process that holds the pipe open."""
    monkeypatch.setattr(scheduler, "SECONDS", 0.5)
    for name in ("scontrol", "sacct"):
        program(programs, name, f"echo $$ >> {tmp_path}/asked\nsleep 600 &\necho $! >> {tmp_path}/started\nwait")
    assert scheduler.state("17") == ""
    asked = len((tmp_path / "asked").read_text().split())
    for job in range(20):
        run = tmp_path / "runs" / str(job)
        events.append_event(run, "submitted", job=str(job), folder="a")
        assert status(run).state == "not started"
    assert len((tmp_path / "asked").read_text().split()) == asked
    for number in (tmp_path / "started").read_text().split():
        state = Path(f"/proc/{number}/stat")
        assert not state.exists() or state.read_text().rpartition(")")[2].split()[0] in "ZX"
    with pytest.raises(UserError, match=r"job 17 could not be requeued: .*timed out"):
        scheduler.requeue("17")


def test_another_job_of_the_same_number_does_not_tell_of_a_run(programs: Path, tmp_path: Path) -> None:
    """A reinstalled controller counts from 1 again."""
    program(programs, "scontrol", "echo JobId=17 JobState=RUNNING StdOut=/home/other/slurm/train-17.out")
    program(programs, "sacct", "echo RUNNING")
    events.append_event(tmp_path, "submitted", job="17", folder="20260102-030405")
    assert status(tmp_path).state == "not started"
    mine = f"{tmp_path}/slurm/20260102-030405/17_0_log.out"
    program(programs, "scontrol", f"echo JobId=17 JobState=RUNNING StdOut={mine}")
    assert status(tmp_path).state == "running"


def test_an_earlier_job_of_the_same_number_does_not_end_this_one(
    programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its later starts are not starts of this one, which would leave without being requeued; nor are its failures."""
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    program(programs, "scontrol", "echo JobId=17 JobState=RUNNING RunTime=00:10:00 TimeLimit=01:00:00")
    for start in range(3):
        events.append_event(tmp_path, "started", job="17", folder="old", start=start)
        facts = {"start": start, "failure": True, "step": 0, "reason": "lost", "requeue": start < 2}
        events.append_event(tmp_path, "ended", job="17", folder="old", **facts)
    job = tmp_path / "slurm" / "new"
    job.mkdir()
    (job / "cluster.yaml").write_text("nodes: 1\ngpus_per_node: 0\nmax_consecutive_failures: 2\n")
    events.write_task_exit(job, 0, TaskExit(0, "n0", events.PEER_LOST, "a peer is peer_lost"))
    end(job, 69)
    last = events.events(tmp_path)[-1]
    assert (last["event"], last["folder"], last["requeue"]) == ("ended", "new", True)


@pytest.mark.parametrize("says", ["echo hello there", "true", "echo Submitted batch job ?"])
def test_sbatch_that_names_no_job_is_told_in_one_line(says: str, programs: Path, tmp_path: Path) -> None:
    program(programs, "sbatch", says)
    program(programs, "srun", "true")
    job = tmp_path / "run" / "slurm" / "job"
    job.mkdir(parents=True)
    with pytest.raises(UserError, match=r'^sbatch: no job number in the output, but ".*"?\. Fix: .*squeue --me'):
        submit(job, ClusterConfig(gpus_per_node=0))
    assert not events.events(tmp_path / "run")


def test_the_end_of_a_job_whose_folder_was_deleted_is_one_line(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "simfle.slurm.requeue", str(tmp_path / "run/slurm/job"), "0"]
    own = environment(SLURM_JOB_ID="17")
    done = subprocess.run(words, cwd=ROOT, env=own, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith(f"error: {tmp_path}/run/slurm/job: ")
    assert "not requeued" in done.stderr


def odd(run: Path, kind: str) -> None:
    """Put something else where a run keeps a file."""
    (run / "slurm").mkdir()
    place = run / ("slurm/events.jsonl" if kind.startswith("events") else "metrics.jsonl")
    if kind.endswith("folder"):
        place.mkdir()
    elif kind.endswith("fifo"):
        os.mkfifo(place)
    else:
        place.symlink_to(place.name)


@pytest.mark.parametrize("kind", ["metrics folder", "metrics fifo", "metrics loop", "events folder", "events fifo"])
def test_one_run_that_cannot_be_read_does_not_hide_the_others(kind: str, tmp_path: Path) -> None:
    for name in ("bad", "good"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").touch()
    odd(tmp_path / "bad", kind)
    found = [status(run) for run in find_runs(tmp_path)]
    assert [(each.run.name, each.state) for each in found] == [("bad", "unreadable"), ("good", "not started")]
    assert str(tmp_path / "bad") in found[0].reason
    assert facts(found[0])[-1] == ("reason", found[0].reason)
    screen(find_runs(tmp_path), Console())


def test_a_run_that_is_deleted_is_gone_and_no_longer_watched(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").touch()
    assert status(tmp_path / "run").state == "not started"
    shutil.rmtree(tmp_path / "run")
    assert status(tmp_path / "run").state == "gone"
    assert "gone" in ENDED


# Writes checkpoints and prunes the one before, as a run does, only faster.
PRUNE = """
import pathlib, shutil, sys
run = pathlib.Path(sys.argv[1])
for step in range(1, 1 << 30):
    parts = run / f"checkpoints/.step-{step:08d}.partial"
    parts.mkdir()
    (parts / "COMPLETE").write_text("{}")
    parts.rename(run / f"checkpoints/step-{step:08d}")
    old = run / f"checkpoints/step-{step - 1:08d}"
    if old.exists():
        (old / "COMPLETE").unlink()
        shutil.rmtree(old)
"""


def test_a_run_is_read_while_its_checkpoints_are_pruned(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    with subprocess.Popen([sys.executable, "-c", PRUNE, str(tmp_path)]) as writer:
        try:
            states = {status(tmp_path).state for _ in range(2000)}
        finally:
            writer.kill()
    assert states <= {"not started", "stopped"}
