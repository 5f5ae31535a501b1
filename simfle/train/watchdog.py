"""End a hanging run and report the processes for which it waits.

When one process of a run stops (suspended, a node without network, a file system that hangs), the other processes wait
for it in a collective forever. Each process therefore writes a heartbeat to RUN/heartbeats, and exits when it has made
no progress for `limit` seconds.
"""

import faulthandler
import os
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn

from shards.io.atomic import read_bytes, replace_text
from shards.io.jsonl import dataclass_from_json
from shards.printable import printable
from shards.redact import to_json
from simfle.train.run_lock import RunLock

WAITS = " waits for "
PEER_LOST = 69  # exit code: EX_UNAVAILABLE
HUNG = 76  # exit code: EX_PROTOCOL, "remote error in protocol"
LAST_WORDS = 5.0  # maximum seconds for the last message


@dataclass(frozen=True)
class Heartbeat:
    """Heartbeat of a process. beats: a counter; step and phase: last progress of the process.

    phase also names the data for which the process waits, after WAITS.
    """

    rank: int
    host: str
    pid: int
    beats: int
    step: int
    phase: str


class Watchdog:
    """Write heartbeats while the process runs; exit with code 76 if `mark_progress` is not called for `limit` seconds.

    on_hang: called with the message just before the exit; limit: seconds (0 = never exit); run_lock: lock of the main
    process. If the lock is lost, the process exits, even while another process does not respond.
    """

    def __init__(
        self,
        run: Path,
        rank: int,
        size: int,
        limit: float,
        on_hang: Callable[[str], None] | None = None,
        run_lock: RunLock | None = None,
    ) -> None:
        self.folder, self.rank, self.size, self.limit = run / "heartbeats", rank, size, limit
        self._waiting_for: Callable[[], str] = str
        self._on_hang, self.run_lock = on_hang, run_lock
        self._period = min(max(limit / 10, 0.2), 30.0) if limit else 30.0
        self._place = 0, "start"
        self._since = time.monotonic()
        self._beats = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.rank == 0:  # delete heartbeats of an earlier start with more ranks
            for left in set(self.folder.glob("rank-*.json")) - {self._file(rank) for rank in range(self.size)}:
                left.unlink(missing_ok=True)
        self._beat()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._file(self.rank).unlink(missing_ok=True)

    def mark_progress(self, step: int, phase: str) -> None:
        """Mark progress: the process now executes `phase` of `step`. This call takes negligible time."""
        self._place = step, phase
        self._since = time.monotonic()

    def mark_phase(self, phase: str) -> None:
        """Mark progress within the current step."""
        self.mark_progress(self._place[0], phase)

    def watch_data(self, waiting_for: Callable[[], str]) -> None:
        """Record in heartbeats the data that the process waits for. `waiting_for` returns its name, or "" if none."""
        self._waiting_for = waiting_for

    def _work(self) -> None:
        while not self._stop.wait(self._period):
            if self.run_lock is not None and (words := self.run_lock.lost_because()):
                leave(f"error: {words}", PEER_LOST)
            self._beat()
            if self.limit and time.monotonic() - self._since > self.limit:
                message = self._diagnose()
                if time.monotonic() - self._since > self.limit:  # unless it has progressed meanwhile
                    self._end(message)

    def _beat(self) -> None:
        self._beats += 1
        step, phase = self._place
        if data := self._waiting_for():
            phase += f"{WAITS}{data}"
        beat = Heartbeat(self.rank, socket.gethostname(), os.getpid(), self._beats, step, phase)
        file = self._file(self.rank)
        with suppress(OSError):  # a full disk or a lost file system must not end a run that makes progress
            replace_text(file, to_json(asdict(beat)))

    def _diagnose(self) -> str:
        """Find the silent ranks: heartbeats whose counter does not change during the check, because clocks differ."""
        before = self._read()
        end = time.monotonic() + 3 * self._period
        while time.monotonic() < end and not self._stop.wait(self._period):
            self._beat()
        after = self._read()
        silent = [rank for rank in range(self.size) if rank not in after or after[rank] == before.get(rank)]
        silent = [rank for rank in silent if rank != self.rank]
        step, phase = self._place
        seconds = time.monotonic() - self._since
        head = f"no progress for {seconds:.0f} s (train.hang_timeout={self.limit:g}) in {phase} of step {step}"
        if silent:
            names = ", ".join(_name(rank, after.get(rank)) for rank in silent[:8])
            return f"{head}: no heartbeat from {names}{' and others' if len(silent) > 8 else ''}"
        hungry = [beat for beat in after.values() if WAITS in beat.phase]
        if hungry:
            data = hungry[0].phase.partition(WAITS)[2]
            more = f", {len(hungry) - 1} more wait for data" if hungry[1:] else ""
            who = _name(hungry[0].rank, hungry[0])
            return f"{head}: {who} waits for data: {data}{more}. Fix: check its server, network or disk"
        last = min(after.values(), key=lambda beat: beat.step)
        return f"{head}: all processes are alive, the slowest is {_name(last.rank, last)}, in {last.phase}"

    def _read(self) -> dict[int, Heartbeat]:
        found = {}
        for rank in range(self.size):
            try:
                found[rank] = dataclass_from_json(Heartbeat, read_bytes(self._file(rank)))
            except (OSError, ValueError):
                continue
        return found

    def _end(self, message: str) -> None:
        if self._on_hang is not None:
            self._on_hang(message)
        # The main thread is blocked in a collective forever.
        leave(f"error: {message}; exiting, rerun to resume", HUNG, threads=True)

    def _file(self, rank: int) -> Path:
        return self.folder / f"rank-{rank:05d}.json"


def leave(words: str, code: int, *, threads: bool = False) -> NoReturn:
    """Exit the process with a last message and the stacks of its threads; omit the stacks if stderr is blocked.

    A full pipe without a reader blocks the writer, which may be why the run hangs.
    """
    text = printable(words) + "\n" + (_threads() if threads else "")

    def write() -> None:
        sys.stderr.write(text)
        sys.stderr.flush()

    writer = threading.Thread(target=write, name="last words", daemon=True)
    writer.start()
    writer.join(LAST_WORDS)
    os._exit(code)


def _threads() -> str:
    """Return the stacks of all threads, via a file: faulthandler stops all threads while it writes."""
    try:
        with tempfile.TemporaryFile("w+", errors="replace") as file:
            faulthandler.dump_traceback(file, all_threads=True)
            file.seek(0)
            return file.read()
    except OSError:
        return ""


def _name(rank: int, beat: Heartbeat | None) -> str:
    if beat is None:
        return f"rank {rank}"
    return f"rank {rank} (process {beat.pid} on {beat.host}, at step {beat.step})"
