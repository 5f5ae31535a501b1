"""Lock a run folder for one run at a time. The main process holds the lock and detects when it loses the folder.

The first line of RUN/.lock names the process that holds the lock. A later start of the same Slurm job that waits for
the lock adds a line: the node of the earlier start lost its network, but its processes still run. They exit when they
read that line.
"""

import errno
import os
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from shards.io.atomic import RefusedFileError, read_text
from shards.io.locks import try_lock
from simfle.errors import RunDirLockedError, UserError

LOCK = ".lock"
REQUESTED = "wanted by "
SHARED_DISK = "mount that file system with locks (Lustre: -o flock), or use a train.run_dir on another one"


@dataclass(frozen=True)
class JobStart:
    """Start of a Slurm job. start: 0 at first, plus 1 with each requeue."""

    job: str
    start: int

    def __str__(self) -> str:
        return f"job {self.job} start {self.start}"


class RunLock:
    """Lock of a run folder, held by this process. `lost_because` returns why the lock is lost."""

    def __init__(self, run: Path, file: IO[str], mine: JobStart | None) -> None:
        self.run, self.mine = run, mine
        self.holder = f"process {os.getpid()} on {socket.gethostname()}" + (f", {mine}" if mine else "")
        file.truncate(0)
        file.write(f"{self.holder}\n")
        file.flush()
        self._number = os.fstat(file.fileno()).st_ino

    def lost_because(self) -> str:
        """Return why the folder must no longer be written to, or "" if this process still owns it or the disk
        fails."""
        path = self.run / LOCK
        try:
            lines = read_text(path, errors="replace").splitlines()
            same = path.stat().st_ino == self._number
        except FileNotFoundError:
            lines, same = [], False
        except OSError:
            return ""
        if not lines and not same:
            return (
                f"train.run_dir={self.run}: the folder was deleted or moved while the run was training; the run "
                "no longer writes to it. Fix: restore it and rerun, or start a new run."
            )
        if not same or (lines and lines[0] != self.holder):
            return self._superseded(lines[0] if lines else "another process")
        if later := [line for line in lines[1:] if self._is_later(line)]:
            return self._superseded(later[-1].removeprefix(REQUESTED))
        return ""

    def check(self) -> None:
        """Raise a UserError if the folder is lost."""
        if words := self.lost_because():
            raise UserError(words)

    def _superseded(self, by: str) -> str:
        return f"train.run_dir={self.run}: {by} has taken over the run from {self.holder}, which exits without writing"

    def _is_later(self, line: str) -> bool:
        """Return whether a later start of this job wrote a line; no other process can request the folder."""
        if self.mine is None or not line.startswith(f"{REQUESTED}job {self.mine.job} start "):
            return False
        number = line.rpartition(" ")[2]
        return number.isdecimal() and int(number) > self.mine.start


@contextmanager
def lock_run_dir(run: Path, lock_timeout: float = 0.0, mine: JobStart | None = None) -> Iterator[RunLock]:
    """Lock the folder for this run; wait up to `lock_timeout` seconds for another process that holds it.

    Args:
        run: run folder.
        lock_timeout: seconds to wait for the lock.
        mine: start of a Slurm job, if any.

    Raises:
        UserError: If another run holds the lock, or the folder cannot be written.
        RunDirLockedError: If an earlier start of this job still holds it.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
        file = _open_lock_file(run / LOCK)
    except RefusedFileError as error:
        raise UserError(
            f"train.run_dir={run}: {LOCK} is {error.strerror}. Fix: delete {run / LOCK} and rerun."
        ) from None
    except OSError as error:
        raise UserError(f"train.run_dir={run}: cannot be written: {error.strerror}. Fix: use another folder.") from None
    with file:
        end = time.monotonic() + lock_timeout
        asked = mine is None or not mine.start
        while not try_lock(file, f"train.run_dir={run}", SHARED_DISK):
            if not asked:
                file.write(f"{REQUESTED}{mine}\n")
                file.flush()
                asked = True
            if time.monotonic() >= end:
                _refuse(run, file, lock_timeout, mine)
            time.sleep(0.5)
        yield RunLock(run, file, mine)  # the kernel releases the lock when the process ends in any way


def _refuse(run: Path, file: IO[str], patience: float, mine: JobStart | None) -> None:
    file.seek(0)
    holder = file.readline().strip() or "another process"
    if mine is not None and mine.start and f", job {mine.job} start " in holder:
        raise RunDirLockedError(
            f"train.run_dir={run}: still held by {holder}, {patience:.0f} s after this start requested it. "
            "Fix: end that process; its node may have lost its network."
        )
    raise UserError(f"train.run_dir={run}: in use by {holder}. Fix: wait for it, or use another train.run_dir.")


def _open_lock_file(path: Path) -> IO[str]:
    """Open the lock file for writing. A link is not followed: it may lead to any file of the user.

    Raises:
        RefusedFileError: If the lock file is a link or not a regular file.
        OSError: If the lock file cannot be opened.
    """
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        handle = os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise RefusedFileError(errno.EINVAL, "a link, which is not followed", str(path)) from None
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise RefusedFileError(errno.EINVAL, "not a regular file", str(path))
    return os.fdopen(handle, "a+")
