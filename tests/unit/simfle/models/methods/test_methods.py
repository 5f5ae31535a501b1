"""Methods as wholes: what gets gradients, what moves how, what is masked, and that nothing else is random."""

import copy
import math
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.tiny_methods import CONTRAST, EMA, FACEMAE, NAMES, TINY, VIEWS, batch, config

from shards.errors import UserError
from simfle.batch import Batch
from simfle.config.schema import ModelConfig
from simfle.models.base import ema_momentum
from simfle.models.layers.facemae import patchify, sincos_positions
from simfle.models.layers.masking import random_patches
from simfle.models.layers.stateless_random import stateless_uniform
from simfle.models.registry import METHODS, build_method

pytestmark = pytest.mark.slow


def made(method: str, **changes: object) -> torch.nn.Module:
    torch.manual_seed(0)
    return build_method(config(method, **changes), VIEWS).train()


@pytest.mark.parametrize("name", NAMES)
def test_every_trained_parameter_gets_a_gradient_and_no_other(name: str) -> None:
    model = made(name)
    losses = model(batch())
    losses["total"].backward()
    assert all(value.isfinite() for value in losses.values())
    for key, parameter in model.named_parameters():
        fixed = key.startswith("target.") or key == "online.backbone.pos_embed"
        assert (parameter.grad is None) == fixed, key


@pytest.mark.parametrize("name", NAMES)
def test_a_method_reads_only_the_images_that_it_names(name: str) -> None:
    images = batch()
    rest = {
        field: torch.zeros_like(getattr(images, field))
        for field in {"view1", "view2", "face"} - set(METHODS[name].images)
    }
    model = made(name)
    other = copy.deepcopy(model)
    assert model(images)["total"].item() == other(replace(images, **rest))["total"].item()
    for field in METHODS[name].images:
        changed = made(name)(replace(images, **{field: torch.zeros_like(getattr(images, field))}))
        assert changed["total"].item() != pytest.approx(made(name)(images)["total"].item(), rel=1e-6), field


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_drawn_during_a_step(name: str) -> None:
    first, second = made(name), made(name)
    torch.manual_seed(1)
    ours = first(batch())
    torch.manual_seed(2)
    state = torch.get_rng_state()
    theirs = second(batch())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize("name", EMA)
def test_the_target_network_is_a_moving_average(name: str) -> None:
    model = made(name, ema_momentum=0.9, ema_schedule="cosine")
    with torch.no_grad():
        for parameter in model.online.parameters():
            parameter.add_(torch.randn_like(parameter))
    before = {key: value.clone() for key, value in model.target.named_parameters()}
    model(batch())
    model.on_step_end(0.25)
    m = 1 - (1 - 0.9) * (math.cos(math.pi * 0.25) + 1) / 2  # BYOL, section 3.2
    online = dict(model.online.named_parameters())
    for key, value in model.target.named_parameters():
        assert torch.allclose(value, m * before[key] + (1 - m) * online[key], atol=1e-6), key


def test_momentum_goes_from_its_start_to_one() -> None:
    rising = replace(TINY, ema_momentum=0.99, ema_schedule="cosine")
    assert [ema_momentum(progress, rising) for progress in (0, 0.5, 1)] == pytest.approx([0.99, 0.995, 1])
    assert ema_momentum(0.7, replace(TINY, ema_momentum=0.99)) == 0.99


def test_byol_is_symmetric_in_its_views() -> None:
    images = batch()
    exchanged = replace(images, view1=images.view2, view2=images.view1)
    assert made("byol")(images)["total"].item() == pytest.approx(made("byol")(exchanged)["total"].item(), rel=1e-5)


def test_simfle_without_facemae_is_byol() -> None:
    alone = made("simfle", facemae=replace(FACEMAE, enabled=False))
    byol = made("byol")
    assert alone.state_dict().keys() == byol.state_dict().keys()
    assert not any(key.startswith(("facemae", "distil", "masking")) for key in alone.state_dict())
    assert torch.equal(alone(batch())["similarity"], byol(batch())["similarity"])
    assert torch.equal(alone(batch())["similarity"], made("simfle")(batch())["similarity"])


@pytest.mark.parametrize("name", ["byol", "simfle"])
def test_the_decorrelation_of_both_projections_is_added_to_the_total(name: str) -> None:
    plain, weighted = made(name)(batch()), made(name, decorrelation_weight=0.5)
    weighted.record_enabled = True
    found = weighted(batch())
    first, second = (view.double().numpy() for view in weighted.recorded_features["projection"][0])
    squares = [np.square(np.corrcoef(view.T)).sum() - view.shape[1] for view in (first, second)]
    assert found["decorrelation"].item() == pytest.approx(sum(squares) / 2 / first.shape[1], rel=1e-4)
    added = found["total"] - plain["total"]
    assert added.item() == pytest.approx(0.5 * found["decorrelation"].item(), rel=1e-4)
    assert "decorrelation" not in plain


