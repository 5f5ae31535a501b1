"""Inputs of the API: images of every kind, one or several, and local paths."""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import save_file

import shards
import simfle
from simfle.api.backbone import Backbone, pixels

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model() -> Backbone:
    """A backbone with random weights, because only its inputs matter here."""
    return simfle.load_backbone("random:resnet10t+size=32", device="cpu")


def cut_out(side: int = 32) -> Image.Image:
    """A gradient in RGBA, opaque in an ellipse, transparent in the corners, half of each in between."""
    y, x = np.mgrid[0:side, 0 : side + 8]
    image = Image.fromarray(np.stack([x * 6, y * 8, (x + y) * 3], -1).astype(np.uint8))
    alpha = Image.new("L", image.size, 0)
    ImageDraw.Draw(alpha).ellipse((0, 0, *image.size), fill=128)
    ImageDraw.Draw(alpha).ellipse((6, 6, image.width - 6, image.height - 6), fill=255)
    image.putalpha(alpha)
    return image


def deep(mode: str) -> Image.Image:
    """Gray of 16 bits, in the modes that Pillow has for it."""
    values = np.linspace(0, 65535, 32 * 40).reshape(32, 40).astype(np.uint16)
    if mode == "I;16B":
        return Image.frombytes(mode, (40, 32), values.astype(">u2").tobytes())
    return Image.fromarray(values if mode == "I;16" else values.astype(np.int32))


def in_mode(mode: str) -> Image.Image:
    if mode in ("I", "I;16", "I;16B"):
        return deep(mode)
    if mode == "P, transparent":
        return cut_out().quantize(64)
    if mode == "RGB, one color transparent":
        image = cut_out().convert("RGB")
        image.info["transparency"] = image.getpixel((0, 0))
        return image
    image = cut_out()
    return image.convert("RGB").convert(mode) if mode == "P" else image.convert(mode)  # TIFF has no transparent palette


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        *((mode, "png") for mode in ("1", "L", "LA", "P", "P, transparent", "RGB", "RGBA", "I;16")),
        *((mode, "tif") for mode in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "I", "I;16", "I;16B")),
        *((mode, "webp") for mode in ("RGBA", "RGBa", "PA")),
        *((mode, "jpg") for mode in ("L", "RGB", "CMYK")),
        ("RGB, one color transparent", "png"),
    ],
)
@pytest.mark.parametrize("turn", [1, 6])
def test_a_pil_image_is_what_its_file_is(mode: str, kind: str, turn: int, model: Backbone, tmp_path: Path) -> None:
    image, file = in_mode(mode), tmp_path / f"image.{kind}"
    exif = Image.Exif()
    exif[0x0112] = turn
    # Compressed: turned TIFFs that Pillow maps, as it does those without, come out of it garbled.
    how = {"webp": {"lossless": True}, "tif": {"compression": "tiff_lzw"}}.get(kind, {})
    image.save(file, exif=exif, **how)
    wanted = pixels(file)
    assert wanted.shape == ((32, 40, 3) if turn == 1 else (40, 32, 3))
    assert wanted.std() > 10  # not all white
    assert np.array_equal(pixels(Image.open(file)), wanted)
    if kind != "jpg" and turn == 1:
        assert np.array_equal(pixels(image), wanted)
    features = simfle.embed([file, Image.open(file)], model, batch=1)["features"]
    assert np.array_equal(features[0], features[1])
    assert np.array_equal(features[0], model(file)[0].numpy())


def test_what_cannot_be_used_of_a_file_cannot_of_a_pil_image(tmp_path: Path) -> None:
    small = np.zeros((32, 40))
    for values, words in ((small.astype(np.float32), "floating-point"), (small.astype(np.int32) - 1, "32-bit")):
        image, file = Image.fromarray(values), tmp_path / "image.tif"
        image.save(file)
        with pytest.raises(simfle.UserError, match="not a usable image"):
            pixels(file)
        for kind in (image, Image.open(file)):
            with pytest.raises(simfle.UserError, match=rf"mode {image.mode} cannot be used \({words}") as error:
                pixels(kind)
            assert "\n" not in str(error.value)
    cut_out().save(file := tmp_path / "cut.png")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(simfle.UserError, match="mode RGBA cannot be used"):
        pixels(Image.open(file))
    for empty in (Image.new("RGB", (0, 4)), np.zeros((0, 4, 3), np.uint8), torch.zeros(3, 0, 4, dtype=torch.uint8)):
        with pytest.raises(simfle.UserError, match=r"0 x 4|0, 4"):
            pixels(empty)


