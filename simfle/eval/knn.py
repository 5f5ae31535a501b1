"""Weighted k-nearest-neighbour classifier on frozen features. Source: Wu et al., InstDisc (CVPR 2018), section 3.4."""

# n training samples, m test samples, C channels, K classes
import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK = 1024  # test samples whose similarities are held at once


def knn(train: Tensor, labels: Tensor, test: Tensor, classes: int, k: int = 20, temperature: float = 0.07) -> Tensor:
    """Predict [m] int64 from train [n, C], labels [n] int64 and test [m, C].

    Each of the k training samples of highest cosine similarity votes for its class with exp(cosine / temperature); all
    vote where there are fewer than k. The first class wins a tie.
    """
    bank = F.normalize(train, dim=1)
    k = min(k, len(train))
    predictions = []
    for chunk in F.normalize(test, dim=1).split(CHUNK):
        near, which = (chunk @ bank.T).topk(k, dim=1)  # [b, k]
        # The common factor exp(-1 / temperature) keeps the weights at most 1 and changes no order.
        weights = ((near - 1) / temperature).exp()
        votes = torch.zeros(len(chunk), classes, device=test.device, dtype=weights.dtype)  # [b, K]
        votes.scatter_add_(1, labels[which], weights)
        predictions.append(votes.argmax(1))
    return torch.cat(predictions)