def test_simsiam_stops_the_gradient_at_the_projection() -> None:
    """With the other view's projection as a constant the gradient is the same: so none flows through it."""
    model, images = made("simsiam").double(), batch()
    views = [model.normalize(image) for image in (images.view1, images.view2)]
    state = copy.deepcopy(model.state_dict())
    constants = [model.online(view)[1].detach() for view in views]
    model.load_state_dict(state)
    losses = [
        -F.cosine_similarity(model.predictor(model.online(view)[1]), constant).mean() / 2
        for view, constant in zip(views, reversed(constants), strict=True)
    ]
    sum(losses).backward()
    wanted = {key: parameter.grad.clone() for key, parameter in model.named_parameters()}
    model.load_state_dict(state)
    model.zero_grad()
    model(images)["total"].backward()
    for key, parameter in model.named_parameters():
        assert torch.allclose(parameter.grad, wanted[key], rtol=1e-6, atol=1e-9), key


def test_moco_queue_holds_the_newest_keys_oldest_first() -> None:
    model = made("moco")
    before, keys = model.queue.clone(), []
    for seed in range(4):
        images = batch(seed=seed)
        shadow = copy.deepcopy(model)  # BatchNorm in train mode: the keys depend on the batch alone
        keys.append(F.normalize(shadow.keys(shadow.normalize(images.view2), images.mask_uniform), dim=1).detach())
        model(images)
        assert torch.equal(model.queue, torch.cat([before, *keys[:-1]])[-24:])  # not before the step is done
        model.on_step_end()
        assert torch.allclose(model.queue, torch.cat([before, *keys])[-24:], atol=1e-6)
    assert torch.allclose(model.queue.norm(dim=1), torch.ones(24))


def test_moco_queue_does_not_depend_on_micro_batches() -> None:
    images = batch()
    model = made("moco").eval()  # BatchNorm apart
    model.training = True
    halves = copy.deepcopy(model)
    for rows in (slice(0, 4), slice(4, 8)):
        halves(Batch(*(getattr(images, field.name)[rows] for field in fields(Batch))))
    model(images)
    for each in (model, halves):
        each.on_step_end()
    assert torch.allclose(model.queue, halves.queue, atol=1e-5)


def test_moco_keys_are_normalised_in_shuffled_parts_and_put_back() -> None:
    model, images = made("moco"), batch()
    view = model.normalize(images.view2)
    order = images.mask_uniform.argsort()
    wanted = torch.empty(8, 16)
    for part in (order[:4], order[4:]):
        wanted[part] = copy.deepcopy(model).target(view[part])[1]
    assert torch.allclose(model.keys(view, images.mask_uniform), wanted, atol=1e-5)
    assert not torch.allclose(model.keys(view, images.mask_uniform), model.target(view)[1], atol=1e-2)


