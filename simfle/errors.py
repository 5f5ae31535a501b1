"""Expected ways for a command to end early. Commands print them as one line, without a traceback."""

from shards.errors import UserError

__all__ = ["CollectiveError", "DeviceFailedError", "PeerLostError", "RunStopped", "UserError"]


class CollectiveError(UserError):
    """An error on which all processes of a run exit together. Only the main process prints it (`is_reporter`)."""

    def __init__(self, words: str, *, is_reporter: bool) -> None:
        super().__init__(words)
        self.is_reporter = is_reporter


class RunStopped(Exception):  # noqa: N818 - not an error: the run stopped as requested
    """The run was asked to stop and has saved a checkpoint. It resumes at the next sample.

    by_signal: the request was a signal, not train.stop_after_step.
    """

    def __init__(self, words: str, *, by_signal: bool) -> None:
        super().__init__(words)
        self.by_signal = by_signal


class PeerLostError(Exception):
    """Other processes of the run did not start, or were lost. A rerun may succeed."""


class DeviceFailedError(PeerLostError):
    """This process's GPU failed, such as by an ECC error. The run can resume on another node."""


class RunDirLockedError(PeerLostError):
    """An earlier start of this job holds the lock of the run folder. A rerun succeeds after it has ended."""
