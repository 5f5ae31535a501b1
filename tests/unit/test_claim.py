"""Who holds a run's folder, and how it learns that it no longer does. Holders are processes of their own."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from simfle.errors import FolderHeld, UserError
from simfle.slurm import record
from simfle.slurm.ending import decide, end
from simfle.train import checkpoint
from simfle.train.claim import Claim, JobStart, claimed

HOLD = """
import sys, pathlib
from simfle.train.claim import JobStart, claimed
mine = JobStart(sys.argv[2], int(sys.argv[3])) if len(sys.argv) > 2 else None
with claimed(pathlib.Path(sys.argv[1]), 0.0, mine) as claim:
    for _ in sys.stdin:
        print(claim.lost(), flush=True)
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
        for mine in (None, JobStart("18", 0), JobStart("18", 5), JobStart("17", 0)):  # nobody else may
            with pytest.raises(UserError, match=rf"in use by process {old.pid} on .*, job 17 start 1; wait"):
                claimed(tmp_path, 0.0, mine).__enter__()
            assert ask(old) == ""
        with pytest.raises(FolderHeld, match=rf"held by process {old.pid} on .*, job 17 start 1 still"):
            claimed(tmp_path, 0.0, JobStart("17", 2)).__enter__()
        assert "job 17 start 2 has taken the run over" in ask(old)
    with claimed(tmp_path, 0.0, JobStart("17", 2)) as claim:
        assert claim.lost() == ""


def test_one_that_has_lost_its_lock_or_its_folder_writes_nothing(tmp_path: Path) -> None:
    """A file server forgets locks of a node that was cut off: the next start then has the folder already."""
    run = tmp_path / "run"
    with claimed(run, 0.0, JobStart("17", 0)) as claim:
        progress = checkpoint.Progress(4, 32, "config", "corpus", "sgd")
        checkpoint.write(run, progress, {}, {}, None, claim.check)
        with (run / ".lock").open("a+") as file:
            Claim(run, file, JobStart("17", 1))
        later = checkpoint.Progress(8, 64, "config", "corpus", "sgd")
        writer = checkpoint.Writer(run, 1, 0.0, claim.check)
        writer.submit(later, {}, {})
        with pytest.raises(UserError, match="job 17 start 1 has taken the run over"):
            writer.wait()
        assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-00000004"]
        shutil.rmtree(run)
        writer.submit(later, {}, {})
        with pytest.raises(UserError, match="the folder was deleted or moved away while the run was training"):
            writer.wait()
        assert not run.exists()


def test_a_held_folder_is_requeued_and_an_old_start_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program = (
        "import sys, pathlib\n"
        "from simfle.errors import FolderHeld\n"
        "from simfle.slurm.job import Place, ending\n"
        "with ending(pathlib.Path(sys.argv[1]), Place('17', 1, 0, 1, 0, 1, ('n1',))):\n"
        "    raise FolderHeld('train.run=x is held by y still')\n"
    )
    job = tmp_path / "slurm" / "job"
    job.mkdir(parents=True)
    subprocess.run([sys.executable, "-c", program, str(job)], check=False)
    decision = decide(record.ends(job, 1), 1, 69)
    assert (decision.requeue, decision.failure) == (True, True)
    assert decision.words == "rank 0 on n1: train.run=x is held by y still"

    monkeypatch.setenv("SLURM_JOB_ID", "17")
    (job / "cluster.yaml").write_text("nodes: 1\ngpus_per_node: 0\n")
    record.tell(tmp_path, "started", job="17", start=1)
    assert end(job, 137) == 0  # of start 0, on the node that was cut off
    assert [event["event"] for event in record.events(tmp_path)] == ["started"]
    assert "start 0 has ended" in capsys.readouterr().err
