"""Every exported form computes the features of `embed`, on faces of other sizes and shapes."""

import io
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import yaml
from helpers.eval_fixtures import MakeShards
from PIL import Image

import simfle
from shards.sources.synthetic.procedural import draw
from simfle.api.backbone import Backbone
from simfle.config.schema import DataConfig, PretrainConfig
from simfle.eval.backbones.external import open_backbone
from simfle.eval.backbones.load import LoadedBackbone
from simfle.export.huggingface import EXAMPLE, export_huggingface
from simfle.export.onnx import export_onnx

pytestmark = pytest.mark.slow

# Width, height: the network's 64 px, smaller, larger, tall and wide ones.
SIZES = [(64, 64), (100, 100), (80, 100), (160, 120), (48, 150), (150, 52), (50, 40), (64, 90), (97, 131), (61, 63)]
SOURCES = ["random:test_resnet+size=64", "random:test_vit+size=64"]
EQUAL = 1e-4  # largest difference of a feature, relative to the largest feature


@pytest.fixture(scope="module")
def photos() -> list[Image.Image]:
    """Forty synthetic faces."""
    drawn = [Image.open(io.BytesIO(draw(0, number, 0, 160))).convert("RGB") for number in range(8)]
    return [drawn[number % 8].resize(SIZES[number % 10], Image.Resampling.BICUBIC) for number in range(40)]


@pytest.fixture
def folder(request: pytest.FixtureRequest, make_shards: MakeShards, tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    config = asdict(PretrainConfig(data=DataConfig(shards=[str(make_shards({"train": [2, 2, 2]}))])))
    (tmp_path / "run/config.yaml").write_text(yaml.safe_dump(config))
    found = open_backbone(request.getfixturevalue("source"))
    card = type(found.card)(**{**vars(found.card), "network": "online", "run": {"step": 10}})
    return export_huggingface(tmp_path / "run", LoadedBackbone(found.module, card, None), tmp_path / "hub")


def off(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Return the largest difference of a feature, relative to the largest feature of the image, over images [n, C]."""
    assert found.shape == wanted.shape
    return float(((found - wanted).abs().amax(1) / wanted.abs().amax(1)).max())


def embedded(source: str, photos: list[Image.Image]) -> torch.Tensor:
    return torch.from_numpy(simfle.embed(photos, simfle.load_backbone(source, "cpu"))["features"])


@pytest.mark.parametrize("source", SOURCES)
def test_timms_transform_is_the_preprocessing(source: str, folder: Path, photos: list[Image.Image]) -> None:
    model = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    with torch.no_grad():
        found = torch.stack([transform(photo) for photo in photos])
        torch.testing.assert_close(found, simfle.load_backbone(source, "cpu").preprocess(photos))
        assert off(model(found), embedded(source, photos)) < EQUAL


@pytest.mark.parametrize("source", SOURCES)
def test_transformers_read_the_folder(source: str, folder: Path, photos: list[Image.Image]) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    model = transformers.AutoModel.from_pretrained(folder).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    with torch.no_grad():
        found = torch.cat([model(**processor(photo, return_tensors="pt")).pooler_output for photo in photos])
    assert off(found, embedded(source, photos)) < EQUAL


@pytest.mark.parametrize("source", SOURCES)
def test_onnx_takes_any_size(source: str, photos: list[Image.Image], tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    assert export_onnx(open_backbone(source), tmp_path / "backbone.onnx") < 1e-5
    session = onnxruntime.InferenceSession(str(tmp_path / "backbone.onnx"), providers=["CPUExecutionProvider"])

    def features(images: list[Image.Image]) -> torch.Tensor:
        batch = np.stack([np.asarray(image).transpose(2, 0, 1) for image in images])
        return torch.from_numpy(session.run(None, {"images": batch})[0])

    wanted = embedded(source, photos)
    assert off(torch.cat([features([photo]) for photo in photos]), wanted) < EQUAL
    assert off(features([photos[1], photos[11]]), wanted[[1, 11]]) < EQUAL


@pytest.mark.parametrize("source", SOURCES[:1])
def test_the_cards_code_equals_embed(source: str, folder: Path, photos: list[Image.Image], tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    photos[4].save(tmp_path / "face.jpg", exif=exif)
    example = EXAMPLE.format(pooling="")
    assert example in (folder / "README.md").read_text()
    program = example.replace("THIS_FOLDER", str(folder)) + '\ntorch.save(features, "features.pt")\n'
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=os.environ, check=True)
    found = torch.load(tmp_path / "features.pt", weights_only=True)
    assert off(found, simfle.load_backbone(source, "cpu")(tmp_path / "face.jpg")) < EQUAL


def test_a_strided_backbone_keeps_its_stride(
    tmp_path: Path, make_shards: MakeShards, photos: list[Image.Image]
) -> None:
    from simfle.eval.backbones.load import build_network, frozen

    card = open_backbone("random:resnet10t+size=64").card
    card = type(card)(**{**vars(card), "network": "online", "run": {"step": 1}, "output_stride": 16})
    backbone = frozen(build_network(card.name, card.size, 16), card)
    (tmp_path / "run").mkdir()
    config = asdict(PretrainConfig(data=DataConfig(shards=[str(make_shards({"train": [2, 2, 2]}))])))
    (tmp_path / "run/config.yaml").write_text(yaml.safe_dump(config))
    folder = export_huggingface(tmp_path / "run", LoadedBackbone(backbone, card, None), tmp_path / "hub")
    model = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0).eval()
    ours = Backbone(backbone, card, torch.device("cpu"))
    ready = ours.preprocess(photos[:3])
    assert model.forward_features(ready).shape[2:] == (4, 4)
    with torch.no_grad():
        assert off(model(ready), ours(photos[:3])) < EQUAL
