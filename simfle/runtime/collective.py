"""Run actions on the main process and share their outcome with all processes. All functions are collective."""

from collections.abc import Callable
from typing import TypeVar

import torch.distributed as dist

from simfle.errors import CollectiveError, PeerLostError, UserError
from simfle.runtime.distributed import World

T = TypeVar("T")


def main_process_value(value: T) -> T:
    """Return the main process's value on all processes."""
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def main_process_tries(world: World, action: Callable[[], T]) -> T | None:
    """Call `action` on the main process alone; all processes exit together if it fails.

    Returns:
        The result on the main process, which need not be picklable; None on the other processes.

    Raises:
        CollectiveError: If the action raised a UserError; the main process reports it.
        PeerLostError: If the action raised PeerLostError. All processes raise this error, so that each process is
            restarted.
    """
    result: T | None = None
    failure: str | PeerLostError | None = None
    if world.is_main:
        try:
            result = action()
        except UserError as error:
            failure = str(error)
        except PeerLostError as error:
            failure = error
    failure = main_process_value(failure)
    if isinstance(failure, PeerLostError):
        raise failure
    if failure is not None:
        raise CollectiveError(failure, is_reporter=world.is_main)
    return result
