"""Measures of collapse: effective dimension of features, their spread, and the distance of two views of an image.

No measure needs labels. All are pure functions of features. Small batches bias the ranks downwards (a batch of n
features has at most n - 1 dimensions): compare a value only with that of a random network on the same number of
features.
"""

# n samples, C dimensions
import torch
import torch.nn.functional as F
from torch import Tensor

TINY = 1e-7


def effective_rank(features: Tensor) -> Tensor:
    """Compute exp(entropy) of the covariance eigenvalues (Roy and Vetterli 2007): [n, C] -> scalar, 1 to min(n - 1, C).

    The smaller of the two Gram matrices is used, in float64.
    """
    return _exp_entropy(_eigenvalues(features - features.mean(dim=0)))


def rankme(features: Tensor) -> Tensor:
    """Compute exp(entropy) of the singular values, not centered (Garrido et al. 2023, arXiv 2210.02885, equation 1)."""
    return _exp_entropy(_eigenvalues(features).sqrt())


def spread(features: Tensor) -> Tensor:
    """Compute the mean over dimensions of the standard deviation of unit vectors, times sqrt(C).

    The value is 0 if all vectors are equal, near 1 if they are uniform. Source: Chen and He 2021, SimSiam (arXiv
    2011.10566), section 4.1.
    """
    return F.normalize(features, dim=1).std(dim=0, correction=0).mean() * features.shape[1] ** 0.5


def alignment(first: Tensor, second: Tensor) -> Tensor:
    """Compute the mean squared distance of the unit vectors of two views of an image, both [n, C]: 0 to 4.

    Source: Wang and Isola 2020, arXiv 2005.10242, equation 1, alpha 2.
    """
    return (F.normalize(first, dim=1) - F.normalize(second, dim=1)).square().sum(dim=1).mean()


def uniformity(features: Tensor) -> Tensor:
    """Compute log of the mean of exp(-2 |x - y|^2) over pairs of unit vectors (equation 2, t 2): 0 if all are equal."""
    unit = F.normalize(features, dim=1)
    squared = (2 - 2 * unit @ unit.T).clamp(min=0)  # [n, n]
    pairs = len(unit) * (len(unit) - 1)
    total = (-2 * squared).exp().sum() - len(unit)  # excludes the pairs of a vector with itself
    return (total / pairs).clamp(min=TINY).log()


def _eigenvalues(features: Tensor) -> Tensor:
    """Compute the squared singular values [min(n, C)], clamped to at least 0."""
    features = features.float()
    tall = features.shape[0] >= features.shape[1]
    gram = features.T @ features if tall else features @ features.T
    return torch.linalg.eigvalsh(gram).clamp(min=0)


def _exp_entropy(values: Tensor) -> Tensor:
    share = values / values.sum().clamp(min=torch.finfo(values.dtype).tiny)
    return torch.special.entr(share).sum().exp()
