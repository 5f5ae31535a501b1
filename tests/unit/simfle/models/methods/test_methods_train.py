"""Every method learns in thirty steps of a real run, resumes bit for bit, and exports what it has learned."""

import json
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
import torch
from distributed.launch import ROOT, environment
from helpers.tiny_methods import EMA, NAMES
from helpers.train_methods import HALVES
from safetensors.torch import load_file

from simfle.eval.backbones.load import load_backbone
from simfle.export.timm import export_backbones

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[4] / "helpers" / "train_methods.py"


@pytest.fixture(scope="module")
def runs(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("methods")
    command = [sys.executable, str(SCRIPT), str(faces), str(out)]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return out


def losses(run: Path) -> list[dict[str, float]]:
    return [json.loads(line)["losses"] for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_falls(name: str, runs: Path) -> None:
    totals = [each["total"] for each in losses(runs / name)]
    assert len(totals) == 30
    early, late = sum(totals[2:10]) / 8, sum(totals[-8:]) / 8  # MoCo starts against random keys, which is easy
    assert late < early - 0.05 * abs(early), totals


def test_autoencoders_show_what_they_made(runs: Path) -> None:
    drawn = {file.parent.parent.name: cv2.imread(str(file)).shape for file in runs.glob("*/images/step-00000030.png")}
    assert drawn == dict.fromkeys(("simfle", "mae"), (8 * 32, 3 * 32, 3))  # 8 faces: whole, seen, made


@pytest.mark.parametrize("name", HALVES)
def test_a_resumed_run_is_equal_bit_for_bit(name: str, runs: Path) -> None:
    assert losses(runs / f"{name}-halves") == losses(runs / name)


@pytest.mark.parametrize("name", NAMES)
def test_what_it_learnt_is_exported_and_gives_features(name: str, runs: Path) -> None:
    written = export_backbones(runs / name)
    assert set(written) == ({"online", "target"} if name in EMA else {"online"})
    trained = load_file(next((runs / name / "checkpoints").glob("step-*")) / "model.safetensors")
    for network, file in written.items():
        exported = load_file(file)
        assert exported
        assert all(torch.equal(value, trained[f"{network}.backbone.{key}"]) for key, value in exported.items())
        backbone = load_backbone(file)
        images = torch.randint(0, 256, (2, 3, backbone.card.size, backbone.card.size), dtype=torch.uint8)
        features = backbone.module(images)
        assert features.shape == (2, backbone.card.features)
        if name == "mae":  # the mean of the patch tokens, class token left out
            tokens = backbone.module.network((images / 255 - backbone.module.mean) / backbone.module.std)
            assert torch.allclose(features, tokens[:, 1:].mean(dim=1), atol=1e-5)
