"""One resize: Pillow's, for tensors and FFCV too; evaluations and `embed` use it; augmented crops keep theirs."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from helpers.eval_fixtures import MakeBackbone, MakeShards
from PIL import Image
from torchvision.transforms.v2 import functional as judge

import simfle
from simfle.data.backends.jpeg_header import decode
from simfle.eval.backbones.load import load_backbone
from simfle.eval.data.splits import read_split
from simfle.eval.features import extractor as module
from simfle.eval.features.extractor import Augment, Extractor
from simfle.eval.features.resize import fill_resized, resize, resize_tensor

SIZES = [(64, 64), (100, 80), (80, 100), (96, 80), (48, 64), (30, 20), (17, 64), (64, 90), (200, 333), (333, 200),
         (500, 41), (41, 500), (1, 1), (3, 900)]  # fmt: skip
CPU = torch.device("cpu")


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng([height, width]).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("side", [32, 64])
def test_arrays_and_tensors_are_resized_as_by_pillow(height: int, width: int, side: int) -> None:
    image = noise(height, width)
    wanted = np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR))
    assert np.array_equal(resize(image, side), wanted)
    tensor = torch.from_numpy(image).permute(2, 0, 1)[None]
    assert np.array_equal(resize_tensor(tensor, side)[0].permute(1, 2, 0), wanted)
    assert np.array_equal(np.asarray(judge.resize(Image.fromarray(image), [side, side])), wanted)  # torchvision
    floats = 255 * resize_tensor(tensor.double() / 255, side)[0].permute(1, 2, 0).numpy()
    assert np.abs(floats - wanted).max() <= 1 + 1e-9


@pytest.mark.parametrize(("height", "width"), [(20, 16), (16, 40), (9, 9), (40, 12), (5, 30)])
def test_ffcvs_loops_are_off_by_at_most_one(height: int, width: int) -> None:
    image, found = noise(height, width), np.empty((16, 16, 3), np.uint8)
    fill_resized(image, found)
    difference = np.abs(found.astype(int) - resize(image, 16))
    assert difference.max() <= 1
    assert difference.mean() < 0.3


def test_evaluations_and_embed_see_the_same_images(make_shards: MakeShards, make_backbone: MakeBackbone) -> None:
    folder, path = make_shards({"train": [3, 3, 3]}), make_backbone()
    split = read_split([str(folder)], "train")
    backbone = load_backbone(path)
    found = Extractor(backbone.card.size, 4, CPU, 1).pooled(backbone, split, "x").numpy()
    table = simfle.embed(folder, simfle.load_backbone(path, "cpu"), batch=4)
    assert table["key"].tolist() == list(split.keys)
    np.testing.assert_allclose(table["features"], found, rtol=1e-5, atol=1e-6)


def test_augmented_crops_keep_their_resize(make_shards: MakeShards) -> None:
    split = read_split([str(make_shards({"train": [3, 3, 3]}))], "train")
    crop = Augment(0, 0, (0.3, 1.0))
    rows = np.arange(9)
    found = torch.cat(list(Extractor(32, 4, CPU, 1).images(split.source, rows, crop)))
    draws = crop.draw(split.ids)
    for row in rows:
        image = decode(split.source.corpus.read_image(int(split.source.shards[row]), int(split.source.samples[row])))
        assert image is not None
        x, y, w, h = crop.box(draws, row, *image.shape[:2])
        method = cv2.INTER_AREA if min(w, h) >= 32 else cv2.INTER_LINEAR
        wanted = cv2.resize(image[y : y + h, x : x + w], (32, 32), interpolation=method)
        assert np.array_equal(found[row].permute(1, 2, 0), wanted[:, ::-1] if draws.flip[row] else wanted)


def test_features_of_another_resize_are_not_used(
    make_shards: MakeShards, make_backbone: MakeBackbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = read_split([str(make_shards({"train": [2, 2, 2]}))], "train")
    backbone = load_backbone(make_backbone())
    kept = replace(Extractor(32, 4, CPU, 1), cache=tmp_path)
    monkeypatch.setattr(module, "RULE", "area")
    kept.pooled(backbone, split, "x")
    monkeypatch.undo()
    kept.pooled(backbone, split, "x")
    kept.pooled(backbone, split, "x")
    assert len(list(tmp_path.glob("*.npy"))) == 2
