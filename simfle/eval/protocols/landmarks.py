"""Landmarks from frozen feature maps: a 1 x 1 convolution to a heat map and an offset per point.

        point = mean shape + sum over cells of softmax(heat) * (cell center - middle + offset)

(soft-argmax as in Nibali et al., 2018, with offsets for positions between the cells of the coarse grid). All learning
rates are trained in parallel; the one with the lowest normalized mean error (NME) on validation is selected.
"""

# n samples, b of a batch, C channels, h x w feature map, P points, R candidates
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from simfle.errors import UserError
from simfle.eval.analysis import metrics
from simfle.eval.analysis.results import LANDMARKS
from simfle.eval.data.splits import Split
from simfle.eval.data.targets import boxes, landmarks, sizes
from simfle.eval.features.extractor import Maps
from simfle.eval.protocols.base import ModelSelection, ProtocolInputs, ProtocolResult
from simfle.eval.protocols.linear import epoch_order

log = logging.getLogger(__name__)

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
CHUNK = 256  # maps in memory at once
SMALL = 0.25  # if landmarks fill less than this fraction of the sides, the shards contain whole photos


@dataclass(frozen=True)
class Points:
    """Landmarks of one split: rows [n] with landmarks; points [n, P, 2] and size [n, 1, 2] in pixels.

    unit [n]: normalizer in pixels; maps: feature maps of the same n samples.
    """

    rows: Ints
    points: Floats
    size: Floats
    unit: Floats
    maps: Maps

    def error(self, found: Floats) -> Floats:
        """Return the normalized mean error [n] of points [n, P, 2], given as fractions of the image."""
        return np.linalg.norm(found * self.size - self.points, axis=2).mean(1) / self.unit


def run(job: ProtocolInputs) -> ProtocolResult:
    """Fit all learning rates and select the best on validation. `mean_shape`: error of predicting the mean shape."""
    train, val, test = (_read(job, split) for split in (job.splits.train, job.splits.val, job.splits.test))
    extent = np.ptp(train.points / train.size, axis=1).mean()
    if extent < SMALL:
        log.warning("landmarks fill only %.0f %% of the images' sides; build the shards with --crop", 100 * extent)
    config = job.config.landmarks
    head = Head(train, config.lrs)
    head.fit(train, job)
    shape = head.shape.double().cpu().numpy()
    on_val, on_test = head.predict(val.maps), head.predict(test.maps)  # [R, n, P, 2]
    metric = metrics.MAIN[LANDMARKS]
    choice = ModelSelection(metric, lower=True)
    for lr, guess_val, guess_test in zip(config.lrs, on_val, on_test, strict=True):
        error = test.error(guess_test)
        choice.update({"lr": lr}, float(val.error(guess_val).mean()), float(error.mean()), error)
    choice.chosen["mean_shape"] = float(test.error(shape[None]).mean())
    return choice.outcome(test.unit, test.rows)


def _read(job: ProtocolInputs, split: Split) -> Points:
    rows, points = landmarks(split, job.points)
    chosen = split.only(rows)
    size = sizes(chosen)
    unit = nme_normalizer(landmarks(split, [])[1], *job.normalizer, chosen)
    maps = job.extractor.maps(job.backbone, chosen, job.weights)
    return Points(rows, points, size[:, None], unit, maps)


def nme_normalizer(points: Floats, left: Sequence[int], right: Sequence[int], split: Split) -> Floats:
    """Return the normalizer [n] in pixels from all points [n, P, 2].

    The normalizer is the distance between two ends (each the mean of some points), or without ends sqrt(width * height)
    of the face's box (of the points' box if the shards have no boxes).

    Raises:
        UserError: If a point number is out of range, or a face has no extent.
    """
    if left:
        if max(*left, *right) >= points.shape[1]:
            raise UserError(
                f"nme_points: point {max(*left, *right)} does not exist. Fix: choose from 0 to {points.shape[1] - 1}."
            )
        unit = np.linalg.norm(points[:, list(left)].mean(1) - points[:, list(right)].mean(1), axis=1)
    else:
        found = boxes(split)
        unit = np.sqrt((np.ptp(points, axis=1) if found is None else found).prod(1))
    if (unit <= 0).any():
        raise UserError(f"nme_points: {split.keys[int(unit.argmin())]} has no extent. Fix: choose other points.")
    return unit


