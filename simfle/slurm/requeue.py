"""End a job in its batch shell: decide whether to requeue, and record why.

    python -m simfle.slurm.requeue JOB_FOLDER EXIT_CODE

This module runs after srun on the job's first node. It has no slow imports, because little of the grace time may be
left.
"""

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from simfle.config.schema import load
from simfle.errors import UserError
from simfle.runtime import run_files
from simfle.runtime.logs import say
from simfle.slurm import events as event_log
from simfle.slurm import scheduler
from simfle.slurm.config import ClusterConfig
from simfle.slurm.events import TaskExit

TRIES, PAUSE = 5, 6.0  # attempts to reach Slurm's controller, which may be busy or restarting, and seconds between them


@dataclass(frozen=True)
class Decision:
    """Decision about a requeue: requeue, failure (counts against max_consecutive_failures), and the reason in one
    line."""

    requeue: bool
    failure: bool
    words: str


def decide(exits: list[TaskExit], expected: int, code: int, *, began: bool = True) -> Decision:
    """Decide from the exit records of `expected` tasks and srun's exit code. began: whether a task has started.

    A requested stop and an external failure (a killed process, a lost node, a hang) are requeued. A user error or a bug
    is not requeued, because it would recur.
    """
    first = {end.kind: end for end in reversed(exits)}
    known = {end.rank for end in exits}
    silent = [rank for rank in range(expected) if rank not in known]
    names = ", ".join(map(str, silent[:8])) + (" and others" if len(silent) > 8 else "")
    left = f"; exit code {code}" if code else ""
    whole = bool(exits) and not silent and set(first) <= {event_log.DONE, event_log.IDLE}
    rules = (  # the first match applies
        (whole, False, False, (first[event_log.DONE].words if event_log.DONE in first else "") or "finished"),
        (event_log.USER_ERROR in first, False, True, _describe_exit(first.get(event_log.USER_ERROR))),
        (event_log.BUG in first, False, True, _describe_exit(first.get(event_log.BUG))),
        (event_log.HUNG in first, True, True, _describe_exit(first.get(event_log.HUNG))),
        (not exits and not began, True, True, f"no process started{left}; see the job's log"),
        (bool(silent), True, True, f"rank {names} exited without reporting (killed, or its node lost){left}"),
        (event_log.PEER_LOST in first, True, True, _describe_exit(first.get(event_log.PEER_LOST))),
    )
    for holds, requeue, failure, words in rules:
        if holds:
            return Decision(requeue, failure, words)
    return Decision(True, False, first[event_log.PREEMPTED].words)  # only this kind remains


def _describe_exit(end: TaskExit | None) -> str:
    return f"rank {end.rank} on {end.host}: {end.words}" if end else ""


def consecutive_failures(events: list[dict], job: str) -> int:
    """Return the number of failures of this job since its last new checkpoint."""
    count, step = 0, None
    for event in events:
        if event["event"] != "ended" or event["job"] != job:
            continue
        if not event["failure"]:
            count = 0
        elif step is not None and event["step"] > step:
            count = 1
        else:
            count += 1
        step = event["step"]
    return count


def end(job_folder: Path, code: int) -> int:
    """Decide, record, and requeue; return the exit code for the batch shell."""
    number, start = os.environ["SLURM_JOB_ID"], int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    run = job_folder.parents[1]
    cluster = load(ClusterConfig, job_folder / "cluster.yaml")
    expected = int(os.environ.get("SLURM_NNODES", cluster.nodes)) * cluster.tasks
    events = of_submission(event_log.events(run), number, job_folder.name)
    if superseded(events, number, start):
        return _give_way(number, start)
    began = any((each["event"], each["job"], each.get("start")) == ("started", number, start) for each in events)
    decision = decide(event_log.task_exits(job_folder, start), expected, code, began=began)
    facts = {
        "job": number,
        "folder": job_folder.name,
        "start": start,
        "failure": decision.failure,
        "step": newest_step(run),
    }
    words, requeue = decision.words, decision.requeue
    if requeue and start >= cluster.max_requeues:
        requeue, words = False, f"{words}; not requeued: max_requeues={cluster.max_requeues} is reached"
    row = consecutive_failures([*events, {"event": "ended", **facts}], number)
    if requeue and row >= cluster.max_consecutive_failures:
        requeue, words = False, f"{words}; not requeued: {row} consecutive failures without a new checkpoint"
    known = shown(number) if requeue else {}
    if _restarts(known) > start:
        return _give_way(number, start)
    if requeue and (state := terminal_state(known)):
        requeue, words = False, f"{words}; not requeued: the job is {state}"
    if not decision.failure and not decision.requeue:
        code = 0  # all tasks have reported success, so a kill during their exit does not matter
    if requeue and (refusal := requeue_with_retries(number)):
        requeue, words, code = False, f"{words}; not requeued: {refusal}", code or 1
    # The end is recorded after Slurm has requeued the job, when this shell still has KillWait seconds.
    event_log.append_event(run, "ended", **facts, requeue=requeue, reason=words, code=code)
    say(f"job {number}: {words}{'; requeued' if requeue else ''}")
    return code