def test_mae_sees_a_quarter_of_the_patches() -> None:
    torch.manual_seed(0)
    views = replace(VIEWS, size=64)
    model = build_method(config("mae"), views).train()
    model.capture_reconstruction = True
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8, generator=generator)
    small = replace(batch(4), view1=images)
    seen: list[int] = []
    model.online.backbone.blocks[0].register_forward_hook(lambda *hook: seen.append(hook[1][0].shape[1]))
    loss = model(small)
    assert seen == [1 + 4]  # class token, and 4 of 16 patches of 16 px
    visible = model.reconstruction.visible
    assert visible.shape == (4, 4)
    assert torch.equal(visible, visible.unique(dim=1).sort(dim=1).values)
    hidden = torch.ones(4, 16, dtype=torch.bool).scatter(1, visible, False)
    masked = images.clone()
    for b, place in hidden.nonzero().tolist():
        row, column = 16 * (place // 4), 16 * (place % 4)
        masked[b, :, row : row + 16, column : column + 16] = 7
    tokens = [model.online(model.normalize(each), visible) for each in (images, masked)]
    assert torch.allclose(*tokens, atol=1e-6)
    patches = patchify(model.normalize(images), 16)
    wanted = (patches - patches.mean(2, keepdim=True)) / (patches.var(2, keepdim=True) + 1e-6).sqrt()
    error = (model.reconstruction.prediction - wanted).square().mean(dim=2)
    assert loss["total"].item() == pytest.approx(error[hidden].mean().item(), rel=1e-5)
    assert loss["total"].item() != pytest.approx(error.mean().item(), rel=1e-5)


def test_mae_encoder_is_timms_vit_with_sine_positions() -> None:
    model = made("mae", backbone="vit_tiny_patch16_224")
    vit = model.online.backbone
    assert torch.equal(vit.pos_embed[0], sincos_positions(2, 192))
    images = model.normalize(batch().view1)
    every = torch.arange(4).expand(8, -1)
    assert torch.allclose(vit(images), model.online(images, every), atol=1e-5)  # nothing masked: the ViT itself
    again = made("mae", backbone="vit_tiny_patch16_224").online.backbone
    again.load_state_dict(vit.state_dict())


def test_uniform_numbers_are_splitmix64_of_draw_and_place() -> None:
    draws = torch.tensor([0.0, 5 / 2**32, 1 - 1 / 2**32], dtype=torch.float64)
    got = stateless_uniform(draws, 49)
    whole = 2**64 - 1
    for row, word in enumerate((0, 5, 2**32 - 1)):
        for place in (0, 1, 48):
            bits = (((word << 16) | place) * 0x9E3779B97F4A7C15) & whole
            bits = ((bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9) & whole
            bits = ((bits ^ (bits >> 27)) * 0x94D049BB133111EB) & whole
            assert got[row, place].item() == ((bits ^ (bits >> 31)) >> 11) / 2**53


def test_random_patches_depend_on_the_draw_alone_and_are_uniform() -> None:
    draw = torch.from_numpy(np.random.default_rng(0).integers(0, 2**32, 4000) / 2**32)
    visible = random_patches(draw, 49, 12)
    assert torch.equal(random_patches(draw[7:9], 49, 12), visible[7:9])
    counts = torch.bincount(visible.flatten(), minlength=49)
    expected = 4000 * 12 / 49
    deviations = (counts - expected) / math.sqrt(expected * (1 - 12 / 49))
    assert deviations.abs().max() < 4.5
    pairs = F.one_hot(visible, 49).sum(dim=1).double()
    correlation = torch.corrcoef(pairs.T).fill_diagonal_(0)
    assert correlation.abs().max() < 0.1  # -1/48 in the mean: drawn without replacement


def test_random_masking_changes_the_masks_and_nothing_else() -> None:
    semantic = made("simfle")
    random = made("simfle", facemae=replace(FACEMAE, masking="random"))
    for each in (semantic, random):
        each.capture_reconstruction = True
    ours, theirs = semantic(batch()), random(batch())
    assert torch.equal(random.reconstruction.visible, random_patches(batch().mask_uniform, 16, 4))
    assert not torch.equal(random.reconstruction.visible, semantic.reconstruction.visible)
    for name in ("similarity", "grouping", "overlap"):
        assert torch.equal(ours[name], theirs[name])
    assert not torch.equal(ours["reconstruction"], theirs["reconstruction"])
    buffers = zip(semantic.named_buffers(), random.named_buffers(), strict=True)
    assert all(torch.equal(a, b) for (name, a), (_, b) in buffers if "backbone" in name)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (config("mae", backbone="resnet18"), "resnet18 is not a plain ViT"),
        (config("mae", backbone="vit_base_patch16_siglip_224"), "is not a plain ViT"),
        (config("mae", backbone="vit_tiny_patch16_225"), "timm has no 'vit_tiny_patch16_225'; did you mean"),
        (config("mae", facemae=replace(FACEMAE, mask_ratio=0.99)), "mask_ratio=0.99: leaves 0 of 4 patches visible"),
        (
            config("mae", facemae=replace(FACEMAE, decoder_num_heads=5)),
            "decoder_embed_dim=32: must be a multiple of its heads=5",
        ),
        (config("byol", ema_momentum=1.5), "model.ema_momentum=1.5: must be 0 to 1"),
        (
            config("moco", ema_schedule="linear"),
            "ema_schedule='linear': must be constant or cosine",
        ),
        (
            config("moco", contrastive=replace(CONTRAST, queue_size=0)),
            "model.contrastive.queue_size=0: must be at least 1",
        ),
        (config("simclr", contrastive=replace(CONTRAST, temperature=0.0)), "temperature=0.0: must be above 0"),
        (
            config("swav", contrastive=replace(CONTRAST, sinkhorn_epsilon=0.001)),
            "epsilon=0.001: must be at least 0.025",
        ),
        (
            config("simfle", facemae=replace(FACEMAE, masking="rand")),
            "masking='rand': must be semantic or random",
        ),
    ],
)
def test_impossible_methods_are_refused_by_name(model: ModelConfig, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_method(model, VIEWS)
