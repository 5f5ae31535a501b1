"""Requests of jobs and decisions at their ends: pure functions. The cluster itself is in tests/cluster."""

import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simfle.config.schema import PretrainConfig
from simfle.data.loader import threads_per_process
from simfle.errors import UserError
from simfle.runtime.entrypoint import OWN_CORES
from simfle.slurm import events
from simfle.slurm.config import ClusterConfig
from simfle.slurm.events import TaskExit
from simfle.slurm.follow import follow, follow_local
from simfle.slurm.requeue import consecutive_failures, decide, end, terminal_state
from simfle.slurm.status import find_runs, status
from simfle.slurm.task import TaskInfo, adapt_config, bind_cores, usable_tasks
from simfle.train.watchdog import Watchdog

PLACE = TaskInfo("17", 0, 0, 4, 0, 1, ("n1", "n2", "n3", "n4"))


def ends(**kinds: str) -> list[TaskExit]:
    return [TaskExit(int(name[1:]), f"n{name[1:]}", kind, f"{kind} words") for name, kind in kinds.items()]


@pytest.mark.parametrize(
    ("found", "code", "requeue", "failure", "words"),
    [
        (ends(r0="done", r1="done"), 0, False, False, "done words"),
        (ends(r0="done", r1="idle"), 0, False, False, "done words"),
        (ends(r0="done", r1="done"), 143, False, False, "done words"),  # ended by Slurm when all was done
        (ends(r0="preempted", r1="preempted"), 0, True, False, "preempted words"),
        (ends(r0="user_error", r1="peer_lost"), 65, False, True, "rank 0 on n0: user_error words"),
        (ends(r0="peer_lost", r1="bug"), 70, False, True, "rank 1 on n1: bug words"),
        (ends(r0="hung", r1="peer_lost"), 76, True, True, "hung words"),
        (ends(r0="peer_lost"), 137, True, True, "rank 1 exited without reporting"),
        (ends(r0="preempted"), 137, True, True, "rank 1 exited without reporting"),  # killed while it saved
        (ends(r0="peer_lost", r1="peer_lost"), 69, True, True, "peer_lost words"),
        ([], 1, True, True, "rank 0, 1 exited without reporting (killed, or its node lost); exit code 1"),
        (
            [],
            0,
            True,
            True,
            "rank 0, 1 exited without reporting (killed, or its node lost)",
        ),  # no process reported its end
    ],
)
def test_ends_are_judged(found: list[TaskExit], code: int, requeue: bool, failure: bool, words: str) -> None:
    decision = decide(found, 2, code)
    assert (decision.requeue, decision.failure) == (requeue, failure)
    assert words in decision.words


def test_a_job_whose_processes_never_began_is_told_from_one_that_was_killed() -> None:
    decision = decide([], 2, 1, began=False)
    assert (decision.requeue, decision.failure) == (True, True)
    assert decision.words == "no process started; exit code 1; see the job's log"
    assert "rank 1 exited without reporting" in decide(ends(r0="peer_lost"), 2, 137, began=False).words


@pytest.mark.parametrize(
    ("state", "ran", "limit", "found"),
    [
        ("RUNNING", "00:10:00", "01:00:00", ""),
        ("COMPLETING", "01:00:02", "01:00:00", ""),
        ("COMPLETING", "00:10:00", "01:00:00", "cancelled"),
        ("COMPLETING", "1-00:10:00", "UNLIMITED", "cancelled"),
        ("CANCELLED", "1-00:10:00", "2-00:00:00", "cancelled"),
        ("TIMEOUT", "1-00:00:00", "1-00:00:00", ""),
    ],
)
def test_what_somebody_ended_does_not_come_back(state: str, ran: str, limit: str, found: str) -> None:
    assert terminal_state({"JobState": state, "RunTime": ran, "TimeLimit": limit}) == found
    assert not terminal_state({})  # Slurm has not answered: no one is known to have ended the job


