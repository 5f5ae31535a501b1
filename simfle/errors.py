"""Expected ways for a command to end early. Commands print them as one line, without a traceback."""

from shards.errors import UserError

__all__ = ["AgreedError", "DeviceFailed", "PeersMissing", "RunStopped", "UserError"]


class AgreedError(UserError):
    """An error on which all processes of a run exit together. Only the main process prints it (`said_here`)."""

    def __init__(self, words: str, *, said_here: bool) -> None:
        super().__init__(words)
        self.said_here = said_here


class RunStopped(Exception):  # noqa: N818 - not an error: the run stopped as requested
    """The run was asked to stop and has saved a checkpoint. It resumes at the next sample.

    by_signal: the request was a signal, not train.stop_after.
    """

    def __init__(self, words: str, *, by_signal: bool) -> None:
        super().__init__(words)
        self.by_signal = by_signal


class PeersMissing(Exception):  # noqa: N818 - like RunStopped, not an error of this program
    """Other processes of the run did not start, or were lost. A rerun may succeed."""


class DeviceFailed(PeersMissing):
    """This process's GPU failed, such as by an ECC error. The run can resume on another node."""


class FolderHeld(PeersMissing):
    """An earlier start of this job holds the lock of the run folder. A rerun succeeds after it has ended."""
