"""Events of a job in files beside its run, readable without Slurm's accounting.

RUN/slurm/events.jsonl              submitted, started, ended: one line each
RUN/slurm/JOB/                      a submission: code/, config.yaml, cluster.yaml, logs, ends/
RUN/slurm/JOB/ends/START-RANK.json  how each process of each start ended
"""

import os
import re
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shards.io.atomic import read_bytes, replace_text
from shards.io.jsonl import dataclass_from_json, iter_valid_lines
from shards.redact import to_json

EVENTS = "events.jsonl"

# Fields of each event in addition to its time. A job number may become an argument of Slurm's programs.
FACTS: dict[str, dict[str, type]] = {
    "submitted": {"job": str},
    "started": {"job": str, "start": int},
    "ended": {"job": str, "start": int, "failure": bool, "step": int, "reason": str, "requeue": bool},
}
JOB = re.compile(r"[A-Za-z0-9][\w.+]*", re.ASCII)

# How a process can end. A process without an exit record was killed.
KINDS = ("done", "idle", "preempted", "user_error", "bug", "peer_lost", "hung")
DONE, IDLE, PREEMPTED, USER_ERROR, BUG, PEER_LOST, HUNG = KINDS


@dataclass(frozen=True)
class TaskExit:
    """Exit of one process. kind: one of the kinds above; words: the reason in one line."""

    rank: int
    host: str
    kind: str
    words: str


def append_event(run: Path, event: str, **facts: Any) -> None:
    """Append an event to the run's record."""
    folder = run / "slurm"
    folder.mkdir(parents=True, exist_ok=True)
    line = to_json({"time": round(time.time(), 3), "event": event, **facts}) + "\n"
    handle = os.open(folder / EVENTS, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(handle, line.encode())  # a single write, so that lines of several writers do not interleave
    finally:
        os.close(handle)


def events(run: Path) -> list[dict[str, Any]]:
    """Read the run's events so far; skip truncated lines and lines without an event."""
    try:
        content = read_bytes(run / "slurm" / EVENTS)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [line for line in iter_valid_lines(content) if _is_event(line)]


def _is_event(line: dict[str, Any]) -> bool:
    facts = FACTS.get(str(line.get("event")))
    return facts is not None and bool(
        all(type(line.get(name)) is kind for name, kind in facts.items()) and JOB.fullmatch(line["job"])
    )


def write_task_exit(job: Path, start: int, end: TaskExit) -> None:
    """Record the exit of a process of the job's start number `start`; the first record of a process is kept."""
    folder = job / "ends"
    folder.mkdir(exist_ok=True)
    file = folder / f"{start}-{end.rank:05d}.json"
    if not file.exists():
        replace_text(file, to_json(asdict(end)))


def task_exits(job: Path, start: int) -> list[TaskExit]:
    """Read the exits of the processes of a start, by rank; missing and corrupt records are omitted."""
    found = []
    for file in sorted((job / "ends").glob(f"{start}-*.json")):
        try:
            end = dataclass_from_json(TaskExit, read_bytes(file))
        except (OSError, ValueError):
            continue
        if end.kind in KINDS:
            found.append(end)
    return found
