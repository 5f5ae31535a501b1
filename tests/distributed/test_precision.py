"""Under bf16, all state kept between steps stays fp32, and the target moves exactly as the reference EMA."""

import json
from pathlib import Path

import pytest
from distributed.launch import processes

SCRIPT = Path(__file__).parent / "precision.py"


@pytest.mark.parametrize(("stage", "optimizer"), [(0, "sgd"), (2, "adamw"), (3, "sgd")])
def test_bf16_computes_in_bf16_and_remembers_in_fp32(stage: int, optimizer: str) -> None:
    for text in processes(2, SCRIPT, str(stage), optimizer):
        facts = json.loads(text.splitlines()[-1])
        assert facts["worlds"] == [2, 2, 2, 2]  # launcher, torch, DeepSpeed, ours
        assert facts["computed_in"] == ["torch.bfloat16"]
        assert facts["parameters"] == facts["buffers"] == facts["moments"] == ["torch.float32"]
        assert facts["optimizer"] == ["torch.float32"]
        assert facts["partitions"] == (["torch.float32"] if stage == 3 else [])
        assert facts["ema_gap"] > 1e-4  # the target differs from the online network
        assert facts["ema_error"] < 1e-6
