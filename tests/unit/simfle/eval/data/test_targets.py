"""Landmarks, activation maps, votes, valence and arousal: reading, learning and metrics."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from helpers.eval_fixtures import MakeBackbone, MakeShards

from simfle.errors import UserError
from simfle.eval.analysis.results import Result, read_results
from simfle.eval.backbones.external import open_backbone
from simfle.eval.config import EvalConfig, LandmarkConfig, LinearFastConfig
from simfle.eval.data.splits import read_split
from simfle.eval.data.targets import affect, landmarks, sizes, votes
from simfle.eval.evaluator import evaluate
from simfle.eval.features.extractor import Maps
from simfle.eval.protocols.cam import GRID, activation, discs
from simfle.eval.protocols.landmarks import Head, Points, nme_normalizer
from simfle.eval.protocols.valence_arousal import Ridge

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")


@pytest.fixture
def shards(make_shards: MakeShards) -> str:
    return str(make_shards({"train": [20, 20, 20], "test": [6, 6, 6]}))


def test_what_is_read(shards: str) -> None:
    split = read_split([shards], "train")
    rows, points = landmarks(split, [])
    assert rows.tolist() == list(range(60))
    assert points.shape == (60, 4, 2)
    assert points[5].tolist() == split.metadata(5)["landmarks"]
    assert landmarks(split, [3, 0])[1].tolist() == points[:, [3, 0]].tolist()
    assert sizes(split).tolist() == [[64, 48]] * 60
    rows, found = votes(split)
    assert found[0].tolist() == pytest.approx([0.8 if place == split.labels[0] else 0.1 for place in range(3)])
    assert affect(split)[1][:, 0].tolist() == (split.labels - 1.0).tolist()
    with pytest.raises(UserError, match="points: 9 is out of range, split 'train' has 4"):
        landmarks(split, [9])


def test_normalizers(shards: str) -> None:
    split = read_split([shards], "train").only(np.arange(2))
    points = np.array([[[0, 0], [0, 2], [3, 1], [6, 9.0]], [[0, 0], [0, 2], [6, 1], [6, 9]]])
    assert nme_normalizer(points, [0, 1], [2], split).tolist() == [3, 6]
    assert nme_normalizer(points, [], [], split) == pytest.approx([np.sqrt(54)] * 2)  # no boxes here: around the points
    with pytest.raises(UserError, match=r"point 4 does not exist\. Fix: choose from 0 to 3"):
        nme_normalizer(points, [0], [4], split)
    with pytest.raises(UserError, match="has no extent"):
        nme_normalizer(points, [0], [0], split)


def test_errors_are_in_pixels_by_the_normalizer() -> None:
    maps = Maps(np.zeros((1, 1, 2, 2), np.float16), np.arange(1), CPU)
    truth = Points(np.arange(1), np.array([[[10, 20], [30, 20.0]]]), np.array([[[100, 50.0]]]), np.array([20.0]), maps)
    found = np.array([[[0.13, 0.48], [0.3, 0.4]]])  # off by (3, 4) pixels, and exact
    assert truth.error(found).tolist() == pytest.approx([5 / 2 / 20])


def test_the_head_finds_a_bright_cell() -> None:
    """One channel is bright at the landmark's cell, another right of it, in 7 x 7 maps."""
    rng = np.random.default_rng(0)
    places = rng.uniform(0.15, 0.85, (300, 1, 2))
    y, x = np.mgrid[:7, :7]
    centers = (np.stack([x, y]) + 0.5) / 7
    distance = ((centers[None] - places[:, 0, :, None, None]) ** 2).sum(1)
    maps = np.stack([np.exp(-distance / 0.02), rng.normal(size=distance.shape)], 1).astype(np.float16)
    size, unit = np.full((300, 1, 2), 100.0), np.full(300, 100.0)

    def points(rows: np.ndarray) -> Points:
        return Points(rows, 100 * places[rows], size[rows], unit[rows], Maps(maps, rows, CPU))

    train, test = points(np.arange(200)), points(np.arange(200, 300))
    head = Head(train, [1e-2, 1e-5])
    mean_shape = test.error(head.predict(test.maps)[0]).mean()
    assert mean_shape == pytest.approx(test.error(places[:200].mean(0)[None]).mean(), rel=1e-4)  # before any step
    config = EvalConfig(landmarks=LandmarkConfig(epochs=40, batch=20, lrs=[1e-2, 1e-5]))
    head.fit(train, type("Job", (), {"config": config, "seed": 0})())  # type: ignore[arg-type]
    fast, slow = (test.error(found).mean() for found in head.predict(test.maps))
    assert fast < 0.03 < slow
    assert mean_shape > 0.2


def test_discs_by_hand() -> None:
    points = np.array([[[50, 50], [150, 150.0]]])  # a box of 100 x 100
    mask = discs(points, np.array([[200, 200.0]]), 0.2)[0]
    assert mask.shape == (GRID, GRID)
    side = 200 / GRID
    for row, column in ((13, 14), (18, 14), (21, 14), (42, 42), (0, 0)):
        y, x = (row + 0.5) * side, (column + 0.5) * side
        near = min(np.hypot(x - 50, y - 50), np.hypot(x - 150, y - 150)) <= 20
        assert mask[row, column] == near
    assert mask.mean() == pytest.approx(2 * np.pi * 20**2 / 200**2, rel=0.05)
    wide = discs(points, np.array([[400, 200.0]]), 0.2)[0]  # pixels of the image, for any aspect ratio
    assert wide.mean() == pytest.approx(2 * np.pi * 20**2 / (400 * 200), rel=0.15)


