"""With synchronized statistics, a step is independent of the number of processes: exact gradients, float64."""

import json
from pathlib import Path

import pytest
from distributed.launch import processes

SCRIPT = Path(__file__).parent / "gradients.py"


def test_gradients_on_two_processes_are_those_of_one() -> None:
    (alone,) = (json.loads(text) for text in processes(1, SCRIPT))
    pair = [json.loads(text) for text in processes(2, SCRIPT)]
    assert len(alone) > 100
    for together in pair:
        assert together.keys() == alone.keys()
        for name, value in alone.items():
            assert together[name] == pytest.approx(value, rel=1e-9, abs=1e-12), name
