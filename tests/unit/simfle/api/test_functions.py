"""`import simfle` as a notebook uses it: pretrain, load, embed, evaluate, and `shards.open`, on drawn faces."""

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from distributed.runs import SETTINGS
from PIL import Image
from pyarrow import parquet
from torch.utils.data import DataLoader

import shards
import simfle
from shards.edit.pixel_stats import pixel_stats
from simfle.api.backbone import pixels
from simfle.config.schema import PretrainConfig, load
from simfle.runtime.distributed import AUTO

pytestmark = pytest.mark.slow

TINY: dict[str, object] = dict(word.split("=", 1) for word in SETTINGS)


@pytest.fixture(scope="module")
def pictures(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty synthetic faces as a folder of JPEGs, one of them corrupt."""
    folder = tmp_path_factory.mktemp("pictures") / "mine"
    folder.mkdir()
    for item in shards.open(faces)[:40]:
        (folder / f"{item.key}.jpg").write_bytes(item.image_bytes)
    (folder / "zz_damaged.jpg").write_bytes(item.image_bytes[: len(item.image_bytes) // 2])
    return folder


@pytest.fixture(scope="module")
def backbone(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """From a folder of images, in this process."""
    settings = TINY | {"train.steps": 2, "train.log_images_every": 0}
    return simfle.pretrain(pictures, tmp_path_factory.mktemp("api") / "run", settings=settings)


def test_importing_is_light() -> None:
    program = (
        "import simfle, shards, sys; dir(simfle), dir(shards)\n"
        "heavy = {'torch', 'numpy', 'timm', 'cv2', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_every_name_is_there_and_documented() -> None:
    for name in simfle.__all__:
        assert getattr(simfle, name).__doc__
        assert name in dir(simfle)
    with pytest.raises(AttributeError, match="no attribute 'pretrian'"):
        simfle.pretrian  # noqa: B018


def test_pretraining_on_images_makes_shards_and_goes_on(backbone: Path, pictures: Path) -> None:
    run = backbone.parents[2]
    made = shards.open(run / "shards")
    assert len(made) == 40
    assert made.manifest.rejected == {"truncated": 1}
    before, hook = backbone.read_bytes(), sys.excepthook
    # The same again: nothing to do, the same file.
    assert simfle.pretrain(pictures, run, settings=TINY | {"train.steps": 2}) == backbone
    assert backbone.read_bytes() == before
    assert sys.excepthook is hook  # torch would write the number of the process before each line of a traceback
    with pytest.raises(simfle.UserError, match=r"another configuration \(train.seed: 0 -> 5\)"):
        simfle.pretrain(pictures, run, settings=TINY | {"train.steps": 2, "train.seed": 5})


def test_a_stopped_run_of_several_processes_is_not_taken_for_a_finished_one(faces: Path, tmp_path: Path) -> None:
    settings = TINY | {"train.steps": 2, "train.log_images_every": 0}
    with pytest.raises(
        simfle.RunStopped, match="was stopped after step 1 of 2 with a checkpoint; call again to resume"
    ) as end:
        simfle.pretrain(faces, tmp_path, processes=2, settings=settings | {"train.stop_after_step": 1})
    assert not end.value.by_signal
    assert simfle.pretrain(faces, tmp_path, settings=settings).is_file()


def test_a_backbone_takes_any_kind_of_image_and_gives_the_same_features(backbone: Path, pictures: Path) -> None:
    model = simfle.load_backbone(backbone.parents[2])  # the run's folder
    assert model.size == 64
    file = sorted(pictures.glob("*.jpg"))[0]
    image = Image.open(file)
    array = np.asarray(image)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    found = [model(kind) for kind in (file, str(file), image, array, tensor, array[None], tensor[None], [image])]
    for features in found:
        assert features.shape == (1, model.features)
        assert torch.equal(features, found[0])
    assert model([image, array]).shape == (2, model.features)
    assert model.maps(image).shape == (1, model.features, 2, 2)
    # By hand: timm's module on the normalized image.
    with torch.no_grad():
        by_hand = model.network(model.preprocess(image)).mean((2, 3))
    torch.testing.assert_close(found[0], by_hand)
    for wrong, words in (
        (array.astype(np.float32), "of uint8"),
        (torch.zeros(64, 64, 3, dtype=torch.uint8), r"tensor \[3, H, W\]"),
        ([], "no images"),
        (7, "int is not an image"),
    ):
        with pytest.raises(simfle.UserError, match=words):
            model(wrong)  # type: ignore[arg-type]


def test_a_photo_on_its_side_is_turned_upright(tmp_path: Path) -> None:
    """However it is given, as its EXIF orientation says: 6 is a quarter turn."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((20, 40, 3), np.uint8)).save(tmp_path / "phone.jpg", exif=exif)
    for kind in (tmp_path / "phone.jpg", Image.open(tmp_path / "phone.jpg")):
        assert pixels(kind).shape == (40, 20, 3)


def test_pixels_of_gray_images_have_three_channels() -> None:
    gray = np.arange(64, dtype=np.uint8).reshape(8, 8)
    for kind in (gray, Image.fromarray(gray), torch.from_numpy(gray)):
        found = pixels(kind)
        assert found.shape == (8, 8, 3)
        assert (found == gray[:, :, None]).all()


def test_embedding_gives_the_same_of_shards_folder_and_images(
    backbone: Path, pictures: Path, faces: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = simfle.load_backbone(backbone)
    of_shards = simfle.embed(faces, model, tmp_path / "all.npz", batch=7)
    opened = shards.open(faces)
    assert of_shards["key"].tolist() == opened.keys()
    assert of_shards["label"].tolist() == [item.label for item in opened]
    assert set(of_shards["split"]) == {"train", "test"}
    assert of_shards["features"].shape == (len(opened), model.features)
    with np.load(tmp_path / "all.npz", allow_pickle=False) as kept:
        assert all(np.array_equal(kept[name], of_shards[name]) for name in of_shards)

    of_folder = simfle.embed(pictures, model, tmp_path / "folder.parquet")
    assert "skipped" in caplog.text
    assert of_folder["key"].tolist() == sorted(f"{item.key}.jpg" for item in opened[:40])
    same = [opened.keys().index(name.removesuffix(".jpg")) for name in of_folder["key"]]
    np.testing.assert_allclose(of_folder["features"], of_shards["features"][same], rtol=1e-4, atol=1e-5)
    table = parquet.read_table(tmp_path / "folder.parquet")
    assert table.column("key").to_pylist() == of_folder["key"].tolist()
    assert np.array_equal(np.array(table.column("features").to_pylist(), np.float32), of_folder["features"])

    of_images = simfle.embed([item.image for item in opened[:3]], model)
    np.testing.assert_allclose(of_images["features"], of_shards["features"][:3], rtol=1e-4, atol=1e-5)
    only = simfle.embed(faces, model, splits=["test"])
    assert set(only["split"]) == {"test"}
    with pytest.raises(simfle.UserError, match="a name that ends in"):
        simfle.embed(faces, model, tmp_path / "all.txt")


def test_evaluating_ends_in_a_table(backbone: Path, faces: Path, tmp_path: Path) -> None:
    settings = {"protocols": ["knn"], "bootstrap_samples": 20}
    summary = simfle.evaluate(backbone.parents[2], shards=faces, out=tmp_path / "eval", settings=settings)
    assert "95 % interval" in str(summary)  # a table for people
    assert f"this test set has only {summary.table[0].people} people" in str(summary)
    assert "difference" in repr(summary)
    assert {row.kind for row in summary.table} == {"online", "random"}
    assert (tmp_path / "eval" / "summary.json").is_file()


def test_shards_open(faces: Path) -> None:
    opened = shards.open(faces)
    assert len(opened) == 240
    item = opened[17]
    assert opened[item.key].image_bytes == item.image_bytes
    assert opened[-1].key == opened.keys()[-1]
    assert item.key in opened
    assert "no such" not in opened
    assert item.image.dtype == np.uint8
    assert item.image.shape[2] == 3
    assert item.label_id is not None
    assert opened.labels[item.label_id] == item.label == item.metadata["label"]
    assert [each.key for each in opened] == opened.keys()
    train = shards.open(faces, splits=["train"])
    assert 0 < len(train) < len(opened)
    assert {each.split for each in train} == {"train"}
    with pytest.raises(IndexError):
        opened[240]
    with pytest.raises(KeyError):
        opened["no such"]
    with pytest.raises(simfle.UserError, match="no split 'tset'"):
        shards.open(faces, splits=["tset"])


def test_shards_are_a_dataset_for_loaders(faces: Path) -> None:
    pairs = shards.open(faces).as_torch_dataset(lambda image: torch.from_numpy(np.asarray(image.resize((8, 8))).copy()))
    images, labels = next(iter(DataLoader(pairs, batch_size=5)))
    assert images.shape == (5, 8, 8, 3)
    assert labels.tolist() == [shards.open(faces)[number].label_id for number in range(5)]
    again = pickle.loads(pickle.dumps(shards.open(faces)))  # as worker processes get it
    assert again[3].key == shards.open(faces)[3].key


def test_statistics_are_those_of_the_pixels(faces: Path) -> None:
    opened = shards.open(faces, splits=["test"])
    every = np.stack([item.image for item in opened]) / 255  # drawn faces are of one size
    found = pixel_stats(opened)
    assert found.images == len(opened)
    np.testing.assert_allclose(found.mean, every.mean((0, 1, 2)), rtol=1e-9)
    np.testing.assert_allclose(found.std, every.std((0, 1, 2)), rtol=1e-9)
    assert pixel_stats(opened, max_images=10).images == 10


def test_words_for_values() -> None:
    assert load(PretrainConfig, None, ["train.micro_batch=auto"]).train.micro_batch == AUTO
    with pytest.raises(simfle.UserError, match=r"train\.micro_batch"):
        load(PretrainConfig, None, ["train.micro_batch=atuo"])
