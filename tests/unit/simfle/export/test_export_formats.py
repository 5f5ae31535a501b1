"""ONNX equals torch, timm reads the Hugging Face folder, the model card describes the run."""

import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np
import pytest
import timm
import torch
import yaml
from helpers.eval_fixtures import MODEL, MakeBackbone, MakeShards, picture
from torch import nn

from shards.format.manifest import read_manifest, write_manifest
from simfle.commands.export import export_backbone
from simfle.config.schema import DataConfig, PretrainConfig
from simfle.errors import UserError
from simfle.eval.analysis.results import Result, Samples, write_result
from simfle.eval.backbones.external import open_backbone
from simfle.eval.backbones.load import LoadedBackbone, load_backbone
from simfle.export.huggingface import export_huggingface
from simfle.export.onnx import export_onnx

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[4]


def result(kind: str, seed: int, score: float, weights: str = "") -> Result:
    backbone = {"id": f"b-{kind}-{weights[:8]}", "kind": kind, "model": MODEL, "sha256": weights}
    chosen, samples = [{"score": 1.0}], Samples(["a"], ["a"], [0], [0])
    scores = {"balanced_accuracy": score}
    about: dict = {"data": {}, "settings": {}, "config": {}, "versions": {}}
    names = ["joy", "fear"]
    return Result(
        backbone, "shapes", "linear", seed, "classes", names, "balanced_accuracy", scores, chosen, None,
        samples=samples, identity="0", command=[], git=None, **about,
    )  # fmt: skip


@pytest.fixture
def run(tmp_path: Path, make_shards: MakeShards) -> Path:
    folder = tmp_path / "my-run"
    shards = make_shards({"train": [4, 4, 4]})
    write_manifest(shards, type(read_manifest(shards))(**{**vars(read_manifest(shards)), "terms": "research only"}))
    folder.mkdir()
    config = asdict(PretrainConfig(data=DataConfig(shards=[str(shards)])))
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "metrics.jsonl").write_text('{"step": 9, "samples": 12345, "losses": {}}\n{"step": 10, "sam')
    (folder / "versions.json").write_text('{"torch": "2.15"}')
    for kind, seed, score in (("online", 0, 0.5), ("online", 1, 0.6), ("target", 0, 0.9)):
        write_result(folder / "eval", result(kind, seed, score))
    return folder


@pytest.mark.parametrize("source", [f"random:{MODEL}+size=32", "random:test_vit+size=64"])
def test_onnx_computes_what_torch_computes(source: str, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    backbone = open_backbone(source)
    path = tmp_path / "backbone.onnx"
    assert 0 < export_onnx(backbone, path) < 1e-5
    side = backbone.card.size
    images = torch.randint(0, 256, (5, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (features,) = session.run(["features"], {"images": images.numpy()})
    torch.testing.assert_close(torch.from_numpy(features), backbone.module(images), rtol=1e-4, atol=1e-5)
    assert [file.name for file in tmp_path.iterdir()] == ["backbone.onnx"]


def test_onnx_that_differs_is_not_given_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    monkeypatch.setattr("simfle.export.onnx.TOLERANCE", 1e-12)
    with pytest.raises(UserError, match="differ from torch's by"):
        export_onnx(open_backbone(f"random:{MODEL}+size=32"), tmp_path / "backbone.onnx")
    assert list(tmp_path.iterdir()) == []


FAMILIES = ("convnext_atto", "efficientnet_lite0", "regnetx_002", "vit_tiny_patch16_dinov3_qkvb")


@pytest.mark.parametrize(
    "source",
    [f"random:{MODEL}+size=32", "random:test_vit+size=64", *(f"random:{name}+size=64" for name in FAMILIES)],
)
def test_timm_reads_the_folder(source: str, run: Path, tmp_path: Path) -> None:
    backbone = open_backbone(source)
    folder = export_huggingface(run, _as_exported(backbone), tmp_path / "hub")
    model = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0).eval()
    data = timm.data.resolve_model_data_config(model)
    assert tuple(data["mean"]) == backbone.card.mean
    assert tuple(data["input_size"]) == (3, backbone.card.size, backbone.card.size)
    image = np.random.default_rng(0).integers(0, 256, (backbone.card.size, backbone.card.size, 3), np.uint8)
    pixels = timm.data.create_transform(**data)(_pil(image))
    wanted = backbone.module(torch.from_numpy(image).permute(2, 0, 1)[None])
    torch.testing.assert_close(model(pixels[None]), wanted, rtol=1e-4, atol=1e-5)


def test_mobilenetv4_is_read_as_a_map_whose_mean_are_the_features(run: Path, tmp_path: Path) -> None:
    """timm pools before the last convolution, the backbone after it; the card reports this."""
    backbone = open_backbone("random:mobilenetv4_conv_small_050+size=64")
    folder = export_huggingface(run, _as_exported(backbone), tmp_path / "hub")
    model = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0).eval()
    images = torch.rand(2, 3, 64, 64)
    maps = model(images)
    assert maps.shape == (2, 1280, 2, 2)
    torch.testing.assert_close(maps.mean((2, 3)), backbone.module.feature_map(images).mean((2, 3)))
    card = (folder / "README.md").read_text()
    assert "[None]).mean((2, 3))  # [1, C]" in card
    assert "pooler_output" not in card


@pytest.mark.parametrize("name", ["resnet18", "test_vit"])
def test_the_weights_are_not_told_to_be_timms(name: str, run: Path, tmp_path: Path) -> None:
    """timm's own weights of this architecture have another license, paper and URL."""
    timms = timm.create_model(name).pretrained_cfg
    assert (timms["license"], bool(timms["tag"])) == ("apache-2.0", True)
    backbone = _as_exported(open_backbone(f"random:{name}+size=64"))
    folder = export_huggingface(run, backbone, tmp_path / "hub")
    config = json.loads((folder / "config.json").read_text())["pretrained_cfg"]
    card = yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])
    assert config["license"] == card["license"] == "other"
    told = {key for key in config if key.startswith("paper") or key.endswith(("url", "id", "tag", "file"))}
    assert not told
    assert not {str(timms[key]) for key in ("tag", "hf_hub_id")} & set(map(str, config.values()))


