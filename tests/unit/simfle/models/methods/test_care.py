"""CARE against its losses in numpy, and what each loss trains."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.tiny_methods import TINY, VIEWS, batch, config

from shards.errors import UserError
from simfle.models.methods.care import attention_loss
from simfle.models.registry import build_method


def made(**changes: object) -> torch.nn.Module:
    torch.manual_seed(0)
    return build_method(config("care", care=replace(TINY.care, **changes)), VIEWS).train()


def distance(first: np.ndarray, second: np.ndarray) -> float:
    """Mean squared distance of unit vectors."""
    total = 0.0
    for a, b in zip(first, second, strict=True):
        total += ((a / np.sqrt((a * a).sum()) - b / np.sqrt((b * b).sum())) ** 2).sum()
    return total / len(first)


def test_the_losses_are_distances_of_both_streams_and_between_them() -> None:
    model, images = made(attention_weight=3.0), batch()
    with torch.no_grad():  # a target that differs from the online network
        for parameter in model.target.parameters():
            parameter.mul_(1.1)
    shadow = copy.deepcopy(model).double()  # BatchNorm in train mode: outputs depend on the batch alone
    views = [shadow.normalize(view) for view in (images.view1, images.view2)]
    online = [shadow.online(view) for view in views]
    target = [[each.numpy() for each in shadow.target(view)] for view in views]
    wanted = {"similarity": 0.0, "transformer": 0.0, "attention": 0.0}
    for view in (0, 1):
        _, c, t = online[view]
        _, c_target, t_target = target[1 - view]
        wanted["similarity"] += distance(shadow.predictor["cnn"](c).detach().numpy(), c_target)
        wanted["transformer"] += distance(shadow.predictor["transformer"](t).detach().numpy(), t_target)
        wanted["attention"] += distance(c.detach().numpy(), t.detach().numpy())
    found = model.double()(images)
    for name, value in wanted.items():
        assert found[name].item() == pytest.approx(value, rel=1e-6), name
    total = wanted["similarity"] + wanted["transformer"] + 3 * wanted["attention"]
    assert found["total"].item() == pytest.approx(total, rel=1e-6)


def test_the_attention_loss_moves_only_the_cnns_projection() -> None:
    c, t = torch.randn(4, 6).requires_grad_(), torch.randn(4, 6).requires_grad_()
    attention_loss(c, t).backward()
    assert c.grad.abs().max() > 0
    assert t.grad is None


def test_the_attention_loss_reaches_the_backbone_and_not_the_transformer() -> None:
    model = made()
    model(batch())["attention"].backward()
    moved = {key.split(".")[1] for key, each in model.online.named_parameters(prefix="online") if each.grad is not None}
    assert moved == {"backbone", "projector"}


def test_the_transformer_loss_reaches_the_backbone() -> None:
    model = made()
    model(batch())["transformer"].backward()
    moved = {key.split(".")[1] for key, each in model.online.named_parameters(prefix="online") if each.grad is not None}
    assert moved == {"backbone", "transformer"}


def test_the_transformer_attends_over_positions() -> None:
    """A change at one position changes what the blocks return at the others, and positions are told apart."""
    stream = made().online.transformer.eval()
    maps = torch.randn(2, 96, 4, 4)
    tokens: list[torch.Tensor] = []
    stream.norm.register_forward_hook(lambda *hook: tokens.append(hook[2].detach()))
    changed = maps.clone()
    changed[:, :, 0, 0] += 1
    for each in (maps, changed, maps.flip(3)):
        stream(each)
    assert tokens[0].shape == (2, 16, 32)
    assert (tokens[0] - tokens[1])[:, 1:].abs().max() > 1e-4
    unflipped = tokens[2].view(2, 4, 4, 32).flip(2).reshape(2, 16, 32)
    assert not torch.allclose(tokens[0], unflipped, atol=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth": 0}, "model.care.depth=0: must be at least 1"),
        ({"num_heads": 5}, "model.care.embed_dim=32: must be a multiple of its heads=5 and of 4"),
        ({"attention_weight": -1.0}, "model.care.attention_weight=-1.0: must be at least 0"),
    ],
)
def test_values_out_of_range_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        made(**changes)
