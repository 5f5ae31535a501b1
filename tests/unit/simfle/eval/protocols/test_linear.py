"""The linear probe: first step by hand, order, reproducibility, and learning."""

from collections.abc import Iterator

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from simfle.eval.config import LinearConfig
from simfle.eval.protocols.linear import Batches, _rebatched, epoch_order, linear_probe


def blobs(samples: int = 90, channels: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(samples) % 3
    return torch.randn(samples, channels, generator=generator) * 0.3 + 2 * F.one_hot(labels, channels), labels


def cached(features: torch.Tensor, labels: torch.Tensor, batch: int, seed: int) -> Batches:
    def batches(epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for chosen in torch.from_numpy(epoch_order(len(labels), seed, epoch)).split(batch):
            yield features[chosen], labels[chosen]

    return batches


def fitted(features: torch.Tensor, labels: torch.Tensor, config: LinearConfig, seed: int) -> nn.Linear:
    """Return the classifier after the last epoch."""
    batches = cached(features, labels, config.batch, seed)
    for layer in linear_probe(batches, features.shape[1], 3, len(labels), config, seed):
        last = layer
    return last


def test_one_step_by_hand() -> None:
    """Weights N(0, 0.01), bias 0, one SGD step of 0.5 * batch / 256 without momentum's history or decay."""
    features, labels = blobs(64)
    config = LinearConfig(epochs=1, batch=1024)
    layer = fitted(features, labels, config, 5)
    start = torch.randn(3, 6, generator=torch.Generator().manual_seed(5)) * 0.01
    weight, bias = start.clone().requires_grad_(), torch.zeros(3, requires_grad=True)
    F.cross_entropy(features @ weight.T + bias, labels).backward()
    assert weight.grad is not None
    assert bias.grad is not None
    torch.testing.assert_close(layer.weight.detach(), start - 0.5 * 64 / 256 * weight.grad)
    torch.testing.assert_close(layer.bias.detach(), -0.5 * 64 / 256 * bias.grad)


def test_it_separates_what_can_be_separated() -> None:
    features, labels = blobs()
    config = LinearConfig(epochs=30, batch=32)
    layer = fitted(features, labels, config, 0)
    assert layer(features).argmax(1).eq(labels).all()


def test_same_seed_same_weights_another_seed_others() -> None:
    features, labels = blobs()
    config = LinearConfig(epochs=3, batch=32)
    made = [fitted(features, labels, config, seed).weight for seed in (0, 0, 1)]
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])


def test_each_epoch_takes_every_sample_once_in_its_own_order() -> None:
    orders = [epoch_order(50, 0, epoch) for epoch in range(3)]
    for order in orders:
        assert sorted(order.tolist()) == list(range(50))
    assert not np.array_equal(orders[0], orders[1])


def test_the_classifier_is_seen_after_every_epoch() -> None:
    features, labels = blobs(8)
    asked, seen = [], []

    def batches(epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        asked.append(epoch)
        yield features, labels

    for layer in linear_probe(batches, 6, 3, 8, LinearConfig(epochs=4), seed=0):
        seen.append((len(asked), layer.weight.detach().clone()))
    assert [many for many, _ in seen] == [1, 2, 3, 4]
    assert not torch.equal(seen[0][1], seen[1][1])


@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(1, 12))
def test_steps_do_not_depend_on_what_a_forward_pass_takes(sizes: list[int], batch: int) -> None:
    """Only the last batch of an epoch may be smaller."""
    rows = torch.arange(sum(sizes) * 2).view(-1, 2)
    found = list(_rebatched(rows.split(sizes), batch))
    assert [len(each) for each in found] == [len(each) for each in rows.split(batch)]
    assert torch.equal(torch.cat(found), rows)
