"""`launchers/slurm_pretrain.py` on a real cluster of four nodes: undisturbed, and with every known fault."""

import json
import signal
import time
from pathlib import Path

import pytest
from cluster.jobs import Job, launch, submit
from cluster.slurm import Cluster, until
from distributed.runs import losses, metrics, samples

from simfle.config.schema import PretrainConfig, load
from simfle.data.training_data import open_data
from simfle.slurm import events
from simfle.slurm.status import status


def test_four_nodes_are_one_world_and_read_only_their_own_streams(undisturbed: Path) -> None:
    assert [line["step"] for line in metrics(undisturbed)] == list(range(1, 17))
    assert {line["processes"] for line in metrics(undisturbed)} == {4}
    (ended,) = [event for event in events.events(undisturbed) if event["event"] == "ended"]
    assert (ended["reason"], ended["requeue"]) == ("finished", False)
    (log,) = undisturbed.glob("slurm/*[0-9]/*_0_log.out")  # not those of evaluations
    assert "stopping takes about" in log.read_text()  # measured, and compared with the lead time of the stop signal
    config = load(PretrainConfig, undisturbed / "config.yaml")
    order = open_data(config.data, config.train.seed, 24, 0)
    for rank in range(4):  # 12 streams alternate in the 24 slots of a batch: each rank reads 3 of them
        lines = [json.loads(line) for line in (undisturbed / f"samples/rank-{rank:05d}.jsonl").read_text().splitlines()]
        for line in lines:
            batch = order.batch_ids(line["step"] - 1)[0]
            assert line["ids"] == batch[rank * 6 : rank * 6 + 6].tolist()


def usr2(job: Job) -> None:
    job.slurm.call("scancel", "--signal=USR2", job.number)


def requeue(job: Job) -> None:
    job.slurm.call("scontrol", "requeue", job.number)


def kill_rank(job: Job) -> None:
    job.rank(2).kill()


def stop_rank(job: Job) -> None:
    job.rank(3).suspend()


def lose_node(job: Job) -> None:
    job.slurm.kill_node("n3")
    until(lambda: job.state == "PENDING", 90, job.tell)
    job.slurm.start_node("n3")


FAULTS = {  # fault -> entry in the record; None: Slurm requeues immediately
    "USR2": (usr2, "stopped on SIGUSR2 after step"),
    "scontrol requeue": (requeue, None),
    "SIGKILL of a rank": (kill_rank, r"rank 2 exited without reporting"),
    "SIGSTOP of a rank": (stop_rank, "no heartbeat from rank 3 "),
    "a node lost": (lose_node, None),
}


@pytest.mark.parametrize("name", FAULTS)
def test_comes_back_by_itself_with_the_same_samples_and_losses(
    slurm: Cluster, faces: Path, undisturbed: Path, tmp_path: Path, name: str
) -> None:
    hurt, words = FAULTS[name]
    job = submit(slurm, faces, tmp_path / "run", "train.steps=16", "train.checkpoint_every=4", "train.hang_timeout=20")
    job.wait_step(5)
    hurt(job)
    until(lambda: job.starts > 1, 120, job.tell)
    job.wait_end()
    assert samples(job.run) == samples(undisturbed)
    assert losses(job.run) == losses(undisturbed)
    if words is not None:
        first = job.ends[0]
        assert words in first["reason"]
        assert first["requeue"]
    assert job.ends[-1]["reason"] == "finished"


def test_a_start_whose_node_was_cut_off_ends_when_the_next_one_asks_for_the_run(
    slurm: Cluster, faces: Path, tmp_path: Path
) -> None:
    """Slurm considers the node lost and starts the job elsewhere, while the old processes keep training."""
    job = submit(slurm, faces, tmp_path / "run", "train.steps=100000", "train.checkpoint_every=20", nodes=1)
    job.wait_step(5)
    old, (node,) = job.rank(0), job.nodes
    slurm.cut_off(node)
    try:
        until(lambda: job.starts > 1, 120, job.tell)
        until(lambda: not old.is_running(), 120, job.tell)
        seen = job.step()
        job.wait_step(seen + 20, starts=2)
        assert f"job {job.number} start 1 has taken over the run from process {old.pid} on" in job.log()
        assert not job.ends  # the batch shell of the old start has not requeued the new one
        slurm.call("scancel", job.number)
        job.wait_end("CANCELLED")
    finally:
        slurm.start_node(node)
    assert samples(job.run)  # steps done by both are identical


