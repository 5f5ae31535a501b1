"""Lines that a run prints before its first step."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from simfle.config.schema import PretrainConfig, load
from simfle.train.step_log import plan_text


@pytest.mark.parametrize(("warmup", "said"), [(0, False), (99, False), (100, True), (200, True)])
def test_a_warmup_longer_than_the_run_is_said(warmup: int, said: bool) -> None:
    config = load(PretrainConfig, None, [f"optim.warmup_steps={warmup}"])
    world = SimpleNamespace(world_size=1, device=SimpleNamespace(type="cpu"))
    layout = SimpleNamespace(global_batch=256, grad_accum_steps=1, micro_batch=256)
    engine = SimpleNamespace(step=0, steps=100, zero_stage=0, start=SimpleNamespace(notes=[]))
    parts = cast("tuple[Any, ...]", (world, layout, SimpleNamespace(description="256 samples"), engine))
    lines = plan_text(config, *parts, "opencv").splitlines()[2:]
    note = f"optim.warmup_steps={warmup}: not shorter than the run, so the peak is not reached"
    assert lines == ([note] if said else [])
