"""How FaceMAE moves the backbone: the published distillation, and ours without its trivial minimum."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from helpers.tiny_methods import FACEMAE, VIEWS, batch, config

from shards.errors import UserError
from simfle.models.layers.facemae import CrossAttention
from simfle.models.methods.simfle import SimFLE
from simfle.models.registry import build_method


def made(*, attend: bool = False, **changes: object) -> SimFLE:
    torch.manual_seed(0)
    settings = config("simfle", facemae=replace(FACEMAE, cross_attention=attend), **changes)
    model = build_method(settings, VIEWS).double().train()
    assert isinstance(model, SimFLE)
    return model


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def constant(model: SimFLE) -> SimFLE:
    """Heads that give the same answer whatever they see."""
    heads = [head for name, head in model.named_children() if name in ("distil_global", "distil_face")]
    for head in heads:
        torch.nn.init.zeros_(head.net[3].weight)  # type: ignore[index, union-attr, arg-type]
        torch.nn.init.ones_(head.net[3].bias)  # type: ignore[index, union-attr, arg-type]
    return model


def test_constant_heads_minimise_the_published_loss_and_not_ours() -> None:
    pooled, summary = (random(16, 96), random(16, 96, seed=1)), random(16, 48, seed=2)
    reference = constant(made()).distillation(pooled, summary)
    assert reference.item() == pytest.approx(0, abs=1e-12)
    ours = constant(made(distillation="predict")).distillation(pooled, summary)
    assert ours.item() > 1.5  # 2 is a right angle: nothing is predicted


def test_each_view_predicts_the_standardised_token() -> None:
    model = made(distillation="predict")
    pooled = (random(6, 96).requires_grad_(), random(6, 96, seed=1).requires_grad_())
    summary = (5 + 3 * random(6, 48, seed=2)).requires_grad_()
    loss = model.distillation(pooled, summary)
    wanted = torch.zeros((), dtype=torch.float64)
    target = (summary - summary.mean(0)) / (summary.var(0, correction=0) + 1e-5).sqrt()
    for each in pooled:
        prediction = model.distil_global(each)
        for n in range(6):
            cosine = prediction[n] @ target[n] / prediction[n].norm() / target[n].norm()
            wanted = wanted + (2 - 2 * cosine) / 12
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-10)
    first, second, token = torch.autograd.grad(loss, (*pooled, summary), allow_unused=True)
    assert first.abs().max() > 0
    assert second.abs().max() > 0
    assert token is None  # FaceMAE learns from its reconstruction alone


@pytest.mark.parametrize("attend", [False, True])
def test_the_reconstruction_moves_the_backbone_where_the_decoder_attends_to_it(attend: bool) -> None:
    model = made(attend=attend)
    loss = model(batch())["reconstruction"]
    (gradient,) = torch.autograd.grad(loss, [next(model.online.backbone.parameters())], allow_unused=True)
    assert (gradient is not None and bool(gradient.abs().max() > 0)) == attend
    assert all(parameter.grad is None for parameter in model.target.parameters())


def test_cross_attention_is_torchs_own() -> None:
    torch.manual_seed(0)
    ours = CrossAttention(32, 2, 12, 3).double()
    theirs = torch.nn.MultiheadAttention(32, 2, batch_first=True).double()
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([ours.query.weight, ours.key_value.weight]))
        theirs.in_proj_bias.copy_(torch.cat([ours.query.bias, ours.key_value.bias]))
        theirs.out_proj.load_state_dict(ours.out.state_dict())
    queries, maps = random(2, 5, 32), random(2, 2, 12, 3, 3, seed=1)
    places = []
    for view in range(2):
        for row in range(3):
            for column in range(3):
                token = F.layer_norm(maps[:, view, :, row, column], (12,), eps=1e-6)
                places.append(ours.embed(token) + ours.places[3 * row + column])
    context = torch.stack(places, dim=1)
    wanted, _ = theirs(F.layer_norm(queries, (32,), eps=1e-6), context, context)
    assert torch.allclose(ours(queries, maps), wanted, rtol=1e-9)


def test_an_unknown_distillation_is_refused() -> None:
    with pytest.raises(UserError, match=r"model.distillation='dense': must be reference or predict"):
        made(distillation="dense")
