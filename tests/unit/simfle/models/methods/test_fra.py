"""FRA against its losses in numpy: masks, pooled regions, consistency and relation."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.tiny_methods import TINY, VIEWS, batch, config

from shards.errors import UserError
from simfle.models.methods.fra import heatmaps, mask_entropy, pool
from simfle.models.registry import build_method

B, K, S, C, D = 8, 3, 16, 96, 16


def made(**changes: object) -> torch.nn.Module:
    torch.manual_seed(0)
    return build_method(config("fra", fra=replace(TINY.fra, **changes)), VIEWS).train()


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.sqrt((vector * vector).sum())


def softmax(row: np.ndarray) -> np.ndarray:
    powers = np.exp(row - row.max())
    return powers / powers.sum()


def loop_masks(embeddings: np.ndarray, positions: np.ndarray, temperature: float) -> np.ndarray:
    """Softmax over regions at each position: [K, d], [S, d] -> [K, S]."""
    columns = [softmax(np.array([unit(m) @ unit(u) for m in embeddings]) / temperature) for u in positions]
    return np.array(columns).T


def loop_codes(scores: np.ndarray, epsilon: float, iterations: int) -> np.ndarray:
    """Sinkhorn-Knopp: equal shares of regions for each cluster, rows that sum to 1."""
    codes = np.exp(scores / epsilon)
    for _ in range(iterations):
        codes = codes / codes.sum(axis=0)
        codes = codes / codes.sum(axis=1)[:, None]
    return codes


def test_masks_are_a_softmax_over_regions_at_each_position() -> None:
    generator = torch.Generator().manual_seed(0)
    embeddings, positions = (torch.randn(2, n, 5, dtype=torch.float64, generator=generator) for n in (K, S))
    masks = heatmaps(embeddings, positions, 0.3)
    for b in range(2):
        wanted = loop_masks(embeddings[b].numpy(), positions[b].numpy(), 0.3)
        np.testing.assert_allclose(masks[b].numpy(), wanted, rtol=1e-10)
    assert torch.allclose(masks.sum(dim=1), torch.ones(2, S, dtype=torch.float64))


def test_a_region_is_the_mean_of_its_positions() -> None:
    masks, features = torch.rand(2, K, S, dtype=torch.float64), torch.randn(2, S, C, dtype=torch.float64)
    pooled = pool(masks, features)
    for b in range(2):
        for k in range(K):
            weights, rows = masks[b, k].numpy(), features[b].numpy()
            wanted = sum(weights[s] * rows[s] for s in range(S)) / sum(weights)
            np.testing.assert_allclose(pooled[b, k].numpy(), wanted, rtol=1e-10)
    hard = torch.zeros(1, 2, 4).index_fill(2, torch.tensor([0]), 1.0)
    assert torch.equal(pool(hard, torch.arange(4.0).view(1, 4, 1)), torch.zeros(1, 2, 1))


def test_the_entropy_of_masks_measures_their_collapse() -> None:
    assert mask_entropy(torch.full((2, K, S), 1 / K)).item() == pytest.approx(math.log(K))
    assert mask_entropy(torch.eye(K)[None]).item() == 0


def test_one_network_pools_scores_and_projects_regions() -> None:
    """From the feature map to scores and regions in loops."""
    network = made().double().online
    view = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    maps = copy.deepcopy(network).backbone(view)
    shadow = copy.deepcopy(network)
    embeddings, positions = (each.detach().numpy() for each in shadow.masks(maps))
    found = network(view)
    regions, scores = [], []
    for b in range(2):
        masks = loop_masks(embeddings[b], positions[b], TINY.fra.mask_temperature)
        np.testing.assert_allclose(found.masks[b].detach().numpy(), masks, rtol=1e-6)
        features = maps[b].detach().numpy().reshape(C, S)
        units = np.array([unit(u) for u in positions[b]])
        for k in range(K):
            share = masks[k] / masks[k].sum()
            regions.append(sum(share[s] * features[:, s] for s in range(S)))
            center = sum(share[s] * units[s] for s in range(S))
            scores.append([unit(center) @ unit(m) for m in embeddings[b]])
    np.testing.assert_allclose(found.scores.detach().numpy(), scores, rtol=1e-6)
    projected = shadow.region_projector(torch.tensor(np.array(regions)))
    np.testing.assert_allclose(found.regions.detach().numpy(), projected.detach().numpy(), rtol=1e-5, atol=1e-8)
    assert found.regions.shape == (2 * K, D)


def test_the_losses_are_byols_for_face_and_regions_and_swapped_codes() -> None:
    model, images = made(region_weight=0.5, relation_weight=2.0, temperature=0.2).double(), batch()
    with torch.no_grad():  # a target that differs from the online network
        for parameter in model.target.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    shadow = copy.deepcopy(model)
    views = [shadow.normalize(view) for view in (images.view1, images.view2)]
    online, target = [shadow.online(view) for view in views], [shadow.target(view) for view in views]
    wanted = {"similarity": 0.0, "regions": 0.0, "relation": 0.0}
    for view in (0, 1):
        for name, field in (("similarity", "face"), ("regions", "regions")):
            prediction = shadow.predictor[field](getattr(online[view], field)).detach().numpy()
            rows = zip(prediction, getattr(target[1 - view], field).numpy(), strict=True)
            wanted[name] += sum(((unit(q) - unit(z)) ** 2).sum() for q, z in rows) / len(prediction)
        codes = loop_codes(target[1 - view].scores.numpy(), 0.05, 3)
        for code, score in zip(codes, online[view].scores.detach().numpy(), strict=True):
            wanted["relation"] -= (code * np.log(softmax(score / 0.2))).sum() / (B * K) / 2
    found = model(images)
    for name, value in wanted.items():
        assert found[name].item() == pytest.approx(value, rel=1e-5), name
    total = wanted["similarity"] + 0.5 * wanted["regions"] + 2 * wanted["relation"]
    assert found["total"].item() == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize(("loss", "reached"), [("relation", True), ("regions", True), ("similarity", False)])
def test_regional_losses_train_the_masks_and_the_backbone(loss: str, reached: bool) -> None:
    model = made()
    model(batch())[loss].backward()
    assert (model.online.masks.queries.grad is not None) == reached
    assert model.online.backbone.conv1[0].weight.grad.abs().max() > 0


def test_each_region_of_a_view_predicts_the_same_region_of_the_other_view() -> None:
    """With equal views and networks, the regional loss is that of predictions with their own projections."""
    model = made()
    images = batch()
    same = replace(images, view2=images.view1)
    shadow = copy.deepcopy(model)
    regions = shadow.online(shadow.normalize(images.view1)).regions
    target = shadow.target(shadow.normalize(images.view1)).regions
    prediction = shadow.predictor["regions"](regions)
    wanted = 2 * (2 - 2 * torch.nn.functional.cosine_similarity(prediction, target, dim=1).mean())
    assert model(same)["regions"].item() == pytest.approx(wanted.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"regions": 1}, "model.fra.regions=1: must be at least 2"),
        ({"num_heads": 5}, "model.fra.embed_dim=16: must be a multiple of its heads=5 and of 4"),
        ({"mask_temperature": 0.0}, "model.fra.mask_temperature=0.0: must be above 0"),
        ({"relation_weight": -1.0}, "model.fra.relation_weight=-1.0: must be at least 0"),
    ],
)
def test_values_out_of_range_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        made(**changes)
