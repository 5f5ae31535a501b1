"""Probe files: calibration, the two files, and what is refused of them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from simfle.errors import UserError
from simfle.eval.probe import (
    LinearProbe,
    calibration_error,
    fit_temperature,
    probe_file,
    read_probe,
    write_probe,
)

SPLIT = {"split": "test", "samples": 8, "people": None, "counts": [4, 4]}
ABOUT: dict[str, Any] = {
    "classes": ["happiness", "neutral"],
    "features": 3,
    "size": 32,
    "resize": "bilinear, antialiased",
    "backbone": {"sha256": "ab" * 32, "source": "backbone.safetensors", "model": "test_resnet"},
    "benchmark": "own",
    "protocol": "linear_fast",
    "seed": 0,
    "data": {"train": SPLIT, "val": SPLIT, "test": SPLIT},
    "val": {"balanced_accuracy": 0.5},
    "test": {"accuracy": 0.75, "balanced_accuracy": 0.75, "macro_f1": 0.7},
    "intervals": {"accuracy": [0.4, 0.9]},
    "majority": 0.5,
    "calibration_error": 0.1,
}


def probe(temperature: float = 2.0) -> LinearProbe:
    values = torch.Generator().manual_seed(0)
    return LinearProbe(
        torch.randn(3, 2, generator=values),
        torch.randn(2, generator=values),
        torch.tensor([0.5, 0.0, -1.0]),
        torch.tensor([1.0, 2.0, 0.5]),
        torch.tensor(temperature),
    )


def test_probabilities_are_the_softmax_of_scaled_logits() -> None:
    features = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]])
    one = probe()
    for row, found in zip(features, one.probabilities(features), strict=True):
        logits = [
            sum(float((row[c] - one.mean[c]) / one.deviation[c] * one.weight[c, k]) for c in range(3))
            + float(one.bias[k])
            for k in range(2)
        ]
        wanted = np.exp(np.array(logits) / 2)
        np.testing.assert_allclose(found.numpy(), wanted / wanted.sum(), rtol=1e-5)


@pytest.mark.parametrize("truth", [0.5, 1.0, 3.0])
def test_the_temperature_of_drawn_labels_is_found(truth: float) -> None:
    """Labels drawn from softmax(logits / T) are explained best by T, and then probabilities are calibrated."""
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(rng.normal(size=(20_000, 4)) * 2)
    chances = (logits / truth).softmax(1).numpy()
    labels = (chances.cumsum(1) < rng.random((len(chances), 1))).sum(1)
    found = fit_temperature(logits, labels)
    assert found == pytest.approx(truth, rel=0.05)
    assert calibration_error((logits / found).softmax(1).numpy(), labels) < 0.015
    assert calibration_error((logits / (4 * truth)).softmax(1).numpy(), labels) > 0.1


def test_calibration_error_by_hand() -> None:
    """Confidence 0.9, right half of the time: 0.4 off; confidence 0.6, always right: 0.4 off; 1.0 and right: 0."""
    chances = np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [1.0, 0.0]])
    assert calibration_error(chances, np.array([0, 1, 1, 0])) == pytest.approx((2 * 0.4 + 0.4 + 0) / 4)
    assert calibration_error(chances[3:], np.array([0])) == 0


def test_files_hold_the_same_probe(tmp_path: Path) -> None:
    file = probe_file(tmp_path / "own" / "linear_fast" / "seed-3.json")
    assert file == tmp_path / "own" / "linear_fast" / "probe-3.safetensors"
    write_probe(file, probe(), ABOUT)
    for name in (file, file.with_suffix(".json")):
        found, about = read_probe(name)
        assert all(torch.equal(value, vars(probe())[key]) for key, value in vars(found).items())
        assert {**ABOUT, "sha256": about.sha256, "format": 1} == vars(about)
    assert about.describe() == (
        "probe: 2 classes of own, fitted on 8 images; on split test (8 images, people unknown): accuracy 0.750 (95 % "
        "0.400 to 0.900; the most frequent class alone: 0.500, not shown to be worse), mean recall 0.750, calibration "
        "error 0.100"
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": 2}, "has format 2, not 1"),
        ({"sha256": "00"}, r"does not match probe-0\.json"),
        ({"classes": ["a", "b", "c"]}, r"weight is not \[3, 3\] finite"),
        ({"classes": ["a"]}, "corrupt"),
        ({"size": "32"}, "corrupt"),
        ({"backbone": {}}, "corrupt"),
        ({"data": {}}, "corrupt"),
        ({"surplus": 1}, "corrupt"),
    ],
)
def test_changed_metadata_is_refused(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    write_probe(tmp_path / "probe-0.safetensors", probe(), ABOUT)
    file = tmp_path / "probe-0.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(UserError, match=words) as error:
        read_probe(file)
    assert "\n" not in str(error.value)


def test_missing_and_corrupt_tensors_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "probe-0.safetensors"
    with pytest.raises(UserError, match=r"probe-0\.json does not exist"):
        read_probe(file)
    for temperature in (0.0, float("nan")):
        write_probe(file, probe(temperature), ABOUT)
        with pytest.raises(UserError, match="temperature is not"):
            read_probe(file)
    write_probe(file, probe(), ABOUT)
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(UserError, match="is corrupt"):
        read_probe(file)
    file.unlink()
    with pytest.raises(UserError, match=r"probe-0\.safetensors does not exist"):
        read_probe(file)
