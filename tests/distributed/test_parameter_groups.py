"""Parameter groups under ZeRO: stage 2 on two processes, resumed at stage 3, equals one process without ZeRO."""

from pathlib import Path

import torch
from distributed.runs import finish, losses
from safetensors.torch import load_file

# Large factors expose a parameter in the wrong group.
SETTINGS = (
    *(
        "train.steps=4",
        "train.sync_batchnorm=true",
        "optim.lr=1e-4",
        "model.grouping_weight=1e-4",
        "train.checkpoint_every=100",
    ),
    *("optim.weight_decay=1000", "optim.decay_norms=false", "optim.predictor_lr_scale=5"),
)


def weights(run: Path) -> dict[str, torch.Tensor]:
    found = load_file(run / "checkpoints" / "step-00000004" / "model.safetensors")
    return {name: value for name, value in found.items() if value.is_floating_point()}  # not BatchNorm's counters


def test_groups_stay_with_their_parameters_at_every_stage(faces: Path, tmp_path: Path) -> None:
    alone, many = tmp_path / "alone", tmp_path / "many"
    finish(1, faces, alone, *SETTINGS, "train.zero_stage=0")
    finish(2, faces, many, *SETTINGS, "train.zero_stage=2", "train.stop_after_step=2")
    finish(2, faces, many, *SETTINGS, "train.zero_stage=3")
    assert len(losses(many)) == 4
    found, wanted = weights(many), weights(alone)
    assert found.keys() == wanted.keys()
    far = {name: float((found[name] - value).norm() / value.norm().clamp(min=1e-3)) for name, value in wanted.items()}
    assert max(far.values()) < 2e-3, far


def test_lars_goes_on_bit_for_bit(faces: Path, tmp_path: Path) -> None:
    """Two processes at stage 0, the only stage with complete layers."""
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    words = ("train.steps=4", "train.zero_stage=0", "optim.name=lars", "optim.lr=3", "model.grouping_weight=1e-4")
    finish(2, faces, whole, *words)
    finish(2, faces, halves, *words, "train.stop_after_step=2")
    finish(2, faces, halves, *words)
    assert losses(halves) == losses(whole)
