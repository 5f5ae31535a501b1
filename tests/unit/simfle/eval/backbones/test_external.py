"""Third-party backbones: found under any prefix, loaded without running code, and refused in one line."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from helpers.eval_fixtures import MODEL, MakeBackbone
from safetensors.torch import save_file
from torch import Tensor, nn

from simfle.errors import UserError
from simfle.eval.backbones.external import IMAGENET, REFERENCE, open_backbone, read_tensors
from simfle.eval.backbones.load import load_backbone, random_backbone

pytestmark = pytest.mark.slow

VIT = "test_vit"


def images(side: int = 64) -> Tensor:
    return torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def normalized(pixels: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    return (pixels / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


@pytest.fixture
def resnet() -> nn.Module:
    """Return torchvision's ResNet-18 with non-initial statistics."""
    from torchvision.models import resnet18

    torch.manual_seed(5)
    network = resnet18().train()
    with torch.no_grad():
        network(normalized(images(), *IMAGENET))
    return network.eval()


def judge(network: Any, pixels: Tensor) -> Tensor:
    """Return torchvision's own features: everything except its classifier."""
    network.fc = nn.Identity()
    with torch.no_grad():
        return network(pixels)


def test_ours_is_opened_as_before(make_backbone: MakeBackbone) -> None:
    path = make_backbone()
    assert open_backbone(str(path)).card == load_backbone(path).card


def test_torchvision_state_dict(tmp_path: Path, resnet: nn.Module) -> None:
    torch.save(resnet.state_dict(), tmp_path / "a@b+c.pth")
    found = open_backbone(f"torchvision:resnet18@{tmp_path / 'a@b+c.pth'}")
    assert (found.card.name, found.card.network, found.card.features) == ("resnet18", "torchvision", 512)
    torch.testing.assert_close(found.module(images()), judge(resnet, normalized(images(), *IMAGENET)))


def test_reference_checkpoint(tmp_path: Path, resnet: nn.Module) -> None:
    """The reference stores its backbone as numbered children, with online, target and an optimizer in one file."""
    children = nn.Sequential(*list(resnet.children())[:-1])
    state = {f"module.online_network.encoder.{key}": value for key, value in children.state_dict().items()}
    target = {key.replace("online", "target"): value * 2 for key, value in state.items()}
    content = {"state_dict": target | state, "epoch": 3, "best": np.float64(0.5), "args": argparse.Namespace(lr=1)}
    content["optimizer"] = {"state": {0: {"momentum_buffer": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]}
    torch.save(content, tmp_path / "last.pth")
    found = open_backbone(f"simfle:resnet18@{tmp_path / 'last.pth'}")
    assert found.card.run == {"source": "simfle:last.pth", "prefix": "state_dict.module.online_network.encoder"}
    torch.testing.assert_close(found.module(images()), judge(resnet, normalized(images(), *REFERENCE)))
    prefix = "state_dict.module.target_network.encoder"
    other = open_backbone(f"simfle:resnet18@{tmp_path / 'last.pth'}+prefix={prefix}")
    assert torch.equal(other.module.network.conv1.weight, 2 * found.module.network.conv1.weight)


def test_safetensors_with_a_name_and_a_normalization(tmp_path: Path, make_backbone: MakeBackbone) -> None:
    ours = make_backbone()
    kept = tmp_path / "kept.safetensors"
    ours.rename(kept)
    found = open_backbone(f"weights:{MODEL}@{kept}+mean=0.5:0.5:0.5+std=0.25:0.25:0.25+size=32")
    assert (found.card.mean, found.card.std, found.card.size) == ((0.5,) * 3, (0.25,) * 3, 32)
    torch.testing.assert_close(found.module(images()), _timm_features(found.module.network, images()))


def _timm_features(network: nn.Module, pixels: Tensor) -> Tensor:
    plain = timm.create_model(MODEL, num_classes=0).eval()
    plain.load_state_dict(network.state_dict())
    return plain((pixels / 255 - 0.5) / 0.25)


def test_transformers_give_the_mean_of_their_patch_tokens(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = timm.create_model(VIT, num_classes=0, img_size=64).eval()
    save_file(network.state_dict(), tmp_path / "vit.safetensors")
    found = open_backbone(f"weights:{VIT}@{tmp_path / 'vit.safetensors'}+size=64")
    tokens = network.forward_features(normalized(images(), *IMAGENET))
    torch.testing.assert_close(found.module(images()), tokens[:, 1:].mean(1))
    maps = found.module.maps(images())
    assert maps.shape == (2, 64, 4, 4)
    torch.testing.assert_close(maps[:, :, 1, 2], tokens[:, 1 + 4 + 2])
    assert found.module.maps(images(96)).shape == (2, 64, 6, 6)  # positions are interpolated
    assert random_backbone(found.card, 0).module(images()).shape == (2, 64)
    with pytest.raises(UserError, match=r"pos_embed is \[1, 17, 64\], not"):
        open_backbone(f"weights:{VIT}@{tmp_path / 'vit.safetensors'}+size=128")


def test_random_is_a_function_of_its_seed() -> None:
    first, again, other = (open_backbone(f"random:{MODEL}+seed={seed}+size=32") for seed in (1, 1, 2))
    one, two, three = (found.module.network.conv1[0].weight for found in (first, again, other))
    assert torch.equal(one, two)
    assert not torch.equal(one, three)


class Evil:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple]:
        return os.mkdir, (str(self.mark),)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path, resnet: nn.Module) -> None:
    mark = tmp_path / "the code has run"
    for content in (Evil(mark), {"state_dict": resnet.state_dict(), "extra": Evil(mark)}):
        torch.save(content, tmp_path / "evil.pth")
        with pytest.raises(UserError, match=r"evil\.pth is refused, it needs posix\.mkdir: only tensors") as error:
            open_backbone(f"torchvision:resnet18@{tmp_path / 'evil.pth'}")
        assert "\n" not in str(error.value)
        assert not mark.exists()


