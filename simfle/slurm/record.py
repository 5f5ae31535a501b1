"""What happened to a job, in files beside its run, so that it is known without Slurm's accounting.

RUN/slurm/events.jsonl              submitted, started, ended: one line each
RUN/slurm/JOB/                      a submission: code/, config.yaml, cluster.yaml, logs, ends/
RUN/slurm/JOB/ends/START-RANK.json  how each process of each start ended
"""

import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

EVENTS = "events.jsonl"

# How a process can end. One that left no word was killed.
DONE, SPARE, STOPPED, REFUSED, BUG, LOST, HUNG = "done", "spare", "stopped", "refused", "bug", "lost", "hung"


@dataclass(frozen=True)
class End:
    """How one process ended. kind: one of the above; words: the reason in one line."""

    rank: int
    host: str
    kind: str
    words: str


def tell(run: Path, event: str, **facts: Any) -> None:
    """Append an event to the run's record."""
    folder = run / "slurm"
    folder.mkdir(parents=True, exist_ok=True)
    line = json.dumps({"time": round(time.time(), 3), "event": event, **facts}) + "\n"
    handle = os.open(folder / EVENTS, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(handle, line.encode())  # one write: lines of several writers do not mix
    finally:
        os.close(handle)


def events(run: Path) -> list[dict[str, Any]]:
    """The run's record so far; a line that a crash cut short is left out."""
    file = run / "slurm" / EVENTS
    found = []
    for line in file.read_text().splitlines() if file.exists() else []:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def write_end(job: Path, start: int, end: End) -> None:
    """Keep how a process of the job's start number `start` ended; the first word of a process holds."""
    folder = job / "ends"
    folder.mkdir(exist_ok=True)
    file = folder / f"{start}-{end.rank:05d}.json"
    if not file.exists():
        partial = file.with_suffix(".partial")
        partial.write_text(json.dumps(asdict(end)))
        partial.replace(file)


def ends(job: Path, start: int) -> list[End]:
    """How the processes of a start ended, by rank; those without a word are not there."""
    return [End(**json.loads(file.read_text())) for file in sorted((job / "ends").glob(f"{start}-*.json"))]
