"""Status of runs, from their folders, and from Slurm if available."""

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from shards.io.atomic import open_regular, read_bytes
from shards.io.jsonl import dataclass_from_json
from simfle.runtime import run_files
from simfle.slurm import events, scheduler
from simfle.slurm.requeue import newest_step
from simfle.train.watchdog import Heartbeat

DYING = 60.0  # seconds that processes may run after the end of their job: Slurm's KillWait plus a heartbeat
QUIET = 120.0  # seconds without a heartbeat after which a run without a job counts as stopped
HEARTBEATS = "heartbeats/rank-*.json"
NEVER = -1.0  # modification time of a missing file
LEVELS = 3  # depth of the search for runs
GONE, UNREADABLE = "gone", "unreadable"  # states in addition to those of Slurm and of a run's record
ALIVE = (
    "RUNNING",
    "COMPLETING",
    "CONFIGURING",
    "SUSPENDED",
    "PENDING",
)  # the first matching state is shown


@dataclass(frozen=True)
class RunStatus:
    """Status of a run. steps: total number (0 = unknown); images_per_second, losses: values of the last logged step, or
    None if there is no such step.

    checkpoint_age: seconds since the newest checkpoint, None without one.
    """

    run: Path
    jobs: tuple[str, ...]
    state: str
    step: int
    steps: int
    images_per_second: float | None
    data_wait: float | None
    losses: dict[str, float]
    checkpoint: int
    checkpoint_age: float | None
    requeues: int
    reason: str


def find_runs(folder: Path) -> list[Path]:
    """Return run folders at `folder` or up to LEVELS below it, by name.

    A folder with only slurm/ is not a run: jobs of simfle doctor and simfle slurm eval also create slurm/.
    """
    if _is_run(folder):
        return [folder]
    return sorted(path for path in _folders(folder, LEVELS) if _is_run(path))


def _is_run(folder: Path) -> bool:
    return any((folder / mark).exists() for mark in ("config.yaml", f"slurm/{events.EVENTS}"))


def _folders(folder: Path, levels: int) -> Iterator[Path]:
    """Return subfolders except slurm/, or none for a folder that vanished or cannot be read."""
    try:
        with os.scandir(folder) as entries:
            found = [entry.name for entry in entries if entry.name != "slurm" and entry.is_dir()]
    except OSError:
        return
    for name in found:
        yield folder / name
        if levels > 1:
            yield from _folders(folder / name, levels - 1)


def status(run: Path) -> RunStatus:
    """Read the status of a run without writing. Files that are being written are read up to the last complete line.

    An unreadable run has the state UNREADABLE, and other runs are still shown.
    """
    try:
        return _status(run) if run.is_dir() else _unknown(run, GONE, "the folder was deleted or moved")
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        return _unknown(run, UNREADABLE, f"{place}{error.strerror or error}")


def _unknown(run: Path, state: str, reason: str) -> RunStatus:
    return RunStatus(run, (), state, 0, 0, None, None, {}, 0, None, 0, reason)


def _status(run: Path) -> RunStatus:
    line = last_metrics(run)
    happened = events.events(run)
    here = _on_this_machine(happened)
    submitted = (event["job"] for event in happened if event["event"] == "submitted")
    jobs = tuple(dict.fromkeys(job for job in submitted if job not in here))
    saved = max(
        (_changed(folder / run_files.MARKER) for folder in run_files.complete_checkpoint_dirs(run)), default=NEVER
    )
    age = time.time() - saved if saved > NEVER else None
    steps = run_files.planned_steps(run)
    step = max(line.get("step", 0), newest_step(run))
    state, reason = _state(run, happened, step, steps)
    return RunStatus(
        run,
        jobs,
        state,
        step,
        steps,
        line.get("images_per_second"),
        line.get("data_wait"),
        line.get("losses", {}),
        newest_step(run),
        age,
        sum(1 for event in happened if event["event"] == "started" and event["start"]),
        reason,
    )


def last_metrics(run: Path) -> dict[str, Any]:
    """Return the last complete line of RUN/metrics.jsonl, or nothing if there is none."""
    lines = tail(run)
    return lines[-1] if lines else {}


def tail(run: Path) -> list[dict[str, Any]]:
    """Return the last complete lines of RUN/metrics.jsonl, a few hundred, read from the file's end only."""
    try:
        with open_regular(run / "metrics.jsonl", "rb") as stream:
            stream.seek(max(0, os.fstat(stream.fileno()).st_size - 65536))
            return run_files.parse_metrics(stream.read())
    except FileNotFoundError:
        return []


