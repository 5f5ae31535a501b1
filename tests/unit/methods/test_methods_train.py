"""Every method learns in thirty steps of a real run; one that is interrupted goes on bit for bit."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from distributed.launch import ROOT, environment

SCRIPT = Path(__file__).with_name("train_methods.py")


@pytest.fixture(scope="module")
def runs(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("methods")
    command = [sys.executable, str(SCRIPT), str(faces), str(out)]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return out


def losses(run: Path) -> list[dict[str, float]]:
    return [json.loads(line)["losses"] for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", ["simfle", "byol", "simsiam", "simclr", "moco", "swav", "mae"])
def test_the_loss_falls(name: str, runs: Path) -> None:
    totals = [each["total"] for each in losses(runs / name)]
    assert len(totals) == 30
    early, late = sum(totals[2:10]) / 8, sum(totals[-8:]) / 8  # MoCo starts against random keys, which is easy
    assert late < early - 0.05 * abs(early), totals


def test_moco_goes_on_bit_for_bit(runs: Path) -> None:
    assert losses(runs / "halves") == losses(runs / "moco")
