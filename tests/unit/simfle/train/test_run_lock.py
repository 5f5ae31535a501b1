"""Lock of a run's folder, and detection of its loss. The holders are separate processes."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from shards.io.atomic import RefusedFileError, replacing
from simfle.errors import RunDirLockedError, UserError
from simfle.slurm import events
from simfle.slurm.requeue import decide, end
from simfle.train import run_dir
from simfle.train.checkpointing import checkpoint
from simfle.train.run_lock import JobStart, RunLock, lock_run_dir
from simfle.train.telemetry.metrics import MetricLogger, SampleLog
from simfle.train.watchdog import Watchdog

pytestmark = pytest.mark.slow

HOLD = """
import sys, pathlib
from simfle.train.run_lock import JobStart, lock_run_dir
mine = JobStart(sys.argv[2], int(sys.argv[3])) if len(sys.argv) > 2 else None
with lock_run_dir(pathlib.Path(sys.argv[1]), 0.0, mine) as claim:
    for _ in sys.stdin:
        print(claim.lost_because(), flush=True)
"""


@contextmanager
def holder(run: Path, *start: str) -> Iterator["subprocess.Popen[str]"]:
    words = [sys.executable, "-c", HOLD, str(run), *start]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert ask(process) == ""
        yield process
        assert process.stdin
        process.stdin.close()


def ask(process: "subprocess.Popen[str]") -> str:
    assert process.stdin
    assert process.stdout
    process.stdin.write("\n")
    process.stdin.flush()
    return process.stdout.readline().strip()


def test_a_later_start_of_the_same_job_takes_the_run_over(tmp_path: Path) -> None:
    with holder(tmp_path, "17", "1") as old:
        for mine in (None, JobStart("18", 0), JobStart("18", 5), JobStart("17", 0)):  # no other start may
            with pytest.raises(UserError, match=rf"in use by process {old.pid} on .*, job 17 start 1. Fix: wait"):
                lock_run_dir(tmp_path, 0.0, mine).__enter__()
            assert ask(old) == ""
        with pytest.raises(RunDirLockedError, match=rf"still held by process {old.pid} on .*, job 17 start 1,"):
            lock_run_dir(tmp_path, 0.0, JobStart("17", 2)).__enter__()
        assert "job 17 start 2 has taken over the run from" in ask(old)
    with lock_run_dir(tmp_path, 0.0, JobStart("17", 2)) as claim:
        assert claim.lost_because() == ""


def test_one_that_has_lost_its_lock_or_its_folder_writes_nothing(tmp_path: Path) -> None:
    """A file server forgets locks of a node that was cut off: the next start then has the folder already."""
    run = tmp_path / "run"
    with lock_run_dir(run, 0.0, JobStart("17", 0)) as claim:
        progress = checkpoint.TrainState(4, 32, "config", "corpus", "sgd")
        checkpoint.write(run, progress, {}, {}, None, claim.check)
        with (run / ".lock").open("a+") as file:
            RunLock(run, file, JobStart("17", 1))
        later = checkpoint.TrainState(8, 64, "config", "corpus", "sgd")
        writer = checkpoint.AsyncCheckpointWriter(run, 1, 0.0, claim.check)
        writer.submit(later, {}, {})
        with pytest.raises(UserError, match="job 17 start 1 has taken over the run from"):
            writer.wait()
        assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-00000004"]
        shutil.rmtree(run)
        writer.submit(later, {}, {})
        with pytest.raises(UserError, match="the folder was deleted or moved while the run was training"):
            writer.wait()
        assert not run.exists()


def test_a_held_folder_is_requeued_and_an_old_start_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program = (
        "import sys, pathlib\n"
        "from simfle.errors import RunDirLockedError\n"
        "from simfle.slurm.task import TaskInfo, record_exit\n"
        "with record_exit(pathlib.Path(sys.argv[1]), TaskInfo('17', 1, 0, 1, 0, 1, ('n1',))):\n"
        "    raise RunDirLockedError('train.run_dir=x is held by y still')\n"
    )
    job = tmp_path / "slurm" / "job"
    job.mkdir(parents=True)
    subprocess.run([sys.executable, "-c", program, str(job)], check=False)
    decision = decide(events.task_exits(job, 1), 1, 69)
    assert (decision.requeue, decision.failure) == (True, True)
    assert decision.words == "rank 0 on n1: train.run_dir=x is held by y still"

    monkeypatch.setenv("SLURM_JOB_ID", "17")
    (job / "cluster.yaml").write_text("nodes: 1\ngpus_per_node: 0\n")
    events.append_event(tmp_path, "started", job="17", start=1)
    assert end(job, 137) == 0  # of start 0, on the node that was cut off
    assert [event["event"] for event in events.events(tmp_path)] == ["started"]
    assert "start 0 has ended" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["link", "fifo", "folder"])
def test_a_lock_that_is_something_else_is_not_written_to(kind: str, tmp_path: Path) -> None:
    """A link in a folder that others can write to may lead to any file of the user's: the lock is emptied."""
    precious = tmp_path / "precious"
    precious.write_text("mine\n")
    run = tmp_path / "run"
    run.mkdir()
    if kind == "link":
        (run / ".lock").symlink_to(precious)
    elif kind == "fifo":
        os.mkfifo(run / ".lock")
    else:
        (run / ".lock").mkdir()
    told = r"^train\.run_dir=.*(Fix: delete .*/\.lock and rerun|Is a directory\. Fix: use another folder)\.$"
    with pytest.raises(UserError, match=told):
        lock_run_dir(run).__enter__()
    assert precious.read_text() == "mine\n"


