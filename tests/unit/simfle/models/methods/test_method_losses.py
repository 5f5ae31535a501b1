"""Each method's loss against its paper's equation, written out in loops in float64, and where gradients must not go."""

import math

import pytest
import torch
from torch import Tensor

from simfle.config.schema import VICRegConfig
from simfle.models import losses
from simfle.models.layers.facemae import patchify
from simfle.models.methods.moco import info_nce
from simfle.models.methods.simclr import nt_xent
from simfle.models.methods.simsiam import distance, feature_spread
from simfle.models.methods.swav import Prototypes, sinkhorn, swapped_prediction
from simfle.models.methods.vicreg import covariance, variance, vicreg


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def unit(rows: Tensor) -> Tensor:
    return rows / rows.square().sum(dim=1, keepdim=True).sqrt()


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum() / (a.square().sum().sqrt() * b.square().sum().sqrt())


def agree(ours: Tensor, theirs: Tensor, *inputs: Tensor) -> None:
    """Values and gradients with respect to `inputs`."""
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-10)
    for mine, wanted in zip(torch.autograd.grad(ours, inputs), torch.autograd.grad(theirs, inputs), strict=True):
        assert mine.abs().max() > 0
        assert torch.allclose(mine, wanted, rtol=1e-9, atol=1e-12)


def test_byol_is_the_distance_of_unit_vectors_both_ways() -> None:
    """Grill et al. 2020, equation 2: || q - z' ||^2 of normalized q and z', then with the views exchanged."""
    q1, q2, z1, z2 = (random(4, 6, seed=seed).requires_grad_() for seed in range(4))
    theirs = torch.zeros((), dtype=torch.float64)
    for n in range(4):
        for q, z in ((q1[n], z2[n]), (q2[n], z1[n])):
            theirs = theirs + (q / q.norm() - z / z.norm()).square().sum() / 4
    agree(losses.similarity(q1, z2) + losses.similarity(q2, z1), theirs, q1, q2)


def test_simsiam_is_the_negative_cosine_without_a_gradient_to_the_projection() -> None:
    """Chen and He 2021, equations 1 and 3."""
    p, z = random(5, 6).requires_grad_(), random(5, 6, seed=1).requires_grad_()
    theirs = -sum(cosine(p[n], z[n].detach()) for n in range(5)) / 5
    agree(distance(p, z), torch.as_tensor(theirs), p)
    assert torch.autograd.grad(distance(p, z), z, allow_unused=True) == (None,)


def test_spread_is_zero_for_one_point_and_one_for_the_sphere() -> None:
    assert feature_spread(torch.ones(8, 4)).item() == pytest.approx(0, abs=1e-6)
    assert feature_spread(random(20_000, 16)).item() == pytest.approx(1, abs=0.01)


def test_simclr_is_nt_xent_over_all_other_views() -> None:
    """Chen et al. 2020, equation 1 and algorithm 1: views 2k-1 and 2k are a pair, here k and k + N."""
    z1, z2 = random(4, 6).requires_grad_(), random(4, 6, seed=1).requires_grad_()
    heat, z = 0.3, [*z1, *z2]
    theirs = torch.zeros((), dtype=torch.float64)
    for i in range(8):
        j = (i + 4) % 8
        others = sum(torch.exp(cosine(z[i], z[k]) / heat) for k in range(8) if k != i)
        theirs = theirs - torch.log(torch.exp(cosine(z[i], z[j]) / heat) / others) / 8
    agree(nt_xent(z1, z2, heat), theirs, z1, z2)


def test_moco_tells_the_key_from_the_queue() -> None:
    """He et al. 2020, equation 1: one positive, K negatives."""
    query = random(3, 6).requires_grad_()
    key, queue = unit(random(3, 6, seed=1)).requires_grad_(), unit(random(7, 6, seed=2))
    heat = 0.2
    theirs = torch.zeros((), dtype=torch.float64)
    for n in range(3):
        q = query[n] / query[n].norm()
        positive = torch.exp((q * key[n].detach()).sum() / heat)
        negatives = sum(torch.exp((q * row).sum() / heat) for row in queue)
        theirs = theirs - torch.log(positive / (positive + negatives)) / 3
    agree(info_nce(unit(query), key, queue, heat)[0], theirs, query)
    assert torch.autograd.grad(info_nce(unit(query), key, queue, heat)[0], key, allow_unused=True) == (None,)


def test_moco_accuracy_counts_queries_nearest_to_their_key() -> None:
    query, queue = torch.eye(4, dtype=torch.float64)[:3], torch.eye(4, dtype=torch.float64)[2:]
    key = torch.eye(4, dtype=torch.float64)[[0, 1, 3]]  # the third query is in the queue, its key is far
    assert info_nce(query, key, queue, 0.2)[1].item() == pytest.approx(2 / 3)


def loop_sinkhorn(scores: Tensor, epsilon: float, iterations: int) -> list[list[float]]:
    """Caron et al. 2020, equations 3 to 5: Q = Diag(u) exp(C^T Z / epsilon) Diag(v), Q 1 = 1/K, Q^T 1 = 1/B."""
    samples, count = scores.shape
    q = [[math.exp(scores[n, k].item() / epsilon) for n in range(samples)] for k in range(count)]  # [K][B]
    for _ in range(iterations):
        for k in range(count):
            total = sum(q[k])
            q[k] = [value / total / count for value in q[k]]
        for n in range(samples):
            total = sum(q[k][n] for k in range(count))
            for k in range(count):
                q[k][n] = q[k][n] / total / samples
    return [[q[k][n] * samples for k in range(count)] for n in range(samples)]


