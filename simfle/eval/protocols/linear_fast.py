"""Fast linear probe: features are computed once; all learning rates and weight decays are trained in parallel.

A candidate is a pair (learning rate, weight decay). All R candidates see the same batches, so their layers form one
matrix and a step is one matrix product. Features are standardized with the training samples. The candidate is
selected on validation, after the last epoch.
"""

# n training samples, m test samples, b of a batch, C channels, K classes, R candidates
import itertools
import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from simfle.eval.config import LinearFastConfig
from simfle.eval.probe import LinearProbe, calibration_error, fit_temperature
from simfle.eval.protocols.base import ModelSelection, ProtocolInputs, ProtocolResult
from simfle.eval.protocols.linear import epoch_order


@dataclass(frozen=True)
class FeatureScaling:
    """Subtract the mean [C] from features [b, C] and divide by their standard deviation [C]."""

    mean: Tensor
    deviation: Tensor

    @staticmethod
    def of(features: Tensor) -> "FeatureScaling":
        """Compute mean and standard deviation from training features [n, C]; a constant feature is not scaled."""
        deviation = features.std(0, correction=0)
        return FeatureScaling(features.mean(0), torch.where(deviation > 0, deviation, 1.0))

    def __call__(self, features: Tensor) -> Tensor:
        return (features - self.mean) / self.deviation


def candidates(config: LinearFastConfig) -> list[tuple[float, float]]:
    """Return (learning rate, weight decay) of the R candidates."""
    return list(itertools.product(config.lrs, config.weight_decays))


def run(job: ProtocolInputs) -> ProtocolResult:
    """Fit all candidates and select the best on validation."""
    parts, config = job.splits, job.config.linear_fast
    train, val, test = (job.features(split) for split in (parts.train, parts.val, parts.test))
    scale = FeatureScaling.of(train)
    targets = torch.eye(job.classes, device=train.device)[torch.from_numpy(parts.train.labels).to(train.device)]
    weight, bias = fit(scale(train), targets, config, job.seed)  # [C, R, K], [R, K]
    on_val, on_test = (predict(scale(features), weight, bias).argmax(2).cpu().numpy() for features in (val, test))
    choice = ModelSelection(job.metric)
    for place, (lr, decay) in enumerate(candidates(config)):
        what = {"lr": lr, "weight_decay": decay}
        scores = job.score(parts.val, on_val[place]), job.score(parts.test, on_test[place])
        choice.update(what, *scores, on_test[place])
    chosen = candidates(config).index((choice.chosen["lr"], choice.chosen["weight_decay"]))
    probe = _calibrated(weight[:, chosen], bias[chosen], scale, val, parts.val.labels)
    result = replace(choice.outcome(parts.test.labels), probe=probe)
    if probe is None:
        return result
    chances = probe.probabilities(test).cpu().numpy()
    return replace(result, calibration_error=calibration_error(chances, parts.test.labels))


def _calibrated(
    weight: Tensor, bias: Tensor, scale: FeatureScaling, features: Tensor, labels: NDArray[np.int64]
) -> LinearProbe | None:
    """Return the probe with a temperature fitted on validation features [n, C]; None for one that diverged."""
    if not (torch.isfinite(weight).all() and torch.isfinite(bias).all()):
        return None
    probe = LinearProbe(weight, bias, scale.mean, scale.deviation, torch.ones((), device=bias.device))
    temperature = fit_temperature(probe.logits(features), labels)
    return replace(probe, temperature=torch.tensor(temperature, device=bias.device))


def fit(features: Tensor, targets: Tensor, config: LinearFastConfig, seed: int) -> tuple[Tensor, Tensor]:
    """Fit a softmax regression of targets [n, K] (each row sums to 1) on features [n, C] for all candidates.

    SGD with momentum on the mean cross-entropy, cosine schedule to 0, zero initialization; no weight decay on biases.
    Returns weights [C, R, K] and biases [R, K].
    """
    grid = torch.tensor(candidates(config), device=features.device)  # [R, 2]
    rates, decays = grid[:, :1], grid[:, 1:]  # [R, 1]
    (samples, channels), classes, many = features.shape, targets.shape[1], len(grid)
    weight = torch.zeros(channels, many, classes, device=features.device)
    bias = torch.zeros(many, classes, device=features.device)
    moved, moved_bias = torch.zeros_like(weight), torch.zeros_like(bias)
    total = config.epochs * math.ceil(samples / config.batch)
    step = 0
    for epoch in range(config.epochs):
        order = torch.from_numpy(epoch_order(samples, seed, epoch)).to(features.device)
        for chosen in order.split(config.batch):
            x, y = features[chosen], targets[chosen]  # [b, C], [b, K]
            wrong = _forward(x, weight, bias).softmax(2) - y[:, None]  # [b, R, K], the gradient of the cross-entropy
            gradient = (x.T @ wrong.flatten(1)).view_as(weight) / len(chosen)
            moved.mul_(config.momentum).add_(gradient + decays * weight)
            moved_bias.mul_(config.momentum).add_(wrong.mean(0))
            pace = rates * (0.5 + 0.5 * math.cos(math.pi * step / total))
            weight -= pace * moved
            bias -= pace * moved_bias
            step += 1
    return weight, bias


def predict(features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return class probabilities [R, m, K] of features [m, C]; uniform for a diverged candidate."""
    found = _forward(features, weight, bias).softmax(2).transpose(0, 1)
    return torch.nan_to_num(found, nan=1 / found.shape[2])


def _forward(features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return logits [b, R, K]."""
    return (features @ weight.flatten(1)).view(-1, *bias.shape) + bias
