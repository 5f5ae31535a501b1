"""ZeRO 0, 1, 2, 3 on two processes and one process without ZeRO train the same model."""

from pathlib import Path

import pytest
import torch
from distributed import runs
from safetensors.torch import load_file

# A small learning rate: the randomly initialized network amplifies rounding about tenfold per step, independent of
# ZeRO. The optimizer's updates are compared separately below.
SETTINGS = (
    "train.steps=6",
    "train.sync_batchnorm=true",
    "optim.lr=1e-4",
    "model.grouping_weight=1e-4",
    "optim.max_grad_norm=5.0",
)


@pytest.fixture(scope="module")
def alone(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("alone") / "run"
    runs.finish(1, faces, run, *SETTINGS, "train.zero_stage=0")
    return run


def newest(run: Path, name: str) -> dict[str, torch.Tensor]:
    return load_file(sorted(run.glob("checkpoints/step-*"))[-1] / name)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_stage_on_two_processes_equals_one_process_without_zero(
    stage: int, alone: Path, faces: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    runs.finish(2, faces, run, *SETTINGS, f"train.zero_stage={stage}")
    assert [line["processes"] for line in runs.metrics(run)] == [2] * 6
    for ours, theirs in zip(runs.losses(run), runs.losses(alone), strict=True):
        assert ours["total"] == pytest.approx(theirs["total"], rel=1e-5)
    ours, theirs = newest(run, "optim.safetensors"), newest(alone, "optim.safetensors")
    assert ours.keys() == theirs.keys()
    worst = max(float((ours[name] - theirs[name]).norm() / theirs[name].norm().clamp(min=1e-6)) for name in theirs)
    assert worst < 0.05  # momentum: the gradients of all steps, equal up to rounding
    ours, theirs = newest(run, "model.safetensors"), newest(alone, "model.safetensors")
    assert ours.keys() == theirs.keys()
    for name in theirs:
        assert torch.allclose(ours[name], theirs[name], rtol=1e-3, atol=1e-5), name
