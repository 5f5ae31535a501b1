"""The linear probe's recipe: first step by hand, order, reproducibility, and that it learns."""

from collections.abc import Iterator

import numpy as np
import torch
from torch.nn import functional as F

from simfle.eval.config import EvalConfig
from simfle.eval.linear import Scaling, cached_batches, epoch_order, linear_probe


def blobs(samples: int = 90, channels: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(samples) % 3
    return torch.randn(samples, channels, generator=generator) * 0.3 + 2 * F.one_hot(labels, channels), labels


def test_one_step_by_hand() -> None:
    """Weights N(0, 0.01), bias 0, one SGD step of 0.5 * batch / 256 without momentum's history or decay."""
    features, labels = blobs(64)
    config = EvalConfig(epochs=1, batch=1024)
    layer = linear_probe(cached_batches(features, labels, 1024, 0), 6, 3, 64, config, seed=5)
    start = torch.randn(3, 6, generator=torch.Generator().manual_seed(5)) * 0.01
    weight, bias = start.clone().requires_grad_(), torch.zeros(3, requires_grad=True)
    F.cross_entropy(features @ weight.T + bias, labels).backward()
    assert weight.grad is not None
    assert bias.grad is not None
    torch.testing.assert_close(layer.weight.detach(), start - 0.5 * 64 / 256 * weight.grad)
    torch.testing.assert_close(layer.bias.detach(), -0.5 * 64 / 256 * bias.grad)


def test_it_separates_what_can_be_separated() -> None:
    features, labels = blobs()
    config = EvalConfig(epochs=30, batch=32)
    layer = linear_probe(cached_batches(features, labels, 32, 0), 6, 3, 90, config, seed=0)
    assert layer(features).argmax(1).eq(labels).all()


def test_same_seed_same_weights_another_seed_others() -> None:
    features, labels = blobs()
    config = EvalConfig(epochs=3, batch=32)
    made = [linear_probe(cached_batches(features, labels, 32, s), 6, 3, 90, config, s).weight for s in (0, 0, 1)]
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])


def test_scaling() -> None:
    features = torch.tensor([[1.0, 5.0], [3.0, 5.0]])
    scale = Scaling.of(features)
    half = 0.5**0.5
    torch.testing.assert_close(scale(features), torch.tensor([[-half, 0.0], [half, 0.0]]))
    torch.testing.assert_close(scale(torch.tensor([[2.0, 6.0]])), torch.tensor([[0.0, 1.0]]))
    assert torch.equal(Scaling()(features), features)


def test_each_epoch_takes_every_sample_once_in_its_own_order() -> None:
    orders = [epoch_order(50, 0, epoch) for epoch in range(3)]
    for order in orders:
        assert sorted(order.tolist()) == list(range(50))
    assert not np.array_equal(orders[0], orders[1])
    features, labels = blobs(50)
    seen = list(cached_batches(features, labels, 20, 0)(1))
    assert [len(found) for _, found in seen] == [20, 20, 10]
    assert torch.equal(torch.cat([part for part, _ in seen]), features[torch.from_numpy(orders[1])])


def test_epochs_are_asked_for_one_after_another() -> None:
    features, labels = blobs(8)
    asked = []

    def batches(epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        asked.append(epoch)
        yield features, labels

    linear_probe(batches, 6, 3, 8, EvalConfig(epochs=4), seed=0)
    assert asked == [0, 1, 2, 3]