def test_timm_offline_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="not cached and the download failed"):
        open_backbone(f"timm:{MODEL}")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("torchvision:resnet18@nowhere.pth", r"nowhere\.pth does not exist"),
        ("torchvision:resnet18@", "no file is given"),
        ("torchvision:x.pth", "no model is given"),
        ("random:resnet1O", "timm has no 'resnet1O'"),
        ("timm:resnet1O", "timm has no 'resnet1O'"),
        ("timm:coatnet_0_224", "timm has no weights of coatnet_0_224"),
        ("timm:resnet18+size=32", "unknown option \\+size=. Fix: timm: takes no options"),
        ("random:resnet18+size=small", "size=small is not an integer"),
        ("weights:resnet18@x.pth+mean=0.5", "not three numbers"),
        ("weights:resnet18@x.pth+std=0.5:0.5:0", "not three numbers"),
        ("random:swin_tiny_patch4_window7_224", "no feature map"),
        ("random:vit_tiny_patch16_224+size=100", "a multiple of 16 px, not 100"),
    ],
)
def test_errors(source: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        open_backbone(source)
    assert "\n" not in str(error.value)


def test_files_that_hold_something_else(tmp_path: Path, resnet: nn.Module) -> None:
    path = tmp_path / "w.pth"
    source = f"torchvision:resnet18@{path}"
    path.write_bytes(b"hello there")
    with pytest.raises(UserError, match="cannot be read as weights"):
        open_backbone(source)
    torch.save({"state_dict": resnet.state_dict()}, path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(UserError, match="cannot be read as weights"):
        open_backbone(source)
    torch.save({"epoch": 3}, path)
    with pytest.raises(UserError, match="contains no named tensors"):
        open_backbone(source)
    state = resnet.state_dict()
    del state["layer4.1.conv2.weight"]
    torch.save(state, path)
    with pytest.raises(UserError, match=r"does not contain that model: lacks layer4\.1\.conv2\.weight\. "):
        open_backbone(source)
    torch.save({"a": resnet.state_dict(), "b": resnet.state_dict()}, path)
    with pytest.raises(UserError, match=r"contains several such networks. Fix: add .prefix= with one of: a, b"):
        open_backbone(source)
    assert set(read_tensors(path)) == {f"{half}.{key}" for half in "ab" for key in resnet.state_dict()}