def _state(run: Path, happened: list[dict[str, Any]], step: int, steps: int) -> tuple[str, str]:
    """Return running, pending, finished, stopped, failed ..., and the reason of the last end.

    The last event alone is not sufficient: it may belong to a job that exited because another job holds the run.
    """
    if steps and newest_step(run) >= steps:
        return "finished", ""
    last = happened[-1] if happened else {}
    reason = str(last.get("reason", ""))
    asked = _asked(happened)
    alive = [job for state in ALIVE for job, words in asked.items() if words == state]
    over = "" if alive or last.get("event") != "started" else last["job"]
    if (not alive or asked[alive[0]] == "PENDING") and _beats(run, happened, over if asked.get(over) else ""):
        return "running", ""  # the run is outside Slurm, or Slurm does not answer
    if alive:
        return asked[alive[0]].lower(), reason if alive[0] == last["job"] else ""
    if last and last["event"] == "ended":
        return ("failed" if last["failure"] else "stopped"), reason
    return _without_an_end(run, last, asked, step)


def _without_an_end(run: Path, last: dict[str, Any], asked: dict[str, str], step: int) -> tuple[str, str]:
    """Return state and reason if the last event is not an end. asked: states from Slurm, empty if Slurm forgot the
    job."""
    left = any(run.glob(HEARTBEATS))
    state = asked.get(last.get("job", ""), "").lower() or ("killed" if left else "stopped" if step else "not started")
    if last.get("event") == "started" and last["job"] in asked:
        return state, unrecorded(run, last["job"], last["start"])
    return state, f"no end is recorded: {_silent(run)}; rerun to resume" if left else ""


def unrecorded(run: Path, job: str, start: int) -> str:
    """Return why a start of a job has ended without a record of its batch shell."""
    known = scheduler.show(job)
    words = f", {known['JobState'].lower()}" if known.get("JobState") else ""
    left = f"; {_silent(run)}" if any(run.glob(HEARTBEATS)) else ""
    return f"job {job} start {start}{words}: no end is recorded: {_shell(known)}{left}; submit it again to resume"


def _shell(known: dict[str, str]) -> str:
    """Describe the end of a job's batch shell by its exit code and signal."""
    code, _, killer = known.get("ExitCode", "").partition(":")
    if killer not in ("", "0"):
        return f"its batch shell was killed by signal {killer}"
    if code not in ("", "0"):
        return f"its batch shell exited with code {code} without reporting why"
    return "its batch shell was killed, or its node was lost"


def _silent(run: Path) -> str:
    """Describe the first process that ended without removing its heartbeat: it was killed, or its machine was lost."""
    for file in sorted(run.glob(HEARTBEATS)):
        try:
            beat = dataclass_from_json(Heartbeat, read_bytes(file))
        except (OSError, ValueError):
            continue
        return (
            f"rank {beat.rank}, process {beat.pid} on {beat.host}, was killed (SIGKILL, out of memory) or its machine "
            f"was lost, in step {beat.step}"
        )
    return "a process was killed, or its machine was lost"


def _asked(happened: list[dict[str, Any]]) -> dict[str, str]:
    """Return Slurm's states of the last job, and of earlier jobs that have not ended for good."""
    latest = {event["job"]: event for event in happened}
    here = _on_this_machine(happened)
    over = {job for job, event in latest.items() if event["event"] == "ended" and not event["requeue"]}
    over -= {event["job"] for event in happened[-1:]}
    folders = {event["job"]: str(event.get("folder", "")) for event in happened if event["event"] == "submitted"}
    return {job: scheduler.state_of_many(job, folders.get(job, "")) for job in latest if job not in here | over}


def _beats(run: Path, happened: list[dict[str, Any]], over: str) -> bool:
    """Return whether a process of the run is alive: its heartbeat is recent, and newer than the last known end.

    over: id of a job that has ended according to Slurm but has no recorded end, or ""; its processes may run for a
    short time.
    """
    last = max(map(_changed, run.glob(HEARTBEATS)), default=NEVER)
    ends = [event.get("time") for event in happened if event["event"] == "ended"]
    with suppress(ValueError):
        ends += [datetime.fromisoformat(scheduler.show(over).get("EndTime", "")).timestamp() + DYING] if over else []
    return last > max([time.time() - QUIET, *(when for when in ends if isinstance(when, int | float))])


def _changed(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except FileNotFoundError:  # a process removes its heartbeat when it ends, and a run removes old checkpoints
        return NEVER


def _on_this_machine(happened: list[dict[str, Any]]) -> set[str]:
    """Return the numbers of jobs started with --local, which are process ids and not Slurm's job numbers."""
    local = {event["job"]: bool(event.get("local")) for event in happened if event["event"] == "submitted"}
    return {job for job, is_local in local.items() if is_local}
