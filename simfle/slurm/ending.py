"""The end of a job, in its batch shell: put back into the queue, or not, and why.

    python -m simfle.slurm.ending JOB_FOLDER EXIT_CODE

Runs after srun on the job's first node. It imports nothing heavy: the lead time may be nearly used up.
"""

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from simfle import told
from simfle.config import load
from simfle.errors import UserError
from simfle.slurm import queue, record
from simfle.slurm.config import ClusterConfig
from simfle.slurm.record import End
from simfle.terminal import say

TRIES, PAUSE = 5, 6.0  # times that Slurm is asked, seconds between: its controller may be busy, or just be restarted


@dataclass(frozen=True)
class Decision:
    """requeue, failure (counts against max_failures), and the reason in one line."""

    requeue: bool
    failure: bool
    words: str


def decide(ends: list[End], expected: int, code: int, *, began: bool = True) -> Decision:
    """From how each of `expected` tasks ended and srun's exit code. began: at least one of them said that it starts.

    A stop asked for is requeued; a refusal or a bug is not, for it would come again; what befell the job from outside
    (a killed process, a lost node, a hang) is.
    """
    first = {end.kind: end for end in reversed(ends)}
    known = {end.rank for end in ends}
    silent = [rank for rank in range(expected) if rank not in known]
    names = ", ".join(map(str, silent[:8])) + (" and others" if len(silent) > 8 else "")
    left = f"; exit code {code}" if code else ""
    whole = bool(ends) and not silent and set(first) <= {record.DONE, record.SPARE}
    rules = (  # the first that holds
        (whole, False, False, (first[record.DONE].words if record.DONE in first else "") or "finished"),
        (record.REFUSED in first, False, True, _told(first.get(record.REFUSED))),
        (record.BUG in first, False, True, _told(first.get(record.BUG))),
        (record.HUNG in first, True, True, _told(first.get(record.HUNG))),
        (not ends and not began, True, True, f"no process began{left}; why not stands in the job's log"),
        (bool(silent), True, True, f"rank {names} ended without a word (killed, or its node lost){left}"),
        (record.LOST in first, True, True, _told(first.get(record.LOST))),
    )
    for holds, requeue, failure, words in rules:
        if holds:
            return Decision(requeue, failure, words)
    return Decision(True, False, first[record.STOPPED].words)  # the one kind that is left


def _told(end: End | None) -> str:
    return f"rank {end.rank} on {end.host}: {end.words}" if end else ""


def failures_in_a_row(events: list[dict], job: str) -> int:
    """Ends of this job by failure since its last new checkpoint."""
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
    """Decide, record, and requeue; the exit code for the batch shell."""
    number, start = os.environ["SLURM_JOB_ID"], int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    run = job_folder.parents[1]
    cluster = load(ClusterConfig, job_folder / "cluster.yaml")
    expected = int(os.environ.get("SLURM_NNODES", cluster.nodes)) * cluster.tasks
    events = of_submission(record.events(run), number, job_folder.name)
    if superseded(events, number, start):
        return _give_way(number, start)
    began = any((each["event"], each["job"], each.get("start")) == ("started", number, start) for each in events)
    decision = decide(record.ends(job_folder, start), expected, code, began=began)
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
    row = failures_in_a_row([*events, {"event": "ended", **facts}], number)
    if requeue and row >= cluster.max_failures:
        requeue, words = False, f"{words}; not requeued: {row} failures in a row without a new checkpoint"
    known = shown(number) if requeue else {}
    if _restarts(known) > start:
        return _give_way(number, start)
    if requeue and (state := may_not_come_back(known)):
        requeue, words = False, f"{words}; not requeued: the job is {state}"
    if not decision.failure and not decision.requeue:
        code = 0  # all tasks have said that they are done: whoever killed one that was on its way out changes nothing
    if requeue and (refusal := put_back(number)):
        requeue, words, code = False, f"{words}; not requeued: {refusal}", code or 1
    # Not before Slurm has done it, for the record would promise too much; this shell has KillWait seconds left then.
    record.tell(run, "ended", **facts, requeue=requeue, reason=words, code=code)
    say(f"job {number}: {words}{'; requeued' if requeue else ''}")
    return code


def of_submission(events: list[dict], number: str, folder: str) -> list[dict]:
    """The events of one submission. Its number alone does not tell them: a controller that has lost its records, or
    another cluster, gives the same numbers once more. Versions before this one kept no folder of starts and ends."""
    return [each for each in events if each["job"] == number and each.get("folder", folder) == folder]


def superseded(events: list[dict], number: str, start: int) -> bool:
    """Whether a later start of the job has begun: this one's node was cut off, and Slurm has requeued it."""
    return any((each["event"], each["job"]) == ("started", number) and each["start"] > start for each in events)


def _restarts(known: dict[str, str]) -> int:
    text = known.get("Restarts", "")
    return int(text) if text.isdecimal() else 0


def _give_way(number: str, start: int) -> int:
    """Nothing is recorded or requeued: it would end the later start."""
    say(f"job {number}: start {start} has ended; Slurm has put the job back into the queue before")
    return 0


def shown(number: str) -> dict[str, str]:
    """What Slurm says of a job; empty where it has not answered several times."""
    for tries in range(TRIES):
        if tries:
            time.sleep(PAUSE)
        if found := queue.show(number):
            return found
    return {}


def put_back(number: str) -> str:
    """Requeue a job; empty if Slurm has, else why it has not, several times, in its words."""
    refusal = ""
    for tries in range(TRIES):
        if tries:
            time.sleep(PAUSE)
        try:
            queue.requeue(number)
        except UserError as error:
            refusal = str(error)
        else:
            return ""
    return refusal


def may_not_come_back(shown: dict[str, str]) -> str:
    """The state of a job that somebody wanted to end, such as cancelled; empty for one that may be requeued, and
    where Slurm did not answer.

    While its processes end a job is COMPLETING, cancelled or out of time: the clock tells which.
    """
    state = shown.get("JobState", "")
    out_of_time = queue.seconds(shown.get("RunTime", "")) >= queue.seconds(shown.get("TimeLimit", ""))
    if state in ("RUNNING", "TIMEOUT", "NODE_FAIL", "PREEMPTED") or (state == "COMPLETING" and out_of_time):
        return ""
    return "cancelled" if state == "COMPLETING" else state.lower()


def newest_step(run: Path) -> int:
    """Step of the newest complete checkpoint; 0 without one."""
    return max((told.step_of(folder) or 0 for folder in told.checkpoints(run)), default=0)


def main() -> None:
    """Called by the batch script."""
    import signal

    for name in (signal.SIGTERM, signal.SIGUSR2):  # Slurm ends all processes of a job at once; this one is needed
        signal.signal(name, signal.SIG_IGN)
    job, code = Path(sys.argv[1]), int(sys.argv[2])
    try:
        sys.exit(end(job, code))
    except (UserError, OSError) as error:  # the job's folder was deleted, or its disk is full
        say(f"error: {job}: {error}; not requeued. Fix: submit the run again to go on after its last checkpoint")
        sys.exit(code or 1)


if __name__ == "__main__":
    main()