def test_failures_count_until_a_new_checkpoint_stands() -> None:
    def ended(step: int, failure: bool = True, job: str = "17") -> dict:
        return {"event": "ended", "job": job, "failure": failure, "step": step}

    assert consecutive_failures([ended(0), ended(0), ended(0)], "17") == 3
    assert consecutive_failures([ended(0), ended(0), ended(5)], "17") == 1
    assert consecutive_failures([ended(5), ended(5, failure=False), ended(5)], "17") == 1
    assert consecutive_failures([ended(5, job="16"), {"event": "started", "job": "17"}, ended(5)], "17") == 1


def test_a_task_killed_on_its_way_out_does_not_fail_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All processes have reported success; srun's code then only describes their exit."""
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    job = tmp_path / "slurm" / "job"
    job.mkdir(parents=True)
    (job / "cluster.yaml").write_text("nodes: 2\ngpus_per_node: 0\n")
    for rank in range(2):
        events.write_task_exit(job, 0, TaskExit(rank, f"n{rank}", events.DONE, ""))
    assert end(job, 137) == 0
    assert [(event["reason"], event["requeue"]) for event in events.events(tmp_path)] == [("finished", False)]


# A substitute for scontrol whose commands fail a configured number of times.
SCONTROL = """#!/bin/sh
echo "$1" >> calls
if [ "$(grep -c "$1" calls)" -le "$(cat "$1")" ]; then echo "Unable to contact slurm controller" >&2; exit 1; fi
[ "$1" = show ] && echo "JobId=17 JobState=RUNNING RunTime=00:10:00 TimeLimit=01:00:00" || true
"""


