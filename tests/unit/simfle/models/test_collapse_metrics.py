"""Measures of collapse against what is known of simple clouds of points, and against loops over the formulas."""

import math

import pytest
import torch
from torch import Tensor

from simfle.models import collapse_metrics


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_effective_rank_counts_equal_directions() -> None:
    """k orthogonal directions of equal variance are k dimensions, whatever the width and the mean."""
    corners = torch.cat([torch.eye(5), -torch.eye(5)]) @ torch.linalg.qr(random(12, 12).float())[0][:5]
    assert collapse_metrics.effective_rank(corners + 7).item() == pytest.approx(5, rel=1e-4)
    assert collapse_metrics.effective_rank(random(4, 1) @ random(1, 9, seed=1)).item() == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize("shape", [(40, 6), (6, 40)])
def test_ranks_are_exponentials_of_entropies(shape: tuple[int, int]) -> None:
    """Roy and Vetterli 2007 on the covariance's eigenvalues; Garrido et al. 2023, equation 1, on singular values."""
    features = random(*shape) * torch.arange(1, shape[1] + 1) + 1
    spectra = {
        collapse_metrics.effective_rank: torch.linalg.svdvals(features - features.mean(0)).square().tolist(),
        collapse_metrics.rankme: torch.linalg.svdvals(features).tolist(),
    }
    for measure, spectrum in spectra.items():
        shares = [value / sum(spectrum) for value in spectrum]
        entropy = -sum(share * math.log(share) for share in shares if share > 0)
        assert measure(features).item() == pytest.approx(math.exp(entropy), rel=1e-3)


def test_spread_is_zero_for_one_point_and_one_for_the_sphere() -> None:
    assert collapse_metrics.spread(torch.ones(8, 4)).item() == pytest.approx(0, abs=1e-6)
    assert collapse_metrics.spread(random(20_000, 16)).item() == pytest.approx(1, abs=0.01)


def test_alignment_and_uniformity_are_the_papers_sums() -> None:
    """Wang and Isola 2020, equations 1 (alpha 2) and 2 (t 2)."""
    first, second = random(6, 3), random(6, 3, seed=1)
    unit = [row / row.norm() for row in first]
    other = [row / row.norm() for row in second]
    near = sum(float((a - b).square().sum()) for a, b in zip(unit, other, strict=True)) / 6
    assert collapse_metrics.alignment(first, second).item() == pytest.approx(near)
    pairs = [math.exp(-2 * float((unit[i] - unit[j]).square().sum())) for i in range(6) for j in range(6) if i != j]
    assert collapse_metrics.uniformity(first).item() == pytest.approx(math.log(sum(pairs) / 30))


def test_all_are_finite_where_all_features_are_equal() -> None:
    same = torch.ones(8, 4)
    assert collapse_metrics.effective_rank(same).item() == pytest.approx(1, abs=0.01)
    assert collapse_metrics.uniformity(same).item() == pytest.approx(0, abs=1e-5)
    assert collapse_metrics.effective_rank(torch.zeros(8, 4)).isfinite()
