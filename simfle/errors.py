"""Expected errors that end a command early. Commands print them as one line, without a traceback."""

from shards.errors import UserError

__all__ = ["CollectiveError", "DeviceFailedError", "PeerLostError", "RunStopped", "UserError"]


class CollectiveError(UserError):
    """Error on which all processes of a run exit together. Only the main process prints it (`is_reporter`)."""

    def __init__(self, words: str, *, is_reporter: bool) -> None:
        super().__init__(words)
        self.is_reporter = is_reporter


class RunStopped(Exception):  # noqa: N818 - not an error: the run stopped as requested
    """Notice that the run was asked to stop and has saved a checkpoint. It resumes at the next sample.

    by_signal: whether a signal, and not train.stop_after_step, requested the stop.
    """

    def __init__(self, words: str, *, by_signal: bool) -> None:
        super().__init__(words)
        self.by_signal = by_signal


class PeerLostError(Exception):
    """Error: other processes of the run did not start, or were lost. A rerun may succeed."""


class DeviceFailedError(PeerLostError):
    """Error: this process's GPU failed, for example with an ECC error. The run can resume on another node."""


class RunDirLockedError(PeerLostError):
    """Error: an earlier start of this job holds the lock of the run folder. A rerun succeeds after it has ended."""
