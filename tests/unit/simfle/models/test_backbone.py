"""Families of timm's networks as backbones: each method's step, maps of tokens, strides, and what is refused."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from helpers.tiny_methods import TINY, VIEWS, batch, config
from timm.layers import resample_abs_pos_embed

from shards.errors import UserError
from simfle.config.schema import ModelConfig, OptimConfig, ViewsConfig
from simfle.models.backbone import build_backbone, feature_map, feature_map_size
from simfle.models.registry import METHODS, build_method
from simfle.optim import parameter_groups
from simfle.train.checkpointing.state_dict import trainable_parameters

pytestmark = pytest.mark.slow

PAGE = Path(__file__).parents[4] / "docs" / "methods.md"
VIT, DINOV3, DINOV2 = "vit_tiny_patch16_224", "vit_tiny_patch16_dinov3_qkvb", "vit_small_patch14_reg4_dinov2"
# Small networks of each family: channels of the map, stride, first and last layer.
FAMILIES = {
    "convnext_atto": (320, 32, "stem.0.weight", "head.norm.weight"),
    "efficientnet_lite0": (1280, 32, "conv_stem.weight", "bn2.weight"),
    "mobilenetv4_conv_small_050": (1280, 32, "conv_stem.weight", "conv_head.weight"),
    "regnetx_002": (368, 32, "stem.conv.weight", "s4.b7.conv3.bn.weight"),
    VIT: (192, 16, "patch_embed.proj.weight", "norm.weight"),
    DINOV3: (192, 16, "patch_embed.proj.weight", "norm.weight"),
}
EACH = [(family, method) for family in FAMILIES for method in METHODS if method != "mae"]


def made(method: str, backbone: str, views: ViewsConfig = VIEWS, **changes: object) -> torch.nn.Module:
    torch.manual_seed(0)
    return build_method(config(method, backbone=backbone, output_stride=0, **changes), views).train()


@pytest.mark.parametrize(("family", "method"), EACH)
def test_a_step_of_each_method_trains_each_family(family: str, method: str) -> None:
    model = made(method, family)
    losses = model(batch(4))
    losses["total"].backward()
    model.on_step_end(0.5)
    assert all(value.isfinite() for value in losses.values())
    trained = dict(model.online.backbone.named_parameters())
    for key, parameter in trained.items():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
    for key in FAMILIES[family][2:]:
        assert trained[key].grad.abs().max() > 0, key


@pytest.mark.parametrize("family", FAMILIES)
def test_keys_are_timms_and_the_map_has_the_channels_of_num_features(family: str) -> None:
    channels, stride = FAMILIES[family][:2]
    network = build_backbone(family, 0, 32).eval()
    assert network.num_features == channels
    maps = feature_map(network, torch.zeros(2, 3, 64, 64))
    assert maps.shape == (2, channels, 64 // stride, 64 // stride)
    sized = {"img_size": 32} if family in (VIT, DINOV3) else {}
    timms = timm.create_model(family, num_classes=0, global_pool="", **sized)
    assert network.state_dict().keys() == timms.state_dict().keys()


@pytest.mark.parametrize("family", [VIT, DINOV3, "convnext_atto"])
def test_simfles_groups_come_from_the_channels_of_the_map(family: str) -> None:
    """The masks are those of the drawn group's convolution on the map, for faces of another side than the views."""
    model = made("simfle", family, ViewsConfig(size=64, face_size=32))
    model.capture_reconstruction = True
    wide = batch(4)
    view = wide.view1.float().repeat_interleave(2, 2).repeat_interleave(2, 3).to(torch.uint8)
    losses = model(replace(wide, view1=view, view2=view.flip(3)))
    masking, visible = model.masking, model.reconstruction.visible
    assert masking.channels == FAMILIES[family][0]
    assert visible.shape == (4, 4)
    assert all(row.tolist() == sorted(set(row.tolist())) and row.min() >= 0 and row.max() < 16 for row in visible)
    with torch.no_grad():
        maps = feature_map(model.online.backbone, model.normalize(wide.face))
        side = 32 // FAMILIES[family][1]
        assert maps.shape == (4, FAMILIES[family][0], side, side)
        grouped = masking.grouping(maps).flatten(2)
        group = (wide.mask_uniform * masking.groups).long()
        wanted = masking.most_active(masking.patch_scores(grouped, group))
    assert torch.equal(visible, wanted)
    if side > 1:
        assert losses["overlap"] < 0.999  # the groups respond at different positions


def test_patch_tokens_form_the_map_and_prefix_tokens_do_not() -> None:
    network = build_backbone(DINOV2, 0, 28).eval()
    assert network.num_prefix_tokens == 5
    images = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        tokens, maps = network(images), feature_map(network, images)
    assert tokens.shape == (2, 5 + 4, 384)
    for row in range(2):
        for column in range(2):
            assert torch.equal(maps[:, :, row, column], tokens[:, 5 + 2 * row + column])


def test_positions_are_interpolated_for_other_sides() -> None:
    network = build_backbone(VIT, 0, 64).eval()
    judge = timm.create_model(VIT, num_classes=0, global_pool="", img_size=32).eval()
    tensors = network.state_dict()
    tensors["pos_embed"] = resample_abs_pos_embed(tensors["pos_embed"], [2, 2], [4, 4], num_prefix_tokens=1)
    judge.load_state_dict(tensors)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(network(images), judge(images), atol=1e-5)


