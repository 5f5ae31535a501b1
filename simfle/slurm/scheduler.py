"""Query jobs through Slurm's programs, with and without accounting (slurmdbd)."""

import math
import os
import shutil
import signal
import subprocess
import time
from contextlib import suppress

from simfle.errors import UserError

SECONDS = 60
SILENCE = 300.0  # seconds without further queries of a list of jobs after Slurm did not answer
SHOW = ("scontrol", "show", "job", "--oneliner")
_silences: list[float] = []  # times at which Slurm did not answer


def state(job: str, folder: str = "") -> str:
    """Return the state of a job, such as RUNNING, PENDING or COMPLETED, or "" if Slurm does not know the job.

    folder: the name of its folder in RUN/slurm. A controller that has lost its records reuses numbers, so the job of
    this number may be another job with another log folder.
    """
    text = _output(*SHOW, job)
    if folder and "StdOut=" in text and f"/slurm/{folder}/" not in text:
        return ""
    return _words(text).get("JobState", "") or _accounted(job)


def state_of_many(job: str, folder: str = "") -> str:
    """Return `state`, for lists of jobs: after a timeout Slurm is not queried again for a while."""
    waited = time.monotonic() - _silences[-1] if _silences else math.inf
    return state(job, folder) if waited > SILENCE else ""


def show(job: str) -> dict[str, str]:
    """Return `scontrol show job` as names and values, or {} if the controller has forgotten the job."""
    return _words(_output(*SHOW, job))


def _words(text: str) -> dict[str, str]:
    return dict(word.split("=", 1) for word in text.split() if "=" in word)


def seconds(text: str) -> float:
    """Convert '1-02:03:04' to 93784; other texts (UNLIMITED, Partition_Limit) are infinite."""
    days, _, clock = text.rpartition("-")
    parts = clock.split(":")
    if not all(part.isdigit() for part in parts) or len(parts) != 3:
        return math.inf
    hours, minutes, rest = (int(part) for part in parts)
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + rest


def requeue(job: str) -> None:
    """Requeue a job under its number.

    Raises:
        UserError: If Slurm does not answer, or refuses the request (the error contains Slurm's message).
    """
    try:
        done = _run("scontrol", "requeue", job)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"job {job} could not be requeued: {error}. Fix: submit the run again.") from None
    if done.returncode:
        raise UserError(f"job {job} could not be requeued: {done.stderr.strip()}")


def available() -> bool:
    """Return whether this machine can submit jobs."""
    return shutil.which("sbatch") is not None and shutil.which("srun") is not None


def _accounted(job: str) -> str:
    """Return the state from sacct, which fails on clusters without accounting."""
    words = _output("sacct", "--jobs", job, "--format", "State", "--noheader", "--parsable2", "--allocations").split()
    return words[0] if words else ""


def _output(*words: str) -> str:
    try:
        done = _run(*words)
    except subprocess.TimeoutExpired:
        _silences.append(time.monotonic())
        return ""
    except OSError:
        return ""
    return done.stdout if done.returncode == 0 else ""


def _run(*words: str) -> "subprocess.CompletedProcess[str]":
    """Run a program for at most SECONDS, and kill it with all its children.

    Slurm's programs are often wrapped in scripts, whose children would keep the output open.

    Raises:
        OSError: If the program cannot be started.
        subprocess.TimeoutExpired: If the program did not end.
    """
    pipe = subprocess.PIPE
    with subprocess.Popen(
        words, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True, errors="replace", start_new_session=True
    ) as process:
        try:
            out, err = process.communicate(timeout=SECONDS)
        except BaseException:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
        return subprocess.CompletedProcess(words, process.returncode, out, err)