NO_LOCKS = """
import errno, sys

def refuse(event, arguments):
    if event == "fcntl.flock":
        raise OSError(errno.ENOSYS, "Function not implemented")

sys.addaudithook(refuse)
"""


def test_a_file_system_without_locks_is_not_taken_for_another_run(tmp_path: Path) -> None:
    """As Lustre answers where it is mounted without -o flock."""
    words = [sys.executable, "-c", f"{NO_LOCKS}{HOLD}", str(tmp_path / "run")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert "in use by" not in done.stderr
    assert "files there cannot be locked (Function not implemented)" in done.stderr.splitlines()[-1]
    assert "Fix: mount that file system with locks" in done.stderr.splitlines()[-1]


def test_what_a_run_writes_follows_no_link_at_a_temporary_name(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("mine\n")
    config, job = tmp_path / "run", tmp_path / "job"
    (config / "heartbeats").mkdir(parents=True)
    (job / "ends").mkdir(parents=True)
    (config / "metrics.jsonl").write_text('{"step": 1, "losses": {}}\n')
    for place in (".run.json.partial", ".metrics.jsonl.partial", "heartbeats/.rank-00000.json.partial"):
        (config / place).symlink_to(precious)
    (job / "ends/.0-00000.json.partial").symlink_to(precious)
    (tmp_path / f".whole.{os.getpid()}.tmp").symlink_to(precious)
    run_dir.write_run_json(config, {"steps": 1})
    MetricLogger(config, 1).close()
    events.write_task_exit(job, 0, events.TaskExit(0, "n1", events.DONE, ""))
    with Watchdog(config, 0, 1, 0.0), replacing(tmp_path / "whole") as file:
        file.write(b"{}")
    assert precious.read_text() == "mine\n"
    assert json.loads((config / "run.json").read_text()) == {"steps": 1}
    assert not (config / "run.json").is_symlink()


def test_records_that_are_fifos_are_refused(tmp_path: Path) -> None:
    """A process that opens a FIFO for writing waits for a reader forever."""
    (tmp_path / "samples").mkdir()
    os.mkfifo(tmp_path / "samples/rank-00000.jsonl")
    with pytest.raises(RefusedFileError, match="not a regular file"):
        SampleLog(tmp_path, 0)
    os.mkfifo(tmp_path / "metrics.jsonl")
    with pytest.raises(RefusedFileError, match="not a regular file but a FIFO"):
        MetricLogger(tmp_path, 0)
    (tmp_path / "metrics.jsonl").unlink()
    MetricLogger(tmp_path, 0).close()
    assert (tmp_path / "metrics.jsonl").stat().st_mode & 0o111 == 0
