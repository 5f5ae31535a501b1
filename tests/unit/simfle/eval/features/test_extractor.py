"""Features: the right image in the right row for any batch size and number of threads."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from helpers.eval_fixtures import MakeBackbone, MakeShards, picture

from simfle.errors import UserError
from simfle.eval.backbones.load import load_backbone
from simfle.eval.data.splits import read_split
from simfle.eval.features.extractor import Augment, Extractor, jitter

CPU = torch.device("cpu")


def extractor(batch: int = 8, threads: int = 2, size: int = 32) -> Extractor:
    return Extractor(size, batch, CPU, threads)


def test_images_are_decoded_and_resized_in_order(make_shards: MakeShards) -> None:
    split = read_split([str(make_shards({"train": [9, 9, 9]}))], "train")
    found = torch.cat(list(extractor(batch=4).images(split.source, np.arange(len(split)))))
    assert found.shape == (27, 3, 32, 32)
    assert found.dtype == torch.uint8
    for row in (0, 13, 26):
        _, label, number = split.keys[row].split("-")
        raw = picture(int(label), 100 * int(label) + int(number))
        judge = cv2.imdecode(np.frombuffer(raw, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]
        judge = cv2.resize(judge, (32, 32), interpolation=cv2.INTER_AREA).astype(int)
        assert np.abs(found[row].permute(1, 2, 0).numpy() - judge).mean() < 3


def test_batch_and_threads_change_nothing(make_shards: MakeShards, make_backbone: MakeBackbone) -> None:
    split = read_split([str(make_shards({"train": [7, 7, 7]}))], "train")
    backbone = load_backbone(make_backbone())
    whole = extractor(batch=21, threads=1).pooled(backbone, split, "x")
    assert whole.shape == (21, backbone.card.features)
    torch.testing.assert_close(extractor(batch=4, threads=3).pooled(backbone, split, "x"), whole)
    assert torch.equal(extractor(batch=21, threads=3).pooled(backbone, split, "x"), whole)


def test_a_crop_belongs_to_seed_epoch_and_sample(make_shards: MakeShards) -> None:
    split = read_split([str(make_shards({"train": [7, 7, 7]}))], "train")

    def crops(rows: list[int], seed: int = 0, epoch: int = 0) -> dict[int, torch.Tensor]:
        batches = extractor(batch=3).images(split.source, np.array(rows), Augment(seed, epoch, (0.2, 1.0)))
        return dict(zip(rows, torch.cat(list(batches)), strict=True))

    first, shuffled = crops(list(range(21))), crops([5, 20, 2, 11, 7])
    assert all(torch.equal(image, first[row]) for row, image in shuffled.items())
    for other in (crops([5, 20, 2], seed=1), crops([5, 20, 2], epoch=1)):
        assert not all(torch.equal(image, first[row]) for row, image in other.items())


def test_whole_crops_are_the_image_or_its_mirror(make_shards: MakeShards) -> None:
    split = read_split([str(make_shards({"train": [10, 10, 10]}))], "train")
    rows = np.arange(30)
    plain = torch.cat(list(extractor(size=48).images(split.source, rows))).int()
    same = Augment(0, 0, (1.0, 1.0), ratio=(64 / 48, 64 / 48))  # the images are 64 x 48
    found = torch.cat(list(extractor(size=48).images(split.source, rows, same))).int()
    # Crops are resized with another filter: the difference is larger along edges, small on average.
    mirrored = [(image - judge.flip(2)).abs().float().mean() < 3 for image, judge in zip(found, plain, strict=True)]
    upright = [(image - judge).abs().float().mean() < 3 for image, judge in zip(found, plain, strict=True)]
    assert all(a or b for a, b in zip(mirrored, upright, strict=True))
    assert 5 < sum(mirrored) < 25


def test_colors_are_the_affine_map_of_the_drawn_parameters(make_shards: MakeShards) -> None:
    split = read_split([str(make_shards({"train": [3, 3, 3]}))], "train")
    rows = np.arange(9)
    plain, colored = (
        torch.cat(list(extractor().images(split.source, rows, Augment(0, 0, (0.5, 1.0), strength))))
        for strength in (0.0, 0.4)
    )
    draws = Augment(0, 0, (0.5, 1.0), 0.4).draw(split.ids)
    assert draws.jitter.all()
    assert (np.abs(draws.factors[:, :3] - 1) <= 0.4).all()
    assert (np.abs(draws.factors[:, 3]) <= 0.1).all()
    for image, judge, m, a in zip(colored, plain, draws.matrix, draws.mean_matrix, strict=True):
        pixels = judge.permute(1, 2, 0).reshape(-1, 3).double().numpy()
        expected = np.clip(np.rint(pixels @ m.T + a @ pixels.mean(0)), 0, 255)
        assert np.abs(image.permute(1, 2, 0).reshape(-1, 3).numpy() - expected).max() <= 1
        assert np.abs(pixels - expected).mean() > 1
    assert torch.equal(jitter(plain, Augment(0, 0, (0.5, 1.0), 0.0).draw(split.ids)), plain)


def test_features_are_computed_once_for_all_cuts(
    make_shards: MakeShards, make_backbone: MakeBackbone, tmp_path: Path
) -> None:
    split = read_split([str(make_shards({"train": [5, 5, 5]}))], "train")
    backbone = load_backbone(make_backbone())
    kept = replace(extractor(), cache=tmp_path / "features")
    whole = kept.pooled(backbone, split, "weights")
    maps = kept.maps(backbone, split, "weights")
    files = sorted(file.name for file in kept.cache.glob("*.npy"))  # type: ignore[union-attr]
    assert [name.split(".")[1] for name in sorted(files, key=lambda name: name.split(".")[1])] == ["maps", "pooled"]
    backbone.module.network.conv1[0].weight.fill_(torch.nan)  # cached features do not change
    chosen = np.array([7, 0, 3])
    assert torch.equal(kept.pooled(backbone, split.only(chosen), "weights"), whole[chosen])
    assert torch.equal(kept.maps(backbone, split.only(chosen), "weights")[np.array([1])], maps[np.array([0])])
    torch.testing.assert_close(maps[np.arange(15)].mean((2, 3)), whole, rtol=2e-3, atol=2e-3)
    with pytest.raises(UserError, match="non-finite"):
        kept.pooled(backbone, split, "other weights")
    with pytest.raises(UserError, match="non-finite"):
        replace(kept, size=48).pooled(backbone, split, "weights")
    assert sorted(file.name for file in kept.cache.glob("*.npy")) == files  # type: ignore[union-attr]


def test_features_that_are_not_finite(make_shards: MakeShards, make_backbone: MakeBackbone) -> None:
    split = read_split([str(make_shards({"train": [2, 2, 2]}))], "train")
    backbone = load_backbone(make_backbone())
    backbone.module.network.conv1[0].weight.fill_(torch.nan)
    with pytest.raises(UserError, match="non-finite features on split 'train'"):
        extractor().pooled(backbone, split, "x")