def test_evidence_is_of_the_predicted_class_and_never_negative() -> None:
    maps = np.zeros((2, 2, 4, 4), np.float16)
    maps[0, 0, 1, 2], maps[0, 0, 0, 0] = 4, -1  # class 0: positive evidence in one cell, negative in another
    maps[1, 1, 3, 3] = 2
    found = activation(Maps(maps, np.arange(2), CPU), torch.eye(2), torch.zeros(2))
    assert found.shape == (2, GRID, GRID)
    assert found.min() == 0
    cell = GRID // 4
    assert found[0, :, :].argmax() // GRID in range(cell, 2 * cell)
    assert found[0, :, :].argmax() % GRID in range(2 * cell, 3 * cell)
    assert found[1, -1, -1] == pytest.approx(2)
    assert found[0, 0, 0] == 0


def test_ridge_is_the_textbooks() -> None:
    rng = np.random.default_rng(0)
    x, y = torch.from_numpy(rng.normal(size=(30, 5)) + 2), torch.from_numpy(rng.normal(size=(30, 2)))
    weight, bias = Ridge(x, y)(0.3)
    centered = x - x.mean(0)
    judge = torch.linalg.solve(centered.T @ centered / 30 + 0.3 * torch.eye(5), centered.T @ (y - y.mean(0)) / 30)
    torch.testing.assert_close(weight, judge)
    torch.testing.assert_close((x @ weight + bias).mean(0), y.mean(0))


def run(shards: str, backbone: Path, out: Path, protocol: str, **values: object) -> Result:
    config = EvalConfig(
        shards=[shards],
        backbones=[str(backbone)],
        random_baseline=False,
        protocols=[protocol],
        val_fraction=0.2,
        linear_fast=LinearFastConfig(epochs=60, batch=16),
        landmarks=LandmarkConfig(epochs=10, batch=16),
        bootstrap_samples=20,
        threads=2,
        out=str(out),
    )
    evaluate(replace(config, **values), [])  # type: ignore[arg-type]
    return read_results([out])[0]


def test_protocols_from_end_to_end(shards: str, make_backbone: MakeBackbone, tmp_path: Path) -> None:
    backbone = make_backbone(size=64)
    cloud = run(shards, backbone, tmp_path / "a", "votes")
    assert cloud.kind == "votes"
    assert np.allclose(cloud.predictions().sum(1), 1, atol=1e-5)
    entropy = -(0.8 * np.log(0.8) + 2 * 0.1 * np.log(0.1))
    assert cloud.metrics["cross_entropy"] - cloud.metrics["kl"] == pytest.approx(entropy, abs=1e-4)
    assert 0 < cloud.metrics["kl"] < 1  # a confident guess of the wrong class exceeds 1
    feelings = run(shards, backbone, tmp_path / "b", "affect")
    assert feelings.labels().shape == feelings.predictions().shape == (18, 2)
    assert feelings.metrics["ccc_valence"] > 0.2
    marks = run(shards, backbone, tmp_path / "c", "landmarks")
    assert marks.metric == "nme"
    assert marks.metrics["nme"] == pytest.approx(np.mean(marks.samples.predictions))
    assert marks.chosen[0].keys() == {"lr", "nme", "mean_shape"}
    looks = run(shards, backbone, tmp_path / "d", "cam")
    assert 0 < looks.metrics["chance"] < 1
    assert looks.metrics["gain"] == pytest.approx(looks.metrics["share"] / looks.metrics["chance"])
    assert looks.best_on_test is None
    for found in (cloud, feelings, marks, looks):
        assert found.metrics["intervals"][found.metric][0] <= found.score <= found.metrics["intervals"][found.metric][1]
        assert sorted(found.samples.keys) == sorted(read_split([shards], "test").keys)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "convnext_atto"])
def test_activation_maps_of_a_vit_and_a_convnext(name: str, shards: str, tmp_path: Path) -> None:
    """The mean of a class's evidence over positions, before clipping, is its logit."""
    found = run(shards, Path(f"random:{name}+size=32"), tmp_path, "cam", image_size=64)
    assert 0 < found.metrics["chance"] < 1
    assert found.metrics["gain"] == pytest.approx(found.metrics["share"] / found.metrics["chance"])
    module = open_backbone(f"random:{name}+size=32").module
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    maps = module.maps(images)
    assert maps.shape[2:] == ((4, 4) if name.startswith("vit") else (2, 2))
    layer = torch.randn(maps.shape[1], 3)
    evidence = torch.einsum("bchw,ck->bkhw", maps, layer)
    torch.testing.assert_close(evidence.mean((2, 3)), module(images) @ layer, rtol=1e-3, atol=1e-4)


def test_shards_without_what_is_asked_for(faces_without: str, make_backbone: MakeBackbone, tmp_path: Path) -> None:
    for protocol, what in (("landmarks", "landmarks"), ("affect", "valence and arousal"), ("votes", "votes")):
        with pytest.raises(UserError, match=f"split 'train' has no {what}. Fix: "):
            run(faces_without, make_backbone(folder=protocol), tmp_path / protocol, protocol)
    assert not list(tmp_path.rglob("seed-*.json"))


@pytest.fixture
def faces_without(make_shards: MakeShards, monkeypatch: pytest.MonkeyPatch) -> str:
    """Make shards with labels and people only."""
    monkeypatch.setattr(
        "helpers.eval_fixtures.about", lambda split, label, number, size: {"group": f"{split}{number // 2}"}
    )
    return str(make_shards({"train": [10, 10, 10], "test": [4, 4, 4]}))


def test_pictures_are_as_large_as_their_landmarks_suppose() -> None:
    from helpers.eval_fixtures import about, picture

    image = cv2.imdecode(np.frombuffer(picture(0, 0), np.uint8), cv2.IMREAD_COLOR)
    known = about("train", 0, 0, 48)
    assert image is not None
    assert image.shape[:2] == (known["height"], known["width"])
