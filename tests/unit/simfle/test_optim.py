"""Groups of parameters, and LARS against its paper's algorithm."""

from dataclasses import replace

import pytest
import torch
from helpers.tiny_methods import VIEWS, config

from simfle.config.schema import OptimConfig, PretrainConfig, TrainConfig
from simfle.errors import UserError
from simfle.models.registry import build_method
from simfle.optim import build_optimizer, parameter_groups, set_lr
from simfle.train.checkpointing.state_dict import trainable_parameters
from simfle.train.preflight import check

PARTS = OptimConfig(name="sgd", weight_decay=0.1, decay_norms=False, predictor_lr_scale=10.0)


def test_by_default_all_parameters_are_one_group_in_their_order() -> None:
    named = trainable_parameters(build_method(config("simfle"), VIEWS))
    assert parameter_groups(named, OptimConfig()) == [parameter for _, parameter in named]
    assert len(build_optimizer(parameter_groups(named, OptimConfig()), OptimConfig()).param_groups) == 1


@pytest.mark.parametrize("name", ["sgd", "adamw", "lars"])
def test_norms_biases_and_tokens_do_not_decay_and_the_predictor_has_a_rate_of_its_own(name: str) -> None:
    named = trainable_parameters(build_method(config("simfle"), VIEWS))
    settings = replace(PARTS, name=name)
    optimizer = build_optimizer(parameter_groups(named, settings), settings)
    set_lr(optimizer, 0.5)
    found = {id(each): group for group in optimizer.param_groups for each in group["params"]}
    assert len(found) == len(named)
    for key, parameter in named:
        decays = key.endswith(".weight") and parameter.ndim > 1
        assert found[id(parameter)]["weight_decay"] == (0.1 if decays else 0.0), key
        assert found[id(parameter)]["lr"] == (5.0 if key.startswith("predictor.") else 0.5), key
    assert {key for key, _ in named if key.endswith("token")} == {"facemae.cls_token", "facemae.mask_token"}


def test_lars_is_its_papers_algorithm() -> None:
    """You et al. 2017, algorithm 1: local rate trust |w| / (|g| + b |w|), momentum of g + b w times all rates."""
    generator = torch.Generator().manual_seed(0)
    weight, bias = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((3, 4), (3,)))
    parameters = [torch.nn.Parameter(weight.clone()), torch.nn.Parameter(bias.clone())]
    settings = OptimConfig(name="lars", momentum=0.9, weight_decay=0.01, trust_coefficient=0.02)
    optimizer = build_optimizer(parameters, settings)
    moved, moved_bias = torch.zeros_like(weight), torch.zeros_like(bias)
    for rate in (0.3, 0.2, 0.1):
        set_lr(optimizer, rate)
        slopes = [torch.randn(each.shape, generator=generator, dtype=torch.float64) for each in parameters]
        for parameter, slope in zip(parameters, slopes, strict=True):
            parameter.grad = slope.clone()
        optimizer.step()
        local = 0.02 * weight.norm() / (slopes[0].norm() + 0.01 * weight.norm())
        moved = 0.9 * moved + rate * local * (slopes[0] + 0.01 * weight)
        moved_bias = 0.9 * moved_bias + rate * (slopes[1] + 0.01 * bias)
        weight, bias = weight - moved, bias - moved_bias
    assert torch.allclose(parameters[0], weight, rtol=1e-12)
    assert torch.allclose(parameters[1], bias, rtol=1e-12)


def test_lars_moves_a_layer_of_zeros() -> None:
    parameter = torch.nn.Parameter(torch.zeros(2, 2))
    optimizer = build_optimizer([parameter], OptimConfig(name="lars"))
    set_lr(optimizer, 1.0)
    parameter.grad = torch.ones(2, 2)
    optimizer.step()
    assert torch.equal(parameter, -torch.ones(2, 2))


def test_lars_is_refused_where_zero_flattens_layers() -> None:
    settings = PretrainConfig(optim=OptimConfig(name="lars"), train=TrainConfig(zero_stage=2))
    settings = replace(settings, data=replace(settings.data, shards=["shards"]))
    with pytest.raises(UserError, match=r"train.zero_stage=2: .* Fix: set train.zero_stage=0"):
        check(settings)
    check(replace(settings, train=TrainConfig(zero_stage=0)))
