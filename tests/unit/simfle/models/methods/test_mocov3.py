"""MoCo v3 against equation 1 and algorithm 1 of its paper in numpy: loss, symmetry, keys, gradients, heads."""

import math

import numpy as np
import pytest
import torch
from helpers.tiny_methods import VIEWS, batch, config
from torch import Tensor

from simfle.models.layers.heads import normed_head
from simfle.models.methods.mocov3 import contrast
from simfle.models.registry import build_method

pytestmark = pytest.mark.slow


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def info_nce(query: np.ndarray, keys: np.ndarray, temperature: float) -> float:
    """Equation 1 for each query, by loops: -log exp(q k+ / T) / (exp(q k+ / T) + sum over k- of exp(q k- / T))."""
    total = 0.0
    for place, one in enumerate(query):
        unit = one / math.sqrt(sum(one**2))
        scores = [math.exp(unit @ (key / math.sqrt(sum(key**2))) / temperature) for key in keys]
        total -= math.log(scores[place] / sum(scores))
    return total / len(query)


@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_contrast_is_equation_1_times_twice_the_temperature(temperature: float) -> None:
    query, key = random(5, 7, seed=0), random(5, 7, seed=1)
    found, accuracy = contrast(query, key, temperature)
    assert found.item() == pytest.approx(2 * temperature * info_nce(query.numpy(), key.numpy(), temperature), rel=1e-12)
    nearest = np.argmax((query / query.norm(dim=1)[:, None]).numpy() @ (key / key.norm(dim=1)[:, None]).numpy().T, 1)
    assert accuracy.item() == np.mean(nearest == np.arange(5))


def test_gradients_reach_the_query_and_not_the_key() -> None:
    query, key = random(4, 6, seed=2).requires_grad_(), random(4, 6, seed=3).requires_grad_()
    contrast(query, key, 0.2)[0].backward()
    assert key.grad is None
    step = 1e-6
    for place in ((0, 0), (3, 5)):
        moved = query.detach().clone()
        moved[place] += step
        slope = 0.4 * (info_nce(moved.numpy(), key.detach().numpy(), 0.2)
                       - info_nce(query.detach().numpy(), key.detach().numpy(), 0.2)) / step  # fmt: skip
        assert query.grad[place].item() == pytest.approx(slope, rel=1e-4)


def test_the_loss_is_symmetric_with_predictions_and_keys_of_the_momentum_encoder() -> None:
    """Algorithm 1: ctr(q1, k2) + ctr(q2, k1); the predictor is applied to queries alone."""
    torch.manual_seed(0)
    model = build_method(config("mocov3"), VIEWS).double().eval()
    with torch.no_grad():
        for parameter in model.target.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        images = batch()
        views = [model.normalize(image) for image in (images.view1, images.view2)]
        queries = [model.predictor(model.online(view)[1]).numpy() for view in views]
        keys = [model.target(view)[1].numpy() for view in views]
        losses = model(images)
    wanted = 0.4 * (info_nce(queries[0], keys[1], 0.2) + info_nce(queries[1], keys[0], 0.2))
    assert losses["total"].item() == losses["contrast"].item() == pytest.approx(wanted, rel=1e-9)
    assert "queue" not in dict(model.named_buffers())


def test_heads_have_three_and_two_layers_with_batchnorm_on_all() -> None:
    projector, predictor = normed_head(6, 8, 4, layers=3), normed_head(4, 8, 4, layers=2)
    kinds = [[type(layer).__name__ for layer in head] for head in (projector, predictor)]
    hidden = ["Linear", "BatchNorm1d", "ReLU"]
    assert kinds == [[*hidden, *hidden, "Linear", "BatchNorm1d"], [*hidden, "Linear", "BatchNorm1d"]]
    assert [tuple(layer.weight.shape) for layer in projector if isinstance(layer, torch.nn.Linear)] == [
        *((8, 6), (8, 8), (4, 8))
    ]
    assert projector[-1].weight is None