@pytest.mark.parametrize("name", ["convnext_atto", "efficientnet_lite0", "regnetx_002"])
def test_a_smaller_stride_keeps_more_positions_of_each_family(name: str) -> None:
    own, finer = build_backbone(name), build_backbone(name, 8)
    assert feature_map_size(own, 64) == 2
    assert feature_map_size(finer, 64) == 8
    shapes = {key: value.shape for key, value in own.state_dict().items()}
    assert {key: value.shape for key, value in finer.state_dict().items()} == shapes


@pytest.mark.parametrize(
    ("model", "views", "message"),
    [
        (config("byol", backbone=VIT, output_stride=8), VIEWS,
         rf"model.output_stride=8: not supported by {VIT} (its patches have 16 px). Fix: set model.output_stride=0."),
        (config("byol", backbone="mobilenetv4_conv_small_050", output_stride=16), VIEWS,
         "model.output_stride=16: not supported by mobilenetv4_conv_small_050 ("),
        (config("byol", backbone=VIT), ViewsConfig(size=40),
         f"model.backbone={VIT}, views.size=40: needs a multiple of 16 px, not 40. Fix: choose another size."),
        (config("simfle", backbone=DINOV2), ViewsConfig(size=28, face_size=32),
         f"model.backbone={DINOV2}: no feature map for views.face_size=32. Fix: choose views.face_size as a multiple"),
        (config("dino", backbone="swin_tiny_patch4_window7_224"), VIEWS,
         "model.backbone=swin_tiny_patch4_window7_224: has no feature map [B, C, h, w]. Fix: use a CNN"),
        (config("simclr", backbone="deit_tiny_distilled_patch16_224"), VIEWS,
         "model.backbone=deit_tiny_distilled_patch16_224, views.size=32: cannot be built for images of 32 px: "),
        (config("byol", freeze_patch_embed=True), VIEWS,
         "model.freeze_patch_embed=true: test_resnet has no patch projection. Fix: set model.freeze_patch"),
        (config("mae", backbone=DINOV3), VIEWS, f"model.backbone: {DINOV3} is not a plain ViT"),
    ],
    ids=lambda value: "" if isinstance(value, ModelConfig | ViewsConfig) else value[:40],
)  # fmt: skip
def test_what_does_not_fit_is_refused_in_one_line(model: ModelConfig, views: ViewsConfig, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        build_method(model, views)
    assert "\n" not in str(caught.value)
    assert ". Fix: " in str(caught.value)


@pytest.mark.parametrize("method", ["mocov3", "byol", "mae"])
def test_a_frozen_patch_projection_stays_and_the_rest_moves(method: str) -> None:
    model = made(method, VIT, freeze_patch_embed=True)
    before = {key: value.clone() for key, value in model.online.backbone.named_parameters()}
    named = trainable_parameters(model)
    optimizer = torch.optim.AdamW([parameter for _, parameter in named], lr=0.01)
    model(batch(4))["total"].backward()
    optimizer.step()
    model.on_step_end(0.5)
    still = {key for key, value in model.online.backbone.named_parameters() if torch.equal(value, before[key])}
    fixed = {"pos_embed"} if method == "mae" else set()
    assert still == {"patch_embed.proj.weight", "patch_embed.proj.bias"} | fixed
    if method != "mae":
        assert torch.equal(model.target.backbone.patch_embed.proj.weight, before["patch_embed.proj.weight"])


@pytest.mark.parametrize("family", [VIT, DINOV3, "convnext_atto"])
def test_tokens_positions_norms_and_biases_do_not_decay(family: str) -> None:
    named = trainable_parameters(made("byol", family))
    groups = parameter_groups(named, OptimConfig(decay_norms=False, weight_decay=0.1))
    decays = {id(parameter) for group in groups if group["weight_decay"] for parameter in group["params"]}
    for key, parameter in named:
        last = key.rpartition(".")[2]
        plain = parameter.ndim < 2 or last in ("cls_token", "reg_token", "pos_embed")
        assert (id(parameter) in decays) == (not plain), key
        assert last == "weight" or plain, key


def test_the_page_lists_which_method_takes_which_family() -> None:
    """Each row of the table in docs/methods.md, built on the meta device; the steps above are of every method."""
    tried = {"simfle", "mae", "dino", "fra"}  # each reads another part of the network
    rows = re.findall(r"^\| [^|]+ \| `([a-z0-9_]+)` \| ([^|]+) \| ([^|]+) \|$", PAGE.read_text(), re.MULTILINE)
    assert {"resnet50", "convnext_tiny", "efficientnet_b0", "mobilenetv4_conv_small", "regnety_016"} <= {
        name for name, *_ in rows
    }
    for name, methods, strides in rows:
        takes = {method for method in tried if builds(name, method, 0)}
        words = {"all": tried, "all but `mae`": tried - {"mae"}, "none": set()}
        assert takes == words[methods.strip()], name
        found = [str(stride) for stride in (8, 16) if builds(name, "byol", stride)]
        assert (", ".join(found) or "none") == strides.strip(), name


def builds(name: str, method: str, stride: int) -> bool:
    """Whether the method builds; views of 112 px are a multiple of patches of 14 and 16 px."""
    model = replace(TINY, backbone=name, method=method, output_stride=stride, mask_groups=8)
    try:
        with torch.device("meta"):
            build_method(model, ViewsConfig(size=112, face_size=112))
    except UserError:
        return False
    return True