def test_a_killed_batch_shell_is_named_and_the_run_goes_on_when_submitted_again(
    slurm: Cluster, faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No process remains that could requeue the job or record its end."""
    for name, value in slurm.environment.items():
        monkeypatch.setenv(name, value)
    words = ("train.steps=100000", "train.checkpoint_every=4")
    job = submit(slurm, faces, tmp_path / "run", *words, nodes=1)
    job.wait_step(5)
    job.batch_shell().kill()
    job.wait_end("FAILED")
    slurm.wait_idle()
    found = status(job.run)
    assert found.state == "failed"
    assert (
        f"job {job.number} start 0, failed: no end is recorded: its batch shell was killed by signal 9" in found.reason
    )
    again = submit(slurm, faces, job.run, *words, nodes=1)
    again.wait_step(job.step() + 4, starts=2)
    assert "resuming after step" in again.log()


def test_time_limit(slurm: Cluster, faces: Path, undisturbed: Path, tmp_path: Path) -> None:
    """Slurm sends its signal before the time limit: the job ends, and its next start resumes at the next sample."""
    job = submit(slurm, faces, tmp_path / "run", "train.steps=16", "--signal-seconds", "170")
    job.wait_step(5)
    minutes = int(slurm.job(job.number)["RunTime"].split(":")[1])
    slurm.call("scontrol", "update", f"JobId={job.number}", f"TimeLimit={minutes + 3}")
    ranks = [job.rank(rank) for rank in range(4)]
    for process in ranks:
        process.suspend()  # Slurm checks limits only twice a minute: the run must not have ended by then
    until(lambda: job.ends, 120, job.tell)  # Slurm sends SIGCONT before USR2
    until(lambda: job.state == "PENDING", 60, job.tell)  # not while it completes
    slurm.call("scontrol", "update", f"JobId={job.number}", "TimeLimit=60")
    job.wait_end()
    assert "stopped on SIGUSR2" in job.ends[0]["reason"]
    assert samples(job.run) == samples(undisturbed)
    assert losses(job.run) == losses(undisturbed)


def test_fewer_and_more_nodes_the_same_samples(slurm: Cluster, faces: Path, undisturbed: Path, tmp_path: Path) -> None:
    """4 -> 2 -> 3 nodes, by losing and adding nodes: the same ids, pixels and group draws in every global batch."""
    words = ["--min-nodes", "2", "train.steps=16", "train.checkpoint_every=4", "train.micro_batch=6"]
    job = submit(slurm, faces, tmp_path / "run", *words)
    job.wait_step(4)
    slurm.call("scontrol", "update", "NodeName=n[3-4]", "State=drain", "Reason=test")
    try:
        usr2(job)
        job.wait_step(8, starts=2)
        slurm.call("scontrol", "update", "NodeName=n3", "State=resume")
        until(lambda: slurm.node_states()["n3"] == "idle", tell=lambda: str(slurm.node_states()))
        usr2(job)
        job.wait_end()
    finally:
        slurm.call("scontrol", "update", "NodeName=n[3-4]", "State=resume", check=False)
    started = [event for event in events.events(job.run) if event["event"] == "started"]
    assert [event["processes"] for event in started] == [4, 2, 3]
    assert samples(job.run) == samples(undisturbed)
    assert "global batch 24 = 3 processes x 2 accumulation steps x 4 samples" in job.log()


def test_zero_stages_across_nodes_and_over_checkpoints(
    slurm: Cluster, faces: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """Resume a stage-1 checkpoint of 4 nodes at stage 3, compared with stage 2; then at stage 0 on one node."""
    run = tmp_path / "run"
    for nodes, stage, until_step in ((4, 1, 2), (4, 3, 4), (1, 0, 8)):
        words = [f"train.zero_stage={stage}", f"train.stop_after_step={until_step}", "train.steps=16"]
        job = submit(slurm, faces, run, *words, nodes=nodes)
        job.wait_end()
    assert [line["step"] for line in metrics(run)] == list(range(1, 9))
    words = ["train.zero_stage=2", "train.steps=16", "train.stop_after_step=4"]
    whole = submit(slurm, faces, tmp_path / "stage2", *words, nodes=4)
    whole.wait_end()
    for ours, theirs in zip(losses(run)[:4], losses(whole.run), strict=True):
        assert ours["total"] == pytest.approx(theirs["total"], rel=1e-3)
    reference = samples(undisturbed)
    assert samples(run) == {step: reference[step] for step in range(1, 9)}


def test_a_loss_that_is_not_finite_is_not_requeued(slurm: Cluster, faces: Path, tmp_path: Path) -> None:
    job = submit(slurm, faces, tmp_path / "run", "train.steps=16", "optim.lr=1e30", nodes=2)
    job.wait_end("FAILED")
    (ended,) = job.ends
    assert "a loss is not finite" in ended["reason"]
    assert not ended["requeue"]
    assert job.starts == 1


def test_a_cancelled_job_stays_cancelled(slurm: Cluster, faces: Path, tmp_path: Path) -> None:
    job = submit(slurm, faces, tmp_path / "run", "train.steps=1000", nodes=2)
    job.wait_step(2)
    slurm.call("scancel", job.number)
    job.wait_end("CANCELLED")
    slurm.wait_idle()
    assert job.state == "CANCELLED"
    assert job.starts == 1


def test_a_submitted_job_runs_the_code_of_its_submission_and_tells_where_it_is(
    slurm: Cluster, faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was submitted from a checkout, whose code Python would find first in the folder that the job starts in; from
    within another job; and on a cluster that gives jobs no environment."""
    for name, value in {"SLURM_RESTART_COUNT": "1", "SLURM_NTASKS": "1", "SBATCH_EXPORT": "NONE"}.items():
        monkeypatch.setenv(name, value)
    job = submit(slurm, faces, tmp_path / "run", "train.steps=1000", "cluster.extra_sbatch=[hold]", nodes=1)
    (code,) = job.run.glob("slurm/*/code")
    for file, words, other in (
        ("simfle/slurm/task.py", 'f"job {task.job}, start', 'f"the copy of job {task.job}, start'),
        ("simfle/slurm/requeue.py", 'f"job {number}: ', 'f"the copy of job {number}: '),
    ):
        text = (code / file).read_text()
        assert words in text
        (code / file).write_text(text.replace(words, other))
    slurm.call("scontrol", "release", job.number)
    job.wait_step(1)
    assert f"the copy of job {job.number}, start 0" in job.log()
    assert job.rank(0).environ()["PYTHONPATH"].split(":")[0] == str(code)
    slurm.call("scancel", "--signal=QUIT", job.number)
    until(lambda: "in train\n" in job.log(), 30, job.tell)


def test_failures_without_progress_end_the_job(slurm: Cluster, faces: Path, tmp_path: Path) -> None:
    words = ["train.steps=1000", "train.checkpoint_every=1000", "cluster.max_consecutive_failures=2"]
    job = submit(slurm, faces, tmp_path / "run", *words, nodes=1)
    for start in (1, 2):
        job.wait_step(1, starts=start)
        time.sleep(0.5)
        job.rank(0).send_signal(signal.SIGKILL)
        until(lambda: len(job.ends) >= start, 60, job.tell)  # noqa: B023
    job.wait_end("FAILED")
    assert [event["requeue"] for event in job.ends] == [True, False]
    assert "2 consecutive failures without a new checkpoint" in job.ends[-1]["reason"]


def test_follow_shows_the_log_of_rank_0_until_the_end(slurm: Cluster, faces: Path, tmp_path: Path) -> None:
    output = launch(slurm, faces, tmp_path / "run", "--follow", "train.steps=3", nodes=2)
    assert "global batch 24 = 2 processes x 1 accumulation steps x 12 samples" in output
    assert "step 3/3" in output
    assert "] finished" in output


def test_the_same_job_on_this_machine(slurm: Cluster, faces: Path, tmp_path: Path) -> None:
    output = launch(slurm, faces, tmp_path / "run", "--local", "train.steps=3", nodes=2)
    assert "global batch 24 = 2 processes x 1 accumulation steps x 12 samples" in output
    assert [line["step"] for line in metrics(tmp_path / "run")] == [1, 2, 3]
    assert output.splitlines()[-1] == "finished"
