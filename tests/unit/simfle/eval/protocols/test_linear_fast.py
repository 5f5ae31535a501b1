"""The fast probe: each candidate equals separate training by torch's SGD, standardized, selected on validation."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from simfle.eval.config import LinearFastConfig
from simfle.eval.protocols.base import ModelSelection
from simfle.eval.protocols.linear import epoch_order
from simfle.eval.protocols.linear_fast import FeatureScaling, candidates, fit, predict

CONFIG = LinearFastConfig(epochs=4, batch=32, lrs=[0.1, 1.0], weight_decays=[0.0, 0.01])


def blobs(samples: int = 90, channels: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(samples) % 3
    return torch.randn(samples, channels, generator=generator) + 2 * F.one_hot(labels, channels), labels


def alone(features: torch.Tensor, targets: torch.Tensor, lr: float, decay: float) -> nn.Linear:
    """Train one candidate with autograd and torch's SGD."""
    layer = nn.Linear(features.shape[1], targets.shape[1]).double()
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    groups = [{"params": [layer.weight], "weight_decay": decay}, {"params": [layer.bias]}]
    optimizer = torch.optim.SGD(groups, lr=lr, momentum=CONFIG.momentum)
    total = CONFIG.epochs * math.ceil(len(features) / CONFIG.batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total)
    for epoch in range(CONFIG.epochs):
        for chosen in torch.from_numpy(epoch_order(len(features), 0, epoch)).split(CONFIG.batch):
            optimizer.zero_grad()
            F.cross_entropy(layer(features[chosen]), targets[chosen]).backward()
            optimizer.step()
            schedule.step()
    return layer


@pytest.mark.parametrize("soft", [False, True])
def test_each_candidate_is_as_if_alone(soft: bool) -> None:
    features, labels = (part.double() for part in blobs())
    targets = F.one_hot(labels.long(), 3).double()
    if soft:
        targets = (targets + torch.rand(90, 3, generator=torch.Generator().manual_seed(0)).double()).softmax(1)
    torch.set_default_dtype(torch.float64)
    try:
        weight, bias = fit(features, targets, CONFIG, 0)
    finally:
        torch.set_default_dtype(torch.float32)
    assert candidates(CONFIG) == [(0.1, 0.0), (0.1, 0.01), (1.0, 0.0), (1.0, 0.01)]
    for place, (lr, decay) in enumerate(candidates(CONFIG)):
        judge = alone(features, targets, lr, decay)
        torch.testing.assert_close(weight[:, place].T, judge.weight.detach(), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(bias[place], judge.bias.detach(), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(
            predict(features, weight, bias)[place], judge(features).softmax(1).detach(), rtol=1e-9, atol=1e-9
        )


def test_one_that_diverges_guesses_and_harms_no_other() -> None:
    features, labels = blobs()
    config = LinearFastConfig(epochs=5, batch=32, lrs=[0.1, 1e30], weight_decays=[1.0])
    weight, bias = fit(features, F.one_hot(labels, 3).float(), config, 0)
    found = predict(features, weight, bias)
    assert torch.isfinite(found).all()
    assert found[0].argmax(1).eq(labels).float().mean() > 0.8


def test_scaling() -> None:
    features = torch.tensor([[1.0, 5.0], [3.0, 5.0]])
    scale = FeatureScaling.of(features)
    torch.testing.assert_close(scale(features), torch.tensor([[-1.0, 0.0], [1.0, 0.0]]))
    torch.testing.assert_close(scale(torch.tensor([[2.0, 6.0]])), torch.tensor([[0.0, 1.0]]))


def test_the_choice_is_made_on_validation_and_the_best_on_test_is_only_told() -> None:
    choice = ModelSelection("accuracy")
    for name, on_val, on_test in (("a", 0.5, 0.9), ("b", 0.7, 0.6), ("c", 0.7, 0.8), ("d", 0.6, 0.7)):
        choice.update({"name": name}, on_val, on_test, torch.tensor([ord(name)]).numpy())
    found = choice.outcome(torch.zeros(1).numpy())
    assert found.chosen == {"name": "b", "accuracy": 0.7}
    assert found.predictions.tolist() == [ord("b")]
    assert found.best_on_test == {"name": "a", "accuracy": 0.9}
    errors = ModelSelection("nme", lower=True)
    for name, on_val, on_test in (("a", 0.3, 0.1), ("b", 0.2, 0.2)):
        errors.update({"name": name}, on_val, on_test, torch.zeros(1).numpy())
    assert errors.chosen["name"] == "b"
    assert errors.on_test["name"] == "a"


def test_a_candidate_that_diverged_is_never_chosen() -> None:
    choice = ModelSelection("nme", lower=True)
    for lr, error in ((10.0, math.nan), (1.0, 0.3), (0.1, 0.2), (100.0, math.nan)):
        choice.update({"lr": lr}, error, error, np.full(2, error))
    found = choice.outcome(np.zeros(2))
    assert (found.chosen["lr"], found.best_on_test) == (0.1, {"lr": 0.1, "nme": 0.2})