def of_submission(events: list[dict], number: str, folder: str) -> list[dict]:
    """Return the events of one submission.

    The job number is not unique: a controller that has lost its records, or another cluster, reuses numbers. Earlier
    versions recorded no folder of starts and ends.
    """
    return [each for each in events if each["job"] == number and each.get("folder", folder) == folder]


def superseded(events: list[dict], number: str, start: int) -> bool:
    """Return whether a later start of the job has begun: the node of this start lost its network, and Slurm requeued
    the job."""
    return any((each["event"], each["job"]) == ("started", number) and each["start"] > start for each in events)


def _restarts(known: dict[str, str]) -> int:
    text = known.get("Restarts", "")
    return int(text) if text.isdecimal() else 0


def _give_way(number: str, start: int) -> int:
    """Exit without recording or requeueing, which would end the later start."""
    say(f"job {number}: start {start} has ended; Slurm has already requeued the job")
    return 0


def shown(number: str) -> dict[str, str]:
    """Return Slurm's description of a job, or nothing if Slurm repeatedly did not answer."""
    for tries in range(TRIES):
        if tries:
            time.sleep(PAUSE)
        if found := scheduler.show(number):
            return found
    return {}


def requeue_with_retries(number: str) -> str:
    """Requeue a job with several attempts; return Slurm's error, or "" on success."""
    refusal = ""
    for tries in range(TRIES):
        if tries:
            time.sleep(PAUSE)
        try:
            scheduler.requeue(number)
        except UserError as error:
            refusal = str(error)
        else:
            return ""
    return refusal


def terminal_state(shown: dict[str, str]) -> str:
    """Return the state of a job that was ended on purpose, such as cancelled; empty if it may be requeued or is
    unknown.

    While its processes exit, a job is COMPLETING, whether cancelled or out of time: the elapsed time distinguishes the
    two.
    """
    state = shown.get("JobState", "")
    out_of_time = scheduler.seconds(shown.get("RunTime", "")) >= scheduler.seconds(shown.get("TimeLimit", ""))
    if state in ("RUNNING", "TIMEOUT", "NODE_FAIL", "PREEMPTED") or (state == "COMPLETING" and out_of_time):
        return ""
    return "cancelled" if state == "COMPLETING" else state.lower()


def newest_step(run: Path) -> int:
    """Return the step of the newest complete checkpoint, or 0 if there is none."""
    return max((run_files.step_from_name(folder) or 0 for folder in run_files.complete_checkpoint_dirs(run)), default=0)


def main() -> None:
    """Run the module as the batch script does."""
    import signal

    for name in (signal.SIGTERM, signal.SIGUSR2):  # Slurm signals all processes of a job; this one must survive
        signal.signal(name, signal.SIG_IGN)
    job, code = Path(sys.argv[1]), int(sys.argv[2])
    try:
        sys.exit(end(job, code))
    except (UserError, OSError) as error:  # the job's folder was deleted, or its disk is full
        say(f"error: {job}: {error}; not requeued. Fix: submit the run again; it resumes from its last checkpoint.")
        sys.exit(code or 1)


if __name__ == "__main__":
    main()