def _pil(image: np.ndarray) -> object:
    from PIL import Image

    return Image.fromarray(image)


def _as_exported(backbone: LoadedBackbone) -> LoadedBackbone:
    """Return a card as from the run's tenth step."""
    card = type(backbone.card)(**{**vars(backbone.card), "network": "online", "run": {"step": 10}})
    return LoadedBackbone(backbone.module, card, backbone.file)


def test_the_model_card_tells_the_run(run: Path, make_backbone: MakeBackbone, tmp_path: Path) -> None:
    def written() -> str:
        backbone = _as_exported(load_backbone(make_backbone(str(len(names)))))
        assert backbone.file is not None
        weights = hashlib.sha256(backbone.file.read_bytes()).hexdigest()
        if not names:
            for seed, score in ((0, 0.7), (1, 0.8)):
                write_result(run / "eval", result("online", seed, score, weights))
        folder = export_huggingface(run, backbone, tmp_path / "hub")
        names.append(folder)
        return (folder / "README.md").read_text()

    names: list[Path] = []
    text = written()
    head, body = text.removeprefix("---\n").split("---\n", 1)
    assert yaml.safe_load(head)["library_name"] == "timm"
    assert "**shapes**: 12 images (splits train). Terms: research only" in body
    # The mean over seeds of these weights; not of the target network, nor of the online network at an earlier step.
    assert "| shapes | linear | balanced_accuracy | 0.7500 | 2 |" in body
    assert "0.9" not in [cell.strip() for line in body.splitlines() for cell in line.split("|")]
    assert "| global batch | 256 |" in body
    assert "after 12,345 images" in body
    assert "Inferring emotions of people at work" in body
    assert "method: simfle" in body
    assert "| initial weights | random |" in body
    (run / "init.json").write_text('{"source": "runs/first", "sha256": "0123456789abcdef", "loaded": 7, "wanted": 8}')
    shutil.rmtree(run / "eval")
    shutil.rmtree(read_shards(run))
    text = written()
    assert "State the corpus and its terms here" in text
    assert "the quality of these weights is unknown" in text
    assert "| initial weights | runs/first |" in text
    assert "runs/first (SHA-256 0123456789ab, 7 of 8 tensors loaded)" in text


def read_shards(run: Path) -> Path:
    return Path(yaml.safe_load((run / "config.yaml").read_text())["data"]["shards"][0])


def test_torchvision_computes_the_same_features(tmp_path: Path, make_backbone: MakeBackbone) -> None:
    from safetensors.torch import load_file
    from torchvision.models import resnet18

    path = make_backbone(model="resnet18")
    network = resnet18().eval()
    assert network.load_state_dict(load_file(path), strict=False).missing_keys == ["fc.weight", "fc.bias"]
    network.fc = nn.Identity()  # type: ignore[assignment]
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        features = network((images / 255 - 0.5) / 0.25)
    torch.testing.assert_close(features, load_backbone(path).module(images))


def test_the_example_runs(run: Path, tmp_path: Path, make_backbone: MakeBackbone) -> None:
    folder = export_huggingface(run, _as_exported(load_backbone(make_backbone())), tmp_path / "hub")
    faces = [tmp_path / f"{number}.jpg" for number in range(2)]
    for number, face in enumerate(faces):
        face.write_bytes(picture(number, 0))
    tool = [sys.executable, str(ROOT / "examples/use_backbone.py"), str(folder)]
    done = subprocess.run([*tool, *map(str, faces)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("1.0000") >= 2
    assert cv2.imread(str(faces[0])) is not None


def test_unknown_formats_are_told(run: Path) -> None:
    with pytest.raises(UserError, match=r"--format=tflite: unknown\. Fix: choose one of timm, onnx, huggingface"):
        export_backbone(run, format=["tflite"])
    with pytest.raises(UserError, match="--encoder=all: unknown"):
        export_backbone(run, encoder="all")
    (run / "config.yaml").write_text(json.dumps({"model": 3}))
    with pytest.raises(UserError, match=r"config\.yaml is corrupt"):
        export_huggingface(run, _as_exported(open_backbone(f"random:{MODEL}+size=32")), run / "hub")