@pytest.mark.parametrize(
    ("shows", "requeues", "called", "requeued", "words"),
    [
        (2, 1, {"show": 3, "requeue": 2}, True, "preempted words"),
        (99, 0, {"show": 5, "requeue": 1}, True, "preempted words"),
        (0, 99, {"show": 1, "requeue": 5}, False, "not requeued: job 17.*Unable to contact slurm controller"),
    ],
)
def test_a_controller_that_does_not_answer_at_once_is_asked_again(
    shows: int,
    requeues: int,
    called: dict[str, int],
    requeued: bool,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr("simfle.slurm.requeue.PAUSE", 0.0)
    (tmp_path / "show").write_text(str(shows))
    (tmp_path / "requeue").write_text(str(requeues))
    (tmp_path / "scontrol").write_text(SCONTROL)
    (tmp_path / "scontrol").chmod(0o755)
    job = tmp_path / "slurm" / "job"
    job.mkdir(parents=True)
    (job / "cluster.yaml").write_text("nodes: 1\ngpus_per_node: 0\n")
    events.write_task_exit(job, 0, TaskExit(0, "n0", events.PREEMPTED, "preempted words"))
    assert (end(job, 0) == 0) == requeued
    calls = (tmp_path / "calls").read_text().split()
    assert {name: calls.count(name) for name in called} == called
    (ended,) = events.events(tmp_path)
    assert ended["requeue"] == requeued
    assert re.search(words, ended["reason"])


@given(nodes=st.integers(1, 12), least=st.integers(1, 12), gpus=st.integers(1, 8), batch=st.integers(2, 4096))
def test_the_most_whole_nodes_that_share_the_batch(nodes: int, least: int, gpus: int, batch: int) -> None:
    least = min(least, nodes)
    names = tuple(f"n{index}" for index in range(nodes))
    place = replace(PLACE, nodes=names, world_size=nodes * gpus, local_world_size=gpus)
    cluster = ClusterConfig(nodes=nodes, min_nodes=least)
    fitting = [n * gpus for n in range(least, nodes + 1) if batch % (n * gpus) == 0 and batch // (n * gpus) >= 2]
    if fitting:
        assert usable_tasks(place, cluster, batch) == max(fitting)
    else:
        with pytest.raises(UserError, match="cannot be shared"):
            usable_tasks(place, cluster, batch)


@given(size=st.integers(1, 64), per=st.integers(2, 64), micro=st.integers(0, 64))
def test_micro_batches_fit_their_share(size: int, per: int, micro: int) -> None:
    config = PretrainConfig()
    config = replace(config, train=replace(config.train, global_batch=size * per, micro_batch=micro))
    if micro > 1 and all(per % smaller for smaller in range(2, micro + 1)):
        with pytest.raises(UserError, match=f"train.micro_batch={micro}: none from 2 to {micro} divides the {per} "):
            adapt_config(config, replace(PLACE, world_size=size), ClusterConfig())
        return
    fitted = adapt_config(config, replace(PLACE, world_size=size), ClusterConfig()).train.micro_batch
    assert fitted == 0 if micro == 0 else (per % fitted == 0 and fitted <= micro)


def test_a_local_job_whose_processes_were_killed_did_not_finish(tmp_path: Path) -> None:
    job = tmp_path / "slurm" / "job"
    job.mkdir(parents=True)
    killed = subprocess.Popen(["sleep", "1000"])
    killed.kill()
    decision = follow_local(job, SimpleNamespace(job_id=str(killed.pid)), 2, lambda text: None)
    killed.wait()
    assert decision.failure
    assert decision.words.startswith("rank 0, 1 exited without reporting")
    assert [event["failure"] for event in events.events(tmp_path)] == [True]


@pytest.mark.parametrize(
    ("kind", "cores", "local", "own"),
    [("none", 8, 4, [2, 3]), ("mask_cpu:", 2, 4, [0, 1]), ("none", 8, 1, list(range(8))), ("none", 2, 4, None)],
)
def test_a_process_is_told_of_the_cores_that_are_its_own(
    kind: str, cores: int, local: int, own: list[int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bound here, bound by Slurm, alone; None: more processes than cores, which share them."""
    bound = [set(range(cores))]
    monkeypatch.setenv("SLURM_CPU_BIND_TYPE", kind)
    monkeypatch.setenv("OMP_NUM_THREADS", "")  # so that it is put back at the end, whatever is set meanwhile
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setenv(OWN_CORES, "")
    monkeypatch.delenv(OWN_CORES)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: bound[-1])
    monkeypatch.setattr(os, "sched_setaffinity", lambda _, given: bound.append(set(given)))
    bind_cores(replace(PLACE, local_rank=min(1, local - 1), local_world_size=local))
    assert bound[-1] == set(range(cores) if own is None else own)
    assert os.environ.get("OMP_NUM_THREADS") == (str(len(own)) if own else None)
    assert threads_per_process(0, local) == (len(own) if own else 1)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    bind_cores(replace(PLACE, local_world_size=1))
    assert os.environ["OMP_NUM_THREADS"] == "1"  # the user's own word holds


def test_requeues_are_limited() -> None:
    with pytest.raises(UserError, match="requeued 3 times, max_requeues=2"):
        usable_tasks(replace(PLACE, start=3), ClusterConfig(max_requeues=2), 64)


def test_events_survive_a_line_that_was_cut_short(tmp_path: Path) -> None:
    events.append_event(tmp_path, "submitted", job="17")
    with (tmp_path / "slurm" / "events.jsonl").open("a") as file:
        file.write('{"time": 1, "eve')
    assert [event["event"] for event in events.events(tmp_path)] == ["submitted"]


def test_jobs_of_doctor_and_eval_are_no_runs(tmp_path: Path) -> None:
    """They make FOLDER/slurm/JOB beside the runs; a run that waits in the queue has its events, and no more."""
    for job in ("slurm/1-doctor", "results/slurm/2-eval", "group/waits/slurm/3", "group/deep/er/slurm/4", "begun"):
        (tmp_path / job).mkdir(parents=True)
        (tmp_path / job / "config.yaml").write_text("")
    for run in ("group/waits", "group/deep/er"):
        events.append_event(tmp_path / run, "submitted", job="17")
    assert find_runs(tmp_path) == [tmp_path / run for run in ("begun", "group/deep/er", "group/waits")]
    assert find_runs(tmp_path / "group/waits") == [tmp_path / "group/waits"]
    assert find_runs(tmp_path / "results") == []


def test_status_of_a_run_without_slurm(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "checkpoints" / "step-00000004").mkdir(parents=True)
    (run / "checkpoints" / "step-00000004" / "COMPLETE").touch()
    (run / "run.json").write_text('{"steps": 9}')
    (run / "metrics.jsonl").write_text('{"step": 5, "images_per_second": 7.5, "losses": {"total": 1}}\n{"step": 6, "im')
    found = status(run)
    assert (found.step, found.steps, found.images_per_second, found.checkpoint) == (5, 9, 7.5, 4)
    assert (found.state, found.requeues, found.jobs) == ("stopped", 0, ())
    (run / "checkpoints" / "step-00000009").mkdir()
    (run / "checkpoints" / "step-00000009" / "COMPLETE").touch()
    assert status(run).state == "finished"


def test_a_run_on_this_machine_is_no_job_of_slurms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its number is a process id; Slurm may know another user's job of the same number."""
    monkeypatch.setattr("simfle.slurm.status.scheduler.state", lambda job, _: "RUNNING")
    events.append_event(tmp_path, "submitted", job="17", folder="job", nodes=1, local=True)
    events.append_event(tmp_path, "started", job="17", start=0)
    found = status(tmp_path)
    assert (found.state, found.jobs) == ("not started", ())
    facts = {"start": 0, "failure": True, "step": 0, "reason": "killed", "requeue": False}
    events.append_event(tmp_path, "ended", job="17", **facts)
    assert (status(tmp_path).state, status(tmp_path).reason) == ("failed", "killed")
    events.append_event(tmp_path, "submitted", job="18", folder="job", nodes=1)
    assert (status(tmp_path).state, status(tmp_path).jobs) == ("running", ("18",))


def tell_ended(run: Path, job: str, failure: bool, reason: str, ago: float) -> None:
    facts = {"start": 0, "failure": failure, "step": 0, "reason": reason, "requeue": False}
    events.append_event(run, "ended", job=job, time=time.time() - ago, **facts)


@pytest.mark.parametrize(
    ("first", "second", "ended", "found"),
    [
        ("RUNNING", "FAILED", True, ("running", "")),
        ("COMPLETING", "PENDING", False, ("completing", "")),
        ("PENDING", "FAILED", True, ("pending", "")),
        ("CANCELLED", "FAILED", True, ("failed", "in use by process 5")),
        ("COMPLETED", "PENDING", False, ("pending", "")),
    ],
)
def test_a_job_that_was_refused_does_not_tell_of_the_one_that_has_the_run(
    first: str, second: str, ended: bool, found: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    (tmp_path / "scontrol").write_text(f'#!/bin/sh\n[ "$4" = 17 ] && echo JobState={first} || echo JobState={second}\n')
    (tmp_path / "scontrol").chmod(0o755)
    for job in ("17", "18"):
        events.append_event(tmp_path / "run", "submitted", job=job)
    if ended:
        tell_ended(tmp_path / "run", "18", True, "in use by process 5", 0)
    now = status(tmp_path / "run")
    assert (now.state, now.reason) == found


def test_a_run_that_goes_on_elsewhere_after_its_job_ended_is_running(tmp_path: Path) -> None:
    """On a workstation, which leaves no events but heartbeats. Those that a killed process left are no sign of life."""
    tell_ended(tmp_path, "17", False, "stopped on SIGTERM", 60)
    assert (status(tmp_path).state, status(tmp_path).reason) == ("stopped", "stopped on SIGTERM")
    with Watchdog(tmp_path, 0, 1, 0.0):
        assert (status(tmp_path).state, status(tmp_path).reason) == ("running", "")
        tell_ended(tmp_path, "17", True, "killed", -1)
        assert (status(tmp_path).state, status(tmp_path).reason) == ("failed", "killed")
    events.append_event(tmp_path, "ended", job="17", time="?", start=0, failure=True, step=0, reason="", requeue=False)
    assert status(tmp_path).state == "failed"


def test_heartbeats_of_a_start_with_more_processes_do_not_tell_of_the_next(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 5, "losses": {"total": 1}}\n')
    (tmp_path / "heartbeats").mkdir()
    for rank in range(4):  # killed
        (tmp_path / f"heartbeats/rank-{rank:05d}.json").write_text("{}")
        os.utime(tmp_path / f"heartbeats/rank-{rank:05d}.json", (0, 0))
    assert status(tmp_path).state == "killed"
    with Watchdog(tmp_path, 0, 2, 0.0), Watchdog(tmp_path, 1, 2, 0.0):
        assert status(tmp_path).state == "running"
    assert status(tmp_path).state == "stopped"


@pytest.mark.parametrize(
    ("shown", "state", "words"),
    [
        (
            "JobState=FAILED ExitCode=0:9",
            "failed",
            ", failed: no end is recorded: its batch shell was killed by signal 9",
        ),
        ("JobState=FAILED ExitCode=1:0", "failed", "its batch shell exited with code 1 without reporting why"),
        ("", "killed", "job 17 start 0: no end is recorded: its batch shell was killed, or its node was lost"),
    ],
)
def test_an_end_that_nobody_recorded_is_told_with_its_cause(
    shown: str, state: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that was killed, and left its heartbeat; a job whose batch shell said nothing, whatever Slurm knows."""
    program = (
        "import sys, pathlib\n"
        "from simfle.train.watchdog import Watchdog\n"
        "with Watchdog(pathlib.Path(sys.argv[1]), 0, 1, 0.0) as watchdog:\n"
        "    watchdog.mark_progress(7, 'step')\n"
        "    watchdog._beat()\n"
        "    print('beating', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    run, pipe = tmp_path / "run", subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", program, str(run)], stdin=pipe, stdout=pipe) as process:
        assert process.stdout
        assert process.stdout.readline()
        process.kill()
    beat = run / "heartbeats/rank-00000.json"
    os.utime(beat, (0, 0))
    found = status(run)
    killed = f"rank 0, process {process.pid} on "
    assert found.state == "killed"
    assert found.reason.startswith(f"no end is recorded: {killed}")
    assert "was killed (SIGKILL, out of memory) or its machine was lost, in step 7" in found.reason
    assert found.reason.endswith("; rerun to resume")

    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    for name in ("scontrol", "sacct"):
        (tmp_path / name).write_text(f"#!/bin/sh\n[ {name} = scontrol ] && echo '{shown}' || exit 1\n")
        (tmp_path / name).chmod(0o755)
    events.append_event(run, "submitted", job="17")
    events.append_event(run, "started", job="17", start=0)
    found = status(run)
    assert found.state == state
    assert words in found.reason
    assert killed in found.reason
    told: list[str] = []
    assert not follow(run / "slurm" / "job", "17", told.append, lambda: "FAILED")
    assert found.reason in told[-1]
    if shown:  # its last beat was just before Slurm noticed
        os.utime(beat)
        assert status(run).state == "running"
        ended = time.strftime("%Y-%m-%dT%H:%M:%S")
        (tmp_path / "scontrol").write_text(f"#!/bin/sh\necho '{shown} EndTime={ended}'\n")
        assert status(run).state == state


def test_a_copy_of_a_checkpoint_is_not_the_last_one(tmp_path: Path) -> None:
    for name in ("step-00000004", "step-00000004-backup"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
        (tmp_path / "checkpoints" / name / "COMPLETE").touch()
    os.utime(tmp_path / "checkpoints/step-00000004/COMPLETE", (0, 0))
    assert (status(tmp_path).checkpoint_age or 0) > 1e6


def test_a_task_hears_a_stop_before_torch_is_loaded() -> None:
    """Until then submitit's own handler answers, which saves nothing and counts a failure."""
    program = "import sys, simfle.slurm.task as job; job.StopSignal; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