def test_sinkhorn_scales_prototypes_and_samples_in_turns() -> None:
    scores = unit(random(12, 5)) @ unit(random(4, 5, seed=1)).T
    codes = sinkhorn(scores, 0.05, 3)
    assert torch.allclose(codes, torch.tensor(loop_sinkhorn(scores, 0.05, 3), dtype=torch.float64), rtol=1e-10)
    assert torch.allclose(codes.sum(dim=1), torch.ones(12, dtype=torch.float64))
    converged = sinkhorn(scores, 0.05, 500)
    assert torch.allclose(converged.sum(dim=0), torch.full((4,), 12 / 4, dtype=torch.float64), rtol=1e-6)
    assert (sinkhorn(scores, 0.05, 3).sum(dim=0) - 3).abs().max() < (
        sinkhorn(scores, 0.05, 1).sum(dim=0) - 3
    ).abs().max()


def test_sinkhorn_stays_finite_at_the_ends_of_its_range_in_float32() -> None:
    scores = torch.tensor([[1.0, -1.0], [1.0, -1.0], [-1.0, -1.0]])
    codes = sinkhorn(scores, 0.025, 3)
    assert codes.isfinite().all()
    assert torch.allclose(codes.sum(dim=1), torch.ones(3))


def test_swav_predicts_the_other_views_code() -> None:
    """Caron et al. 2020, equations 1 and 2, halved."""
    scores1, scores2 = random(4, 3).requires_grad_(), random(4, 3, seed=1).requires_grad_()
    codes1, codes2 = (torch.softmax(random(4, 3, seed=seed), dim=1) for seed in (2, 3))
    heat = 0.1
    theirs = torch.zeros((), dtype=torch.float64)
    for scores, codes in ((scores1, codes2), (scores2, codes1)):
        for n in range(4):
            whole = sum(torch.exp(scores[n, k] / heat) for k in range(3))
            for k in range(3):
                theirs = theirs - codes[n, k] * torch.log(torch.exp(scores[n, k] / heat) / whole) / 4 / 2
    agree(swapped_prediction(scores1, scores2, codes1, codes2, heat), theirs, scores1, scores2)


def test_prototypes_score_by_cosine_however_long_they_are() -> None:
    prototypes = Prototypes(3, 5).double()
    with torch.no_grad():
        prototypes.weight.mul_(torch.tensor([[0.5], [1.0], [9.0]]))
    rows = random(4, 5)
    wanted = torch.tensor([[cosine(row, weight).item() for weight in prototypes.weight] for row in rows])
    assert torch.allclose(prototypes(rows), wanted.double(), rtol=1e-6)


def test_mae_counts_masked_patches_normalised_each_by_itself() -> None:
    """He et al. 2022, section 3: mean squared error on masked patches only, pixels normalized per patch."""
    image, prediction = random(2, 3, 16, 16), random(2, 4, 192, seed=1).requires_grad_()
    mask = torch.tensor([[1.0, 0, 1, 1], [0, 1, 1, 1]], dtype=torch.float64)
    theirs, count = torch.zeros((), dtype=torch.float64), 0
    for b in range(2):
        for place in range(4):
            if mask[b, place] == 0:
                continue
            row, column = 8 * (place // 2), 8 * (place % 2)
            pixels = image[b, :, row : row + 8, column : column + 8].permute(1, 2, 0).reshape(-1)
            mean = pixels.sum() / 192
            variance = (pixels - mean).square().sum() / 191
            wanted = (pixels - mean) / (variance + 1e-6).sqrt()
            theirs = theirs + (prediction[b, place] - wanted).square().sum() / 192
            count += 1
    ours = losses.reconstruction(prediction, patchify(image, 8), mask)
    agree(ours, theirs / count, prediction)
    (gradient,) = torch.autograd.grad(losses.reconstruction(prediction, patchify(image, 8), mask), prediction)
    assert gradient[0, 1].abs().max() == 0


def test_vicreg_is_invariance_variance_and_covariance() -> None:
    """Bardes et al. 2022, equations 1 to 6; the invariance over D, as in algorithm 1."""
    z1, z2 = (0.7 * random(6, 4)).requires_grad_(), (1.3 * random(6, 4, seed=1)).requires_grad_()
    n, d = 6, 4

    def spread(z: Tensor) -> Tensor:
        found = torch.zeros((), dtype=torch.float64)
        for j in range(d):
            mean = sum(z[i, j] for i in range(n)) / n
            var = sum((z[i, j] - mean) ** 2 for i in range(n)) / (n - 1)
            found = found + torch.relu(1 - torch.sqrt(var + 1e-4)) / d
        return found

    def decorrelation(z: Tensor) -> Tensor:
        mean = sum(z[i] for i in range(n)) / n
        matrix = sum(torch.outer(z[i] - mean, z[i] - mean) for i in range(n)) / (n - 1)
        return sum(matrix[i, j] ** 2 for i in range(d) for j in range(d) if i != j) / d  # type: ignore[index, return-value]

    invariance = sum((z1[i] - z2[i]).square().sum() for i in range(n)) / n / d
    agree(variance(z1), spread(z1), z1)
    agree(covariance(z1), decorrelation(z1), z1)
    theirs = 25 * invariance + 3 * (spread(z1) + spread(z2)) + 2 * (decorrelation(z1) + decorrelation(z2))
    agree(vicreg(z1, z2, VICRegConfig(25, 3, 2))["total"], torch.as_tensor(theirs), z1, z2)


def test_vicreg_wants_no_more_than_a_deviation_of_one() -> None:
    assert variance(3 * random(50, 4)).item() == 0
    assert variance(torch.ones(8, 4)).item() == pytest.approx(0.99)
    assert covariance(torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])).item() == 0
