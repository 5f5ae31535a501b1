"""When the host waits for written partitions: on a GPU at stage 3 alone."""

from types import SimpleNamespace

import pytest
import torch

from simfle.runtime.zero_stage import wait_for_partitions


@pytest.mark.parametrize(("stage", "device", "waits"), [(3, "cuda", 1), (2, "cuda", 0), (0, "cuda", 0), (3, "cpu", 0)])
def test_partitions_are_waited_for(stage: int, device: str, waits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream needs a GPU, so this one only counts."""
    waited: list[torch.device] = []
    monkeypatch.setattr(
        torch.cuda, "current_stream", lambda where: SimpleNamespace(synchronize=lambda: waited.append(where))
    )
    wait_for_partitions(SimpleNamespace(zero_optimization_stage=lambda: stage, device=torch.device(device)))
    assert waited == [torch.device(device)] * waits
