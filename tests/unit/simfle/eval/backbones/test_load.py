"""Backbone files are read as written and refused for another model; random backbones are reproducible."""

import hashlib
import json
import re
from pathlib import Path

import pytest
import timm
import torch
from helpers.eval_fixtures import MODEL, MakeBackbone
from safetensors.torch import load_file, save_file
from torch import nn

import simfle
from simfle.errors import UserError
from simfle.eval.backbones.external import open_backbone
from simfle.eval.backbones.load import load_backbone, random_backbone, read_metadata, recalibrate_batchnorm
from simfle.eval.tasks import identify

pytestmark = pytest.mark.slow


def images(count: int = 4, side: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)


def test_features_are_those_of_timm_with_the_same_weights(make_backbone: MakeBackbone) -> None:
    path = make_backbone()
    backbone = load_backbone(path)
    judge = timm.create_model(MODEL, num_classes=0).eval()
    judge.load_state_dict(load_file(path))
    normalized = (images() / 255 - 0.5) / 0.25
    torch.testing.assert_close(backbone.module(images()), judge(normalized))
    assert not any(parameter.requires_grad for parameter in backbone.module.parameters())
    assert not backbone.module.training


def test_a_folder_will_do(make_backbone: MakeBackbone) -> None:
    path = make_backbone()
    assert load_backbone(path.parent).file == path


def test_random_is_a_function_of_the_seed_and_leaves_torch_alone(make_backbone: MakeBackbone) -> None:
    card = load_backbone(make_backbone()).card
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    first, again, other = (random_backbone(card, seed).module.state_dict() for seed in (0, 0, 1))
    assert torch.rand(1) == expected
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["network.conv1.0.weight"], other["network.conv1.0.weight"])
    assert random_backbone(card, 0).card.network == "random"


def test_resnets_start_as_the_reference_does(make_backbone: MakeBackbone) -> None:
    """Only timm would set the last BatchNorm of each block to zero."""
    card = load_backbone(make_backbone(model="resnet10t", folder="ten")).card
    network = random_backbone(card, 0).module.network
    assert all(module.weight.detach().eq(1).all() for module in network.modules() if isinstance(module, nn.BatchNorm2d))


def test_calibration_sets_the_statistics_of_the_images_and_nothing_else(make_backbone: MakeBackbone) -> None:
    card = load_backbone(make_backbone()).card
    plain, calibrated = random_backbone(card, 0), random_backbone(card, 0)
    batches = images(12).split(4)
    recalibrate_batchnorm(calibrated, batches)
    for (name, before), after in zip(plain.module.named_parameters(), calibrated.module.parameters(), strict=True):
        assert torch.equal(before, after), name
    first = next(name for name, module in calibrated.module.named_modules() if isinstance(module, nn.BatchNorm2d))
    norm, conv = calibrated.module.get_submodule(first), calibrated.module.network.conv1[0]
    seen = conv((images(12).float() / 255 - 0.5) / 0.25)
    torch.testing.assert_close(norm.running_mean, seen.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)  # type: ignore[arg-type]
    assert not calibrated.module.training
    features = calibrated.module(images(12))
    assert not torch.equal(features, plain.module(images(12)))


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "convnext_atto"])
def test_recalibrating_a_network_without_batchnorm_changes_nothing_and_reads_no_images(name: str) -> None:
    backbone = open_backbone(f"random:{name}+size=32")
    before = {key: value.clone() for key, value in backbone.module.state_dict().items()}
    batches = iter(images(8).split(4))
    recalibrate_batchnorm(backbone, batches)
    assert all(torch.equal(value, before[key]) for key, value in backbone.module.state_dict().items())
    assert not backbone.module.training
    assert len(list(batches)) == 2


def test_missing_files_are_named(tmp_path: Path, make_backbone: MakeBackbone) -> None:
    """Errors name the requested path, not a file beside it; also in an evaluation."""
    path = make_backbone()
    path.unlink()
    other = tmp_path / "config.yaml"
    other.write_text("model: {}")
    for place, words in (
        (tmp_path / "nowhere" / "backbone.safetensors", "does not exist"),
        (tmp_path / "nope", "does not exist"),
        (path, "does not exist"),
        (path.parent, r"is a folder without a backbone\.safetensors"),
        (tmp_path, r"is a folder without a backbone\.safetensors"),
        (other, r"has no backbone\.json beside it"),
    ):
        for call in (load_backbone, lambda place: identify(str(place))):
            with pytest.raises(UserError, match=rf"^backbone: {re.escape(str(place))} {words}"):
                call(place)
    with pytest.raises(UserError, match="backbone='': empty"):
        simfle.load_backbone("")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 9}, "format 9, not 1"),
        ({"features": "many"}, "corrupt"),
        ({"mean": None}, "corrupt"),
        ({"mean": [float("nan")] * 3}, "corrupt.*mean is not finite"),
        ({"std": [0, 1, 1]}, "corrupt.*std not above 0"),
        ({"size": -5}, "corrupt.*size -5 is not 1 to 65500"),
        ({"size": 100000}, "corrupt.*size 100000"),
        ({"features": 5}, "96 features, but its backbone.json has 5"),
        ({"name": "resnet1O"}, "timm has no 'resnet1O'"),
        ({"name": "swin_tiny_patch4_window7_224"}, "no feature map"),
        ({"name": "resnet18"}, "is not a resnet18: lacks"),
    ],
)
def test_bad_cards(make_backbone: MakeBackbone, change: dict, message: str) -> None:
    path = make_backbone()
    card = path.with_name("backbone.json")
    card.write_text(json.dumps({**json.loads(card.read_text()), **change}))
    with pytest.raises(UserError, match=message):
        load_backbone(path)


def test_damaged_files(make_backbone: MakeBackbone) -> None:
    path = make_backbone()
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="not a readable safetensors file"):
        load_backbone(path)
    path.with_name("backbone.json").write_text("{")
    with pytest.raises(UserError, match="corrupt"):
        read_metadata(path.with_name("backbone.json"))


def test_another_model_is_named_by_key_and_shape(make_backbone: MakeBackbone) -> None:
    path = make_backbone()
    tensors = load_file(path)
    tensors["conv1.0.weight"] = torch.zeros(1, 3, 3, 3)
    save_file(tensors, path)
    with pytest.raises(UserError, match=r"is not a test_resnet: conv1\.0\.weight is \[1, 3, 3, 3\], not \["):
        load_backbone(path)
    tensors["head.weight"] = tensors.pop("conv1.0.weight")
    save_file(tensors, path)
    with pytest.raises(UserError, match=r"lacks conv1\.0\.weight, has unknown head\.weight"):
        load_backbone(path)


def test_weights_that_are_not_those_of_the_card_are_refused(make_backbone: MakeBackbone) -> None:
    """Flip one bit of one weight: the file stays valid for safetensors. Cards of earlier exports have no hash."""
    path = make_backbone()
    content = bytearray(path.read_bytes())
    card = path.with_name("backbone.json")
    card.write_text(json.dumps({**json.loads(card.read_text()), "sha256": hashlib.sha256(content).hexdigest()}))
    assert load_backbone(path).card.sha256
    content[-100] ^= 16
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"backbone.safetensors is corrupt, .* Fix: export it again from its run"):
        load_backbone(path)
    known = json.loads(card.read_text())
    del known["sha256"]
    card.write_text(json.dumps(known))
    assert load_backbone(path).card.sha256 == ""
