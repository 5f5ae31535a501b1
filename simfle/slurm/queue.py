"""Slurm's own words about jobs, through its programs; with and without accounting (slurmdbd)."""

import math
import shutil
import subprocess

from simfle.errors import UserError

SECONDS = 60


def state(job: str) -> str:
    """State of a job, e.g. RUNNING, PENDING, COMPLETED; empty where Slurm does not know it (any more)."""
    return show(job).get("JobState", "") or _accounted(job)


def show(job: str) -> dict[str, str]:
    """`scontrol show job` as names and values; empty where the controller has forgotten the job."""
    text = _output("scontrol", "show", "job", "--oneliner", job)
    return dict(word.split("=", 1) for word in text.split() if "=" in word)


def seconds(text: str) -> float:
    """'1-02:03:04' -> 93784; what is no time (UNLIMITED, Partition_Limit) is endless."""
    days, _, clock = text.rpartition("-")
    parts = clock.split(":")
    if not all(part.isdigit() for part in parts) or len(parts) != 3:
        return math.inf
    hours, minutes, rest = (int(part) for part in parts)
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + rest


def requeue(job: str) -> None:
    """Put a job back into the queue, under its number.

    Raises:
        UserError: Slurm refuses, its words; or does not answer.
    """
    words = ["scontrol", "requeue", job]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"job {job} could not be requeued: {error}") from None
    if done.returncode:
        raise UserError(f"job {job} could not be requeued: {done.stderr.strip()}")


def available() -> bool:
    """Whether this machine can submit."""
    return shutil.which("sbatch") is not None and shutil.which("srun") is not None


def _accounted(job: str) -> str:
    """From sacct, which fails on clusters without accounting."""
    words = _output("sacct", "--jobs", job, "--format", "State", "--noheader", "--parsable2", "--allocations").split()
    return words[0] if words else ""


def _output(*words: str) -> str:
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""
