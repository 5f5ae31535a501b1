"""Fraction of a class activation map near facial landmarks, compared with the same fraction of the image area.

The map follows Zhou et al. (CVPR 2016): the weights of a linear classifier on pooled features are applied to the
feature map for the predicted class; negative values are clipped. "Near" is a disc around each landmark.
"""

# m test samples, C channels, h x w feature map, K classes, P points, S side of the grid
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from simfle.eval.data.targets import landmarks, sizes
from simfle.eval.features.extractor import Maps
from simfle.eval.protocols.base import ModelSelection, ProtocolInputs, ProtocolResult
from simfle.eval.protocols.linear_fast import FeatureScaling, candidates, fit, predict

Floats = NDArray[np.float64]
GRID = 56  # side of the grid for comparing maps and discs
CHUNK = 256


def run(job: ProtocolInputs) -> ProtocolResult:
    """Compute maps with the fast probe's classifier, which is selected by its metric, not by localization."""
    parts, config = job.splits, job.config.linear_fast
    train, val = (job.features(split) for split in (parts.train, parts.val))
    scale = FeatureScaling.of(train)
    targets = torch.eye(job.classes, device=train.device)[torch.from_numpy(parts.train.labels).to(train.device)]
    weight, bias = fit(scale(train), targets, config, job.seed)
    guesses = predict(scale(val), weight, bias).argmax(2).cpu().numpy()
    choice = ModelSelection(job.metric)
    for place, (lr, decay) in enumerate(candidates(config)):
        score = job.score(parts.val, guesses[place])
        choice.update({"lr": lr, "weight_decay": decay, "place": place}, score, score, guesses[place])
    chosen = choice.chosen.pop("place")

    rows, points = landmarks(parts.test, job.points)
    test = parts.test.only(rows)
    layer = weight[:, chosen] / scale.deviation[:, None]  # [C, K], for unnormalized features
    rest = bias[chosen] - scale.mean @ layer  # [K]
    energy = activation(job.extractor.maps(job.backbone, test, job.weights), layer, rest)
    mask = discs(points, sizes(test), job.config.cam.radius)
    area = mask.mean((1, 2))
    total = energy.sum((1, 2))
    # A map without positive evidence for the class has no location, so its share is the area's share.
    share = np.where(total > 0, (energy * mask).sum((1, 2)) / np.where(total > 0, total, 1), area)
    return ProtocolResult(area, share, choice.chosen, None, rows)


def activation(maps: Maps, layer: Tensor, rest: Tensor) -> Floats:
    """Return evidence [m, S, S] for the predicted class; layer [C, K] and rest [K] give logits of pooled features."""
    found = []
    for start in range(0, len(maps), CHUNK):
        part = maps[np.arange(start, min(start + CHUNK, len(maps)))]  # [b, C, h, w]
        predicted = (part.mean((2, 3)) @ layer + rest).argmax(1)  # [b]
        evidence = torch.einsum("bchw,cb->bhw", part, layer[:, predicted]).clamp_min(0)
        found.append(F.interpolate(evidence[:, None], (GRID, GRID), mode="bilinear", align_corners=False)[:, 0])
    return torch.cat(found).double().cpu().numpy()


def discs(points: Floats, size: Floats, radius: float) -> NDArray[np.bool_]:
    """Return masks [m, S, S] near the points [m, P, 2] in images of `size` [m, 2], both in pixels.

    radius: a fraction of the side of the box around the points, sqrt(width * height).
    """
    reach = radius * np.sqrt(np.ptp(points, axis=1).prod(1))  # [m] pixels
    steps = (np.arange(GRID) + 0.5) / GRID
    masks = np.zeros((len(points), GRID, GRID), bool)
    for place, (marks, (width, height)) in enumerate(zip(points, size, strict=True)):
        x = (steps * width - marks[:, :1]) ** 2  # [P, S]
        y = (steps * height - marks[:, 1:]) ** 2
        masks[place] = (y[:, :, None] + x[:, None] <= reach[place] ** 2).any(0)
    return masks
