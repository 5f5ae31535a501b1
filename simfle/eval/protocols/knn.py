"""Weighted k-nearest-neighbor classifier on frozen features. Source: Wu et al., InstDisc (CVPR 2018), section 3.4."""

# n training samples, m test samples, C channels, K classes
import torch
from torch import Tensor
from torch.nn import functional as F

from simfle.eval.protocols.base import ModelSelection, ProtocolInputs, ProtocolResult

CHUNK = 1024  # test samples per similarity matrix


def run(job: ProtocolInputs) -> ProtocolResult:
    """Select the number of neighbors on validation. No random numbers are used."""
    parts, config = job.splits, job.config.knn
    train, val, test = (job.features(split) for split in (parts.train, parts.val, parts.test))
    labels = torch.from_numpy(parts.train.labels).to(train.device)
    of_val, of_test = (neighbors(train, features, max(config.ks)) for features in (val, test))
    choice = ModelSelection(job.metric)
    for k in config.ks:
        on_val, on_test = (
            vote(*found, labels, job.classes, k, config.temperature).cpu().numpy() for found in (of_val, of_test)
        )
        choice.update({"k": k}, job.score(parts.val, on_val), job.score(parts.test, on_test), on_test)
    return choice.outcome(parts.test.labels)


def neighbors(train: Tensor, test: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return cosines and positions [m, k] of the k training samples [n, C] nearest to each test sample [m, C], sorted.

    Returns all training samples if there are fewer than k.
    """
    bank = F.normalize(train, dim=1)
    found = [(chunk @ bank.T).topk(min(k, len(train)), dim=1) for chunk in F.normalize(test, dim=1).split(CHUNK)]
    return torch.cat([part.values for part in found]), torch.cat([part.indices for part in found])


def vote(near: Tensor, which: Tensor, labels: Tensor, classes: int, k: int, temperature: float) -> Tensor:
    """Return classes [m] int64: each of the k nearest neighbors votes for its class with exp(cosine / temperature).

    The first class wins a tie.
    """
    # The common factor exp(-1 / temperature) keeps the weights at most 1 and does not change the order.
    weights = ((near[:, :k] - 1) / temperature).exp()
    ballots = F.one_hot(labels[which[:, :k]], classes).to(weights.dtype)  # [m, k, K]
    return (weights[:, None] @ ballots)[:, 0].argmax(1)
