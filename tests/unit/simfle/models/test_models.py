"""Semantic masking, FaceMAE and the whole method: shapes, definitions, and what must not leak."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from shards.errors import UserError
from simfle.batch import Batch
from simfle.config.schema import FaceMAEConfig, ModelConfig, ViewsConfig
from simfle.models.backbone import build_backbone, feature_map_size
from simfle.models.layers.facemae import FaceMAE, patchify, sincos_positions, unpatchify
from simfle.models.layers.masking import ChannelGrouping, SemanticMasking, patch_score_matrix
from simfle.models.registry import build_method

pytestmark = pytest.mark.slow

TINY = FaceMAEConfig(
    patch_size=8, embed_dim=48, depth=1, num_heads=3, decoder_embed_dim=32, decoder_depth=1, decoder_num_heads=2
)
MODEL = ModelConfig(backbone="resnet10t", head_hidden_dim=32, head_out_dim=16, mask_groups=8, facemae=TINY)
VIEWS = ViewsConfig(size=64, face_size=64)


def batch(size: int = 4) -> Batch:
    generator = torch.Generator().manual_seed(0)
    images = (torch.randint(0, 256, (size, 3, 64, 64), dtype=torch.uint8, generator=generator) for _ in range(3))
    draw = torch.rand(size, dtype=torch.float64, generator=generator)
    return Batch(*(image.contiguous(memory_format=torch.channels_last) for image in images), torch.arange(size), draw)


def test_patch_scores_are_those_of_the_upsampled_map() -> None:
    maps = torch.rand(3, 1, 4, 4, dtype=torch.float64)
    image = F.interpolate(maps, size=(112, 112), mode="bilinear", align_corners=False)
    wanted = [
        image[:, 0, y : y + 16, x : x + 16].mean(dim=(1, 2)) for y in range(0, 112, 16) for x in range(0, 112, 16)
    ]
    got = maps.flatten(1) @ patch_score_matrix(4, 112, 16).double().T
    assert torch.allclose(got, torch.stack(wanted, dim=1), atol=1e-6)


def test_visible_are_the_patches_where_the_drawn_group_fires_most() -> None:
    masking = SemanticMasking(8, 2, "reference", map_side=2, face_size=64, patch=8, ratio=0.75)
    maps = torch.zeros(2, 8, 4)
    maps[:, :4, 0] = 1.0  # the first group's four channels fire top left, the second group's bottom right
    maps[:, 4:, 3] = 1.0
    visible = masking.most_active(masking.patch_scores(maps, torch.tensor([0, 1])))
    assert visible.shape == (2, 16)
    rows, columns = visible // 8, visible % 8
    assert rows[0].max() < 4 and columns[0].max() < 4  # noqa: PT018
    assert rows[1].min() >= 4 and columns[1].min() >= 4  # noqa: PT018
    equal = masking.most_active(torch.zeros(1, 64))
    assert equal.tolist() == [list(range(16))]


def test_reference_grouping_starts_dead_and_repaired_alive() -> None:
    features = torch.rand(4, 32, 4, 4)
    dead = ChannelGrouping(32, 4, "reference")(features)
    assert dead.shape == (4, 32, 4, 4)
    assert torch.allclose(dead, dead[:, :1].expand_as(dead), atol=1e-5)
    alive = ChannelGrouping(32, 4, "repaired")(features)
    assert alive.shape == (4, 4, 4, 4)
    assert not torch.allclose(alive[:, 0], alive[:, 1], atol=0.1)


@pytest.mark.parametrize("patch", [4, 8])
def test_patchify_orders_row_column_channel_and_is_undone(patch: int) -> None:
    image = torch.arange(2 * 3 * 16 * 16, dtype=torch.float32).view(2, 3, 16, 16)
    patches = patchify(image, patch)
    assert torch.equal(unpatchify(patches, patch), image)
    assert patches[1, 1, :3].tolist() == image[1, :, 0, patch].tolist()


def test_positions_match_the_formula() -> None:
    positions = sincos_positions(7, 16)
    assert positions.shape == (50, 16)
    assert positions[0].abs().max() == 0
    row, column, rate = 3, 5, 10000 ** (-1 / 4)
    token = positions[1 + row * 7 + column]
    sine = torch.tensor([column * rate, row * rate]).sin()
    assert torch.allclose(token[[1, 9]], sine, atol=1e-6)


def test_facemae_does_not_see_masked_patches() -> None:
    torch.manual_seed(0)
    model = FaceMAE(64, TINY).eval()
    patches, visible = torch.rand(2, 64, 192), torch.tensor([[1, 5, 9], [0, 2, 63]])
    tokens, prediction = model(patches, visible)
    assert tokens.shape == (2, 4, 48)
    assert prediction.shape == (2, 64, 192)
    hidden = torch.ones(2, 64, 1).scatter(1, visible[:, :, None], 0.0)
    same, _ = model(patches + hidden * torch.rand_like(patches), visible)
    assert torch.equal(tokens, same)


def test_every_trained_parameter_gets_a_gradient_and_the_target_none() -> None:
    torch.manual_seed(0)
    model = build_method(MODEL, VIEWS).train()
    losses = model(batch())
    losses["total"].backward()
    assert {"similarity", "reconstruction", "distillation", "grouping", "overlap", "total"} == set(losses)
    wanted = losses["similarity"] + losses["reconstruction"] + 0.3 * losses["distillation"] + 0.03 * losses["grouping"]
    assert torch.allclose(losses["total"], wanted)
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == name.startswith("target."), name


@pytest.mark.parametrize(
    ("name", "channels"), [("resnet18", 512), ("resnet50", 2048), ("resnet101", 2048), ("convnext_atto", 320)]
)
def test_any_cnn_of_timm_is_trained_as_backbone(name: str, channels: int) -> None:
    model = build_method(replace(MODEL, backbone=name), VIEWS).train()
    assert model.channels == channels
    model(batch(2))["similarity"].backward()
    for key, parameter in model.online.backbone.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
    assert next(model.online.backbone.parameters()).grad.abs().max() > 0  # down to the first layer


def test_grouping_and_reconstruction_do_not_reach_the_backbone() -> None:
    model = build_method(MODEL, VIEWS).train()
    images = batch()
    for name in ("grouping", "reconstruction"):
        model.zero_grad()
        model(images)[name].backward()
        assert all(parameter.grad is None for parameter in model.online.parameters()), name
    model.zero_grad()
    model(images)["distillation"].backward()  # the way FaceMAE guides the backbone
    assert model.online.backbone.conv1[0].weight.grad.abs().max() > 0
    assert model.facemae.cls_token.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("model", "views", "message"),
    [
        (ModelConfig(backbone="resnet51"), VIEWS, "timm has no 'resnet51'; did you mean resnet51q or resnet50"),
        (ModelConfig(backbone="swin_tiny_patch4_window7_224"), VIEWS, "has no feature map"),
        (ModelConfig(backbone="resnet10t", mask_groups=7, facemae=TINY), VIEWS, "model.mask_groups=7: does not divide"),
        (
            ModelConfig(backbone="resnet10t", grouping_init="fixed", facemae=TINY),
            VIEWS,
            "model.grouping_init='fixed': must be repaired or reference",
        ),
        (
            ModelConfig(backbone="resnet10t", facemae=TINY),
            ViewsConfig(face_size=60),
            "not a multiple of model.facemae.patch_size",
        ),
        (
            ModelConfig(method="simsiam2"),
            VIEWS,
            "model.method='simsiam2': must be simfle, byol, .* or fra. Fix: set model.method=simsiam",
        ),
    ],
)
def test_impossible_models_are_refused_by_name(model: ModelConfig, views: ViewsConfig, message: str) -> None:
    with pytest.raises(UserError, match=message.replace("[", r"\[")):
        build_method(model, views)


@pytest.mark.parametrize(("name", "side"), [("resnet10t", 2), ("resnet18", 2), ("test_resnet", 2)])
def test_a_smaller_stride_keeps_more_places_of_a_small_face(name: str, side: int) -> None:
    own, finer = build_backbone(name), build_backbone(name, 8)
    assert feature_map_size(own, 48) == side
    assert feature_map_size(finer, 48) == 6
    shapes = {key: value.shape for key, value in own.state_dict().items()}
    assert {key: value.shape for key, value in finer.state_dict().items()} == shapes


@pytest.mark.parametrize(("name", "stride"), [("resnet18", 5), ("convnext_atto", 3)])
def test_a_stride_that_cannot_be_is_refused(name: str, stride: int) -> None:
    with pytest.raises(UserError, match=f"model.output_stride={stride}"):
        build_backbone(name, stride)


def test_backbone_starts_as_the_reference_does() -> None:
    network = build_backbone("resnet18")
    assert network(torch.zeros(2, 3, 64, 64)).shape == (2, 512, 2, 2)
    assert network.layer1[0].bn2.weight.min().item() == 1.0  # timm would start these at 0
