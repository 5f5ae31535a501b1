"""The linear probe: one fully connected layer on frozen features, trained by SGD. Its recipe is the paper's."""

# n training samples, m test samples, b of a batch, C channels, K classes
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from numpy import int64
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from simfle.data.philox import key, permutation
from simfle.eval.config import EvalConfig

PROBE = 16  # purpose of its random words, see simfle.data.philox


@dataclass(frozen=True)
class Scaling:
    """Features [b, C] less their mean, by their deviation (both [C], or numbers for none at all)."""

    mean: Tensor | float = 0.0
    deviation: Tensor | float = 1.0

    @staticmethod
    def of(features: Tensor) -> "Scaling":
        """From training features [n, C]; one that never changes is left as it is."""
        deviation = features.std(0)
        return Scaling(features.mean(0), torch.where(deviation > 0, deviation, 1.0))

    def __call__(self, features: Tensor) -> Tensor:
        return (features - self.mean) / self.deviation


Batches = Callable[[int], Iterator[tuple[Tensor, Tensor]]]
"""epoch -> batches of features [b, C] and labels [b]."""


def linear_probe(
    batches: Batches, channels: int, classes: int, samples: int, config: EvalConfig, seed: int
) -> nn.Linear:
    """Fit the classifier; it is taken as it is after the last epoch, so nothing is chosen on a test split."""
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Linear(channels, classes)
    with torch.no_grad():
        layer.weight.normal_(0, 0.01, generator=generator)
        layer.bias.zero_()
    optimizer = None
    lr = config.lr * min(config.batch, samples) / 256
    for epoch in range(config.epochs):
        for features, labels in batches(epoch):
            if optimizer is None:
                layer.to(features.device)
                optimizer = torch.optim.SGD(layer.parameters(), lr=lr, momentum=config.momentum)
            optimizer.zero_grad()
            F.cross_entropy(layer(features), labels).backward()
            optimizer.step()
    return layer


def epoch_order(samples: int, seed: int, epoch: int) -> NDArray[int64]:
    """The order [n] of the training samples in an epoch, a pure function of (seed, epoch)."""
    return permutation(samples, key(seed, PROBE), (epoch, 0, 0))


def cached_batches(features: Tensor, labels: Tensor, batch: int, seed: int) -> Batches:
    """Batches of features [n, C] that were computed once, without augmentation."""

    def batches(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.from_numpy(epoch_order(len(labels), seed, epoch)).to(labels.device)
        for chosen in order.split(batch):
            yield features[chosen], labels[chosen]

    return batches
