"""What a process of a run tells of itself while it lives, in RUN/heartbeats. Nothing heavy is imported here."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Heartbeat:
    """beats grows by one each time; step and phase are what the process was at last.

    phase also names the data that the process waits for.
    """

    rank: int
    host: str
    pid: int
    beats: int
    step: int
    phase: str
