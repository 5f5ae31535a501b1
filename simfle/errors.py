"""Ends of a command that are not our bugs. Commands print them as one line, without a traceback."""

from shards.errors import UserError

__all__ = ["RunStopped", "UserError"]


class RunStopped(Exception):  # noqa: N818 - not an error: the run was asked to stop and did
    """The run was asked to stop by a signal, has saved, and will go on at the next sample when started again."""
