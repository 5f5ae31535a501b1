"""Linear probe: one fully connected layer on frozen features, trained by SGD with the paper's settings.

Random crops and flips in each epoch need a forward pass over the training images per epoch; `linear_fast` needs only
one. The epoch is selected on validation.
"""

# n training samples, b of a batch, C channels, K classes
from collections.abc import Callable, Iterable, Iterator

import torch
from numpy import int64
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from simfle.data.philox import key, permutation
from simfle.eval.config import LinearConfig
from simfle.eval.features.extractor import Augment
from simfle.eval.protocols.base import ModelSelection, ProtocolInputs, ProtocolResult

PROBE = 16  # stream of the random numbers, see simfle.data.philox

Batches = Callable[[int], Iterator[tuple[Tensor, Tensor]]]
"""epoch -> batches of features [b, C] and labels [b]."""


def run(job: ProtocolInputs) -> ProtocolResult:
    """Fit on crops, and evaluate complete images after every epoch."""
    parts, config = job.splits, job.config.linear
    val, test = job.features(parts.val), job.features(parts.test)
    layers = linear_probe(_crops(job), job.backbone.card.features, job.classes, len(parts.train), config, job.seed)
    choice = ModelSelection(job.metric)
    for epoch, layer in enumerate(layers, 1):
        with torch.no_grad():
            on_val, on_test = (layer(features).argmax(1).cpu().numpy() for features in (val, test))
        scores = job.score(parts.val, on_val), job.score(parts.test, on_test)
        choice.update({"epoch": epoch}, *scores, on_test)
    return choice.outcome(parts.test.labels)


def linear_probe(
    batches: Batches, channels: int, classes: int, samples: int, config: LinearConfig, seed: int
) -> Iterator[nn.Linear]:
    """Yield the classifier after each epoch (always the same object, whose training continues)."""
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
        yield layer


def epoch_order(samples: int, seed: int, epoch: int) -> NDArray[int64]:
    """Return the order [n] of the training samples in an epoch, a pure function of (seed, epoch)."""
    return permutation(samples, key(seed, PROBE), (epoch, 0, 0))


def _crops(job: ProtocolInputs) -> Batches:
    """Yield batches of features of randomly cropped and flipped images, with new crops in every epoch."""
    train, config = job.splits.train, job.config.linear

    def batches(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        ordered = train.only(epoch_order(len(train), job.seed, epoch))
        crop = Augment(job.seed, epoch, (config.scale[0], config.scale[1]))
        labels = torch.from_numpy(ordered.labels).to(job.extractor.device)
        parts = job.extractor.features(job.backbone, ordered, crop)
        yield from zip(_rebatched(parts, config.batch), labels.split(config.batch), strict=True)

    return batches


def _rebatched(parts: Iterable[Tensor], size: int) -> Iterator[Tensor]:
    """Regroup rows from parts of any size into batches of `size`; the last batch may be smaller."""
    waiting: list[Tensor] = []
    for part in parts:
        waiting.append(part)
        if sum(map(len, waiting)) >= size:
            *whole, rest = torch.cat(waiting).split(size)
            yield from whole
            waiting = [rest]
    if waiting:
        yield torch.cat(waiting)
