"""Follow a submitted job from the submitting machine: print its state and the log of rank 0, until its final end."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import psutil

from shards.io.atomic import open_regular
from simfle.slurm import events, scheduler
from simfle.slurm.requeue import Decision, decide, newest_step
from simfle.slurm.status import unrecorded

SECONDS = 2.0
FORGOTTEN = 15  # number of polls after which a job that Slurm does not know counts as ended
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "DEADLINE", "BOOT_FAIL")


def follow(job: Path, number: str, say: Callable[[str], None], state: Callable[[], str] | None = None) -> bool:
    """Print the events of the job in folder `job` through all its requeues; return whether the run finished.

    state: function that returns the job's state, by default from Slurm.
    """
    ask = state or (lambda: scheduler.state(number))
    log: IO[str] | None = None
    told, before, unknown = 0, "", 0
    while True:
        now = ask()
        if now != before and now:
            say(f"[{number}] {now.lower()}{_reason(number) if now == 'PENDING' else ''}")
        before = now or before
        log = _print_log(job / f"{number}_0_log.out", log, say)
        happened = [event for event in events.events(job.parents[1]) if event.get("job") == number]
        for event in happened[told:]:
            told += 1
            if event["event"] == "ended":
                say(f"[{number}] {event['reason']}{'; requeued' if event['requeue'] else ''}")
        final = happened[-1] if happened else {}
        if final.get("event") == "ended" and not final["requeue"]:
            _print_log(job / f"{number}_0_log.out", log, say)
            return bool(final["reason"] == "finished")
        unknown = 0 if now else unknown + 1
        if now in ENDED or unknown > FORGOTTEN:
            if final.get("event") == "started":
                say(f"[{number}] {unrecorded(job.parents[1], number, final['start'])}")
            return False
        time.sleep(SECONDS)


def follow_local(job: Path, submitted: Any, processes: int, say: Callable[[str], None]) -> Decision:
    """Print rank 0's log of a job on this machine until all its processes have ended; return their exits.

    Ctrl-C also reaches the processes, which save and exit; this function waits for them.
    """
    log: IO[str] | None = None
    file = job / f"{submitted.job_id}_0_log.out"
    process = psutil.Process(int(submitted.job_id))
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        try:
            log = _print_log(file, log, say)
            time.sleep(0.5)
        except KeyboardInterrupt:
            say("stopping: the processes save and exit")
    _print_log(file, log, say)
    decision = decide(events.task_exits(job, 0), processes, 0)
    facts = {"failure": decision.failure, "step": newest_step(job.parents[1]), "requeue": False}
    events.append_event(job.parents[1], "ended", job=submitted.job_id, start=0, **facts, reason=decision.words)
    return decision


def _print_log(file: Path, log: IO[str] | None, say: Callable[[str], None]) -> IO[str] | None:
    """Print new lines. The log stays open between polls, and each start of the job appends to it."""
    if log is None and file.exists():
        log = open_regular(file, errors="replace")
    while log is not None:
        position = log.tell()
        line = log.readline()
        if not line.endswith("\n"):
            log.seek(position)
            break
        if "submitit" not in line:
            say(line.rstrip("\n"))
    return log


def _reason(number: str) -> str:
    """Return Slurm's reason for waiting, such as Resources or Priority."""
    words = scheduler.show(number)
    reason = words.get("Reason", "")
    return f" ({reason})" if reason not in ("", "None") else ""