def test_one_image_is_embedded_as_one(model: Backbone, tmp_path: Path) -> None:
    image = cut_out().convert("RGB")
    image.save(file := tmp_path / "one.png")
    array = np.asarray(image)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    wanted = model(image).numpy()
    for one in (image, array, tensor, file, str(file), [image], array[None], tensor[None], np.array([str(file)])):
        found = simfle.embed(one, model)
        assert found["key"].tolist() == [0]
        assert np.array_equal(found["features"], wanted)
        assert np.array_equal(model(one), wanted)
    for gray in (array[:, :, 0], tensor[0]):
        assert np.array_equal(simfle.embed(gray, model)["features"], model(gray))
    assert simfle.embed((each for each in [image, array]), model)["key"].tolist() == [0, 1]
    (tmp_path / "file.txt").write_text("no picture")
    with pytest.raises(simfle.UserError, match=r"file\.txt: not a usable image"):
        simfle.embed(tmp_path / "file.txt", model)
    for wrong, kind in ((None, "NoneType"), (7, "int"), ({"a": image}, "dict"), (b"jpeg", "bytes")):
        for call in (model, lambda data: simfle.embed(data, model)):
            with pytest.raises(simfle.UserError, match=f"{kind} is not an image"):
                call(wrong)


def test_an_item_is_in_its_shards_and_is_told_in_a_line(faces: Path, tmp_path: Path) -> None:
    opened = shards.open(faces)
    item = opened[3]
    assert item in opened
    assert item.key in opened
    assert item not in shards.open(faces, splits=[name for name in opened.manifest.splits if name != item.split])
    for other in (None, 3, [item.key], {}, replace(item, image_bytes=b""), replace(item, key="no such")):
        assert other not in opened
    assert {item, opened[3], opened[4]} == {item, opened[4]}
    assert f"key={item.key!r}" in repr(item)
    assert "file" not in repr(item)
    assert repr(opened) == f"Shards({str(faces)!r}, 240 samples)"


def test_splits_are_one_name_several_or_all(faces: Path, model: Backbone) -> None:
    opened = shards.open(faces)
    assert shards.open(faces, "train").keys() == shards.open(faces, ["train"]).keys()
    assert shards.open(faces, None).keys() == shards.open(faces, ()).keys() == opened.keys()
    with pytest.raises(simfle.UserError, match="no split 'tran' in"):
        shards.open(faces, "tran")
    test = simfle.embed(faces, model, splits="test")
    assert test["key"].tolist() == shards.open(faces, ["test"]).keys()
    assert simfle.embed(faces, model, splits=None)["key"].tolist() == opened.keys()
    with pytest.raises(simfle.UserError, match=r"splits=\['test'\]: only shards have splits"):
        simfle.embed(opened[0].image, model, splits="test")
    with pytest.raises(simfle.UserError, match=r"pass splits to shards\.open"):
        simfle.embed(opened, model, splits="test")


def test_shards_are_found_from_elsewhere(faces: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(faces.parent)
    opened = shards.open(faces.name)
    monkeypatch.chdir("/")
    assert opened[3].key in opened
    with pytest.raises(simfle.UserError, match="shards: nowhere is not a folder"):  # as it was given
        shards.open("nowhere")


def test_home_is_a_place(faces: Path, model: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(faces, tmp_path / "faces")
    (tmp_path / "pictures").mkdir()
    cut_out().save(tmp_path / "pictures" / "one.png")
    assert len(shards.open("~/faces")) == 240
    assert len(simfle.embed("~/faces", model, splits="test")["key"]) < 240
    assert simfle.embed(Path("~/pictures"), model, "~/all.npz")["key"].tolist() == ["one.png"]
    assert (tmp_path / "all.npz").is_file()
    assert simfle.embed("~/pictures/one.png", model)["key"].tolist() == [0]
    assert model(["~/pictures/one.png"]).shape == (1, model.features)
    save_file(model.network.state_dict(), tmp_path / "backbone.safetensors")
    (tmp_path / "backbone.json").write_text(json.dumps(asdict(model.card)))
    for place in ("~", "~/backbone.safetensors"):
        assert simfle.load_backbone(place).card == model.card
    with pytest.raises(simfle.UserError, match="~no-such-user/faces is not a folder"):
        shards.open("~no-such-user/faces")
