"""The losses against their definitions, computed another way, and their gradients by torch's numeric check."""

import numpy as np
import pytest
import torch
from scipy.special import rel_entr, softmax

from simfle.models import losses


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_similarity_is_squared_distance_of_unit_vectors() -> None:
    p, q = random(5, 7), random(5, 7, seed=1)
    unit = [x / x.norm(dim=1, keepdim=True) for x in (p, q)]
    assert losses.similarity(p, q).item() == pytest.approx((unit[0] - unit[1]).square().sum(dim=1).mean().item())
    assert losses.similarity(p, 3 * p).item() == pytest.approx(0, abs=1e-12)
    assert losses.similarity(p, -p).item() == pytest.approx(4)


def test_decorrelation_sums_squared_correlations_of_different_dimensions() -> None:
    projections = torch.randn(50, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    correlations = np.corrcoef(projections.numpy().T)
    expected = (np.square(correlations).sum() - 6) / 6
    assert losses.decorrelation(projections).item() == pytest.approx(expected, rel=1e-9)
    scaled = projections * torch.logspace(-3, 3, 6, dtype=torch.float64) + 5
    assert losses.decorrelation(scaled).item() == pytest.approx(expected, rel=1e-9)


def test_decorrelation_is_largest_when_all_dimensions_repeat_one() -> None:
    one = torch.randn(50, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    assert losses.decorrelation(one.expand(50, 6)).item() == pytest.approx(5)


def test_reconstruction_counts_masked_patches_only() -> None:
    patches, prediction = random(2, 4, 12), random(2, 4, 12, seed=1)
    mask = torch.tensor([[1.0, 0, 1, 1], [0, 1, 1, 1]], dtype=torch.float64)
    wanted = []
    for b, patch in mask.nonzero().tolist():
        pixels = patches[b, patch].numpy()
        normal = (pixels - pixels.mean()) / np.sqrt(pixels.var(ddof=1) + 1e-6)
        wanted.append(np.mean((prediction[b, patch].numpy() - normal) ** 2))
    assert losses.reconstruction(prediction, patches, mask).item() == pytest.approx(np.mean(wanted))
    elsewhere = prediction + 100 * (1 - mask)[:, :, None]
    assert losses.reconstruction(elsewhere, patches, mask) == losses.reconstruction(prediction, patches, mask)


def test_distillation_is_the_sum_of_three_divergences_from_their_mean() -> None:
    branches = [random(6, 9, seed=seed) for seed in range(3)]
    heat = 4.0
    teacher = softmax(np.mean([branch.numpy() for branch in branches], axis=0) / heat, axis=1)
    wanted = sum(rel_entr(teacher, softmax(branch.numpy() / heat, axis=1)).sum(axis=1).mean() for branch in branches)
    assert losses.distillation(branches, heat).item() == pytest.approx(wanted * heat**2)
    assert losses.distillation([branches[0]] * 3, heat).item() == pytest.approx(0, abs=1e-12)


def test_distillation_sends_no_gradient_through_the_teacher() -> None:
    first, second = random(4, 5).requires_grad_(), random(4, 5, seed=1)
    losses.distillation([first, second], 1.0).backward()
    teacher = torch.softmax((first.detach() + second) / 2, dim=1)
    assert first.grad is not None
    assert torch.allclose(first.grad, (torch.softmax(first.detach(), dim=1) - teacher) / 4)


def test_correlation_is_the_mean_over_the_batch_of_inner_products() -> None:
    maps = random(3, 4, 6).abs()
    shifted = maps + 0.001
    unit = shifted / shifted.norm(dim=2, keepdim=True)
    wanted = torch.stack([sample @ sample.T for sample in unit]).mean(dim=0)
    assert torch.allclose(losses.correlation(maps), wanted)


def test_one_map_per_group_gives_the_loss_of_all_its_equal_channels() -> None:
    groups, repeats = 4, 8
    maps = random(3, groups, 6).abs()
    every_channel = maps.repeat_interleave(repeats, dim=1)  # group g owns channels g C/G ... (g + 1) C/G - 1
    channels = groups * repeats
    short = losses.grouping(losses.correlation(maps), groups, channels)
    long = losses.grouping(losses.correlation(every_channel), groups, channels)
    assert short.item() == pytest.approx(long.item(), rel=1e-12)
    overlaps = [losses.overlap(losses.correlation(each), groups).item() for each in (maps, every_channel)]
    assert overlaps[0] == pytest.approx(overlaps[1], rel=1e-12)


def test_grouping_loss_is_zero_for_groups_that_never_meet() -> None:
    apart = torch.eye(4, dtype=torch.float64)
    assert losses.grouping(apart, 4, 512).item() == 0
    assert losses.overlap(apart, 4).item() == 0
    together = torch.ones(4, 4, dtype=torch.float64)
    assert losses.overlap(together, 4).item() == 1
    # 12 of 16 entries are 1 too large, each standing for 128 x 128 channel pairs; C/512 = 1.
    assert losses.grouping(together, 4, 512).item() == pytest.approx((0.001 * 12 * 128**2) ** 2)