class Head:
    """Layers of all R candidates, initialized with zeros, so that they first predict the mean shape."""

    def __init__(self, train: Points, lrs: Sequence[float]) -> None:
        first = train.maps[np.arange(1)]
        device, (_, channels, rows, columns) = first.device, first.shape
        self.lrs = list(lrs)
        self.shape = torch.from_numpy((train.points / train.size).mean(0)).float().to(device)  # [P, 2]
        self.mean, self.deviation = _statistics(train.maps)  # [C, 1]
        many = len(self.shape)
        self.weights = [nn.Parameter(torch.zeros(3 * many, channels, device=device)) for _ in lrs]
        self.biases = [nn.Parameter(torch.zeros(3 * many, 1, device=device)) for _ in lrs]
        y, x = torch.meshgrid(
            (torch.arange(rows, device=device) + 0.5) / rows,
            (torch.arange(columns, device=device) + 0.5) / columns,
            indexing="ij",
        )
        self.centers = torch.stack([x.flatten(), y.flatten()]) - 0.5  # [2, h w]

    def __call__(self, maps: Tensor) -> Tensor:
        """Map feature maps [b, C, h, w] -> points [R, b, P, 2] as fractions of the image."""
        cells = (maps.flatten(2) - self.mean) / self.deviation  # [b, C, h w]
        found = torch.stack(list(self.weights))[:, None] @ cells + torch.stack(list(self.biases))[:, None]
        heat, offset = found.unflatten(2, (3, -1)).split([1, 2], dim=2)  # [R, b, 1, P, h w], [R, b, 2, P, h w]
        places = self.centers[:, None] + offset
        return self.shape + (heat.softmax(-1) * places).sum(-1).transpose(2, 3)  # [R, b, P, 2]

    def fit(self, train: Points, job: ProtocolInputs) -> None:
        """Train with AdamW on the mean absolute difference, one learning rate per candidate."""
        config = job.config.landmarks
        pairs = zip(self.weights, self.biases, self.lrs, strict=True)
        optimizer = torch.optim.AdamW(
            [{"params": [weight, bias], "lr": lr} for weight, bias, lr in pairs], weight_decay=config.weight_decay
        )
        targets = torch.from_numpy(train.points / train.size).float().to(self.shape.device)  # [n, P, 2]
        total = config.epochs * math.ceil(len(targets) / config.batch)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total)
        for epoch in range(config.epochs):
            order = epoch_order(len(targets), job.seed, epoch)
            for start in range(0, len(order), config.batch):
                chosen = order[start : start + config.batch]
                # Candidates are independent: the sum of their losses gives each its own gradient.
                loss = (self(train.maps[chosen]) - targets[chosen]).abs().mean((1, 2, 3)).sum()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()

    def predict(self, maps: Maps) -> Floats:
        """Return points [R, n, P, 2] as fractions of the image."""
        with torch.no_grad():
            found = [self(maps[chosen]) for chosen in _chunks(len(maps))]
        return torch.cat(found, dim=1).double().cpu().numpy()


def _chunks(many: int) -> list[Ints]:
    return [np.arange(start, min(start + CHUNK, many)) for start in range(0, many, CHUNK)]


def _statistics(maps: Maps) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation [C, 1] of each channel over samples and cells; a deviation of 0 becomes 1."""
    sums, cells = [], 0
    for chosen in _chunks(len(maps)):
        part = maps[chosen].double().flatten(2)  # [b, C, h w]
        sums.append(torch.stack([part.sum((0, 2)), (part**2).sum((0, 2))]))
        cells += part.shape[0] * part.shape[2]
    mean, square = torch.stack(sums).sum(0) / cells  # [C]
    deviation = (square - mean**2).clamp_min(0).sqrt()
    return mean.float()[:, None], torch.where(deviation > 0, deviation, 1.0).float()[:, None]
