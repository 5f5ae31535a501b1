"""SimFLE's losses as pure functions (Moon, Jang, Park, arXiv 2303.07648). All inputs are fp32 or fp64."""

# B batch, D embedding width, L patches, P values of a patch (row, column, channel), K maps, C channels, S positions
from collections.abc import Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.nn.functional import all_reduce


def similarity(prediction: Tensor, target: Tensor) -> Tensor:
    """Compute 2 - 2 cos(prediction, target), mean over the batch; both [B, D] (BYOL, Grill et al. 2020, equation 2)."""
    return 2 - 2 * F.cosine_similarity(prediction, target, dim=1).mean()


def decorrelation(projections: Tensor) -> Tensor:
    """Sum the squared correlations of different dimensions over the batch, divided by D: [N, D] -> scalar.

    The value is 0 for uncorrelated dimensions, D - 1 if all dimensions repeat one, and about (D - 1) / N for random
    ones. This is VICReg's covariance term (Bardes et al. 2022, equations 3 and 4) on standardized dimensions, so that
    the scale of the projections, which a cosine loss ignores, does not matter.
    """
    centered = projections - projections.mean(dim=0)
    unit = F.normalize(centered, dim=0)  # each dimension has length 1 over the batch
    correlations = unit.T @ unit  # [D, D]
    return (correlations.square().sum() - correlations.diagonal().square().sum()) / projections.shape[1]


def reconstruction(prediction: Tensor, patches: Tensor, mask: Tensor) -> Tensor:
    """Compute the mean squared error on masked patches, normalized per patch (MAE, He et al. 2022, section 3).

    prediction, patches: [B, L, P]; mask: [B, L], 1 for masked patches.
    """
    mean = patches.mean(dim=2, keepdim=True)
    variance = patches.var(dim=2, keepdim=True)  # unbiased, as in the reference
    wanted = (patches - mean) / (variance + 1e-6).sqrt()
    error = (prediction - wanted).square().mean(dim=2)  # [B, L]
    return (error * mask).sum() / mask.sum()


def distillation(logits: Sequence[Tensor], temperature: float) -> Tensor:
    """Sum KL(softmax(teacher/T) || softmax(branch/T)) T^2 over the branches [B, D] each, mean over the batch.

    The teacher is the detached mean of the branches.
    """
    teacher = F.log_softmax(torch.stack(list(logits)).mean(dim=0).detach() / temperature, dim=1)  # [B, D]
    students = (F.log_softmax(branch / temperature, dim=1) for branch in logits)
    divergence = sum(F.kl_div(student, teacher, reduction="batchmean", log_target=True) for student in students)
    return torch.as_tensor(divergence) * temperature**2


def correlation(maps: Tensor, *, shared: bool = False) -> Tensor:
    """Compute R, the correlation of any two maps over positions: [B, K, S] -> [K, K], 0 to 1 for maps >= 0.

    Each map + 0.001 is L2-normalized over its positions. Inner products are averaged over the batch, and over the
    batches of all processes if `shared` (the loss squares R, so averaging the loss instead would change its value).
    """
    unit = F.normalize(maps + 0.001, dim=2)
    flat = unit.transpose(0, 1).flatten(1)  # [K, B S]: one matrix product instead of B small ones
    result = flat @ flat.T / len(maps)  # [K, K]
    if shared and dist.is_initialized() and dist.get_world_size() > 1:
        result = all_reduce(result) / dist.get_world_size()
    return result


def grouping(correlations: Tensor, groups: int, channels: int) -> Tensor:
    """Compute g^2 with g = 0.001 sum((R - I)^2) / (C/512)^2, I = 1 where two of the C channels share a group.

    `correlations` [K, K] covers all channels (K = C) or one map per group (K = G). With one map per group, each entry
    represents (C/G)^2 equal entries, and the value is the same.
    """
    wanted = same_group(correlations, groups).to(correlations.dtype)
    repeats = (channels / len(correlations)) ** 2
    raw = 0.001 * repeats * (correlations - wanted).square().sum() / (channels / 512) ** 2
    return raw.square()


def overlap(correlations: Tensor, groups: int) -> Tensor:
    """Compute the mean correlation of maps of different groups: [K, K] -> scalar, 1 if all are equal. It is a metric,
    not a loss."""
    pairs = correlations.numel() * (1 - 1 / groups)  # computed, because counting a mask would wait for the GPU
    return correlations.masked_fill(same_group(correlations, groups), 0).sum() / max(1.0, pairs)


def same_group(correlations: Tensor, groups: int) -> Tensor:
    """Return [K, K] bool: whether two maps belong to one group. Group g owns maps g K/G ... (g + 1) K/G - 1."""
    owner = torch.arange(len(correlations), device=correlations.device) // (len(correlations) // groups)  # [K]
    return owner[:, None] == owner[None, :]
