"""Runs with telemetry in every step and without it train bitwise equal weights, also across a resume."""

from pathlib import Path

import torch
from distributed.runs import finish, metrics
from safetensors.torch import load_file

STEPS = ("train.steps=6", "train.checkpoint_every=100")


def weights(run: Path) -> dict[str, torch.Tensor]:
    """Drop BatchNorm's running statistics: a resume starts with their mean over processes, which rounds."""
    found = load_file(run / "checkpoints" / "step-00000006" / "model.safetensors")
    return {name: value for name, value in found.items() if "running_" not in name}


def test_two_processes_train_the_same_with_and_without_telemetry(faces: Path, tmp_path: Path) -> None:
    watched, plain = tmp_path / "watched", tmp_path / "plain"
    finish(2, faces, watched, *STEPS)
    finish(2, faces, plain, *STEPS, "train.log_every=6", "train.stop_after_step=4")
    finish(2, faces, plain, *STEPS, "train.log_every=6")
    (last,) = metrics(plain)[-1:]
    assert last["losses"] == metrics(watched)[-1]["losses"]
    assert last["features"] == metrics(watched)[-1]["features"]  # including the random network's, from step 1
    assert last["features"]["samples"] == 16  # from both processes
    assert weights(plain).keys() == weights(watched).keys()
    assert all(torch.equal(value, weights(watched)[name]) for name, value in weights(plain).items())
