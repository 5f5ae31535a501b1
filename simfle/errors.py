"""Ends of a command that are not our bugs. Commands print them as one line, without a traceback."""

from shards.errors import UserError

__all__ = ["AgreedError", "DeviceFailed", "PeersMissing", "RunStopped", "UserError"]


class AgreedError(UserError):
    """What all processes of a run end on together. The main one says it (`said_here`), the others end in silence."""

    def __init__(self, words: str, *, said_here: bool) -> None:
        super().__init__(words)
        self.said_here = said_here


class RunStopped(Exception):  # noqa: N818 - not an error: the run was asked to stop and did
    """The run was asked to stop, has saved, and will go on at the next sample when started again.

    by_signal: a signal asked for it, not train.stop_after.
    """

    def __init__(self, words: str, *, by_signal: bool) -> None:
        super().__init__(words)
        self.by_signal = by_signal


class PeersMissing(Exception):  # noqa: N818 - like RunStopped an end, and not one of our making
    """Other processes of the run did not come, or went away: started again, the run may succeed."""


class DeviceFailed(PeersMissing):
    """This process's GPU failed, by an ECC error for example: a node lost. On another one the run goes on."""


class FolderHeld(PeersMissing):
    """A former start of this job holds the run's folder: once that has ended, a later start succeeds."""
