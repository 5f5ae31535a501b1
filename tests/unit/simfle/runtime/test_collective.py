"""Actions of the main process. Two processes are played in turn: the wire keeps what the main process sent."""

import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist

from simfle.errors import CollectiveError, PeerLostError, RunDirLockedError, UserError
from simfle.runtime.collective import main_process_tries, main_process_value
from simfle.runtime.distributed import World

MAIN, OTHER = (World(rank, 2, rank, 2, torch.device("cpu")) for rank in (0, 1))


@pytest.fixture(autouse=True)
def wire(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    sent: list[bytes] = []

    def broadcast(values: list[Any], src: int) -> None:
        assert src == 0
        if sent:
            values[:] = pickle.loads(sent.pop())
        else:
            sent.append(pickle.dumps(values))

    monkeypatch.setattr(dist, "broadcast_object_list", broadcast)
    return sent


def refuse(error: Exception) -> Callable[[], None]:
    def action() -> None:
        raise error

    return action


def never() -> None:
    raise AssertionError("the action is of the main process alone")


def test_the_main_process_keeps_the_result() -> None:
    assert main_process_tries(MAIN, lambda: lambda: 3)() == 3  # type: ignore[misc] # which cannot be pickled
    assert main_process_tries(OTHER, never) is None


def test_an_error_ends_all_processes_and_one_reports_it() -> None:
    for world, action in ((MAIN, refuse(UserError("x=1: wrong"))), (OTHER, never)):
        with pytest.raises(CollectiveError, match=r"^x=1: wrong$") as found:
            main_process_tries(world, action)
        assert found.value.is_reporter == world.is_main


@pytest.mark.parametrize("kind", [PeerLostError, RunDirLockedError])
def test_a_lost_peer_is_lost_for_all(kind: type[Exception]) -> None:
    for world, action in ((MAIN, refuse(kind("held"))), (OTHER, never)):
        with pytest.raises(kind, match="held") as found:
            main_process_tries(world, action)
        assert type(found.value) is kind


def test_a_value_of_the_main_process() -> None:
    assert main_process_value(["main"]) == ["main"]
    assert main_process_value(["other"]) == ["main"]
