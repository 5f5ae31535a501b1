"""kNN against a slow implementation of its definition."""

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from simfle.eval.protocols import knn as module
from simfle.eval.protocols.knn import neighbors, vote


def knn(
    train: torch.Tensor, labels: torch.Tensor, test: torch.Tensor, classes: int, k: int = 20, temperature: float = 0.07
) -> torch.Tensor:
    return vote(*neighbors(train, test, k), labels, classes, k, temperature)


def slow(train: torch.Tensor, labels: torch.Tensor, test: torch.Tensor, classes: int, k: int, t: float) -> list[int]:
    predictions = []
    for query in test.tolist():
        cosines = []
        for row, label in zip(train.tolist(), labels.tolist(), strict=True):
            dot = sum(a * b for a, b in zip(query, row, strict=True))
            cosines.append((dot / math.hypot(*query) / math.hypot(*row), label))
        votes = [0.0] * classes
        for cosine, label in sorted(cosines, reverse=True)[:k]:
            votes[label] += math.exp(cosine / t)
        predictions.append(votes.index(max(votes)))
    return predictions


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.integers(1, 30), st.integers(1, 25))
def test_as_defined(seed: int, k: int, samples: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    train = torch.randn(samples, 5, generator=generator, dtype=torch.float64)
    test = torch.randn(7, 5, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 4, (samples,), generator=generator)
    assert knn(train, labels, test, 4, k, 0.07).tolist() == slow(train, labels, test, 4, k, 0.07)


def test_one_search_serves_every_smaller_k() -> None:
    generator = torch.Generator().manual_seed(3)
    train, test = torch.randn(40, 4, generator=generator), torch.randn(9, 4, generator=generator)
    labels = torch.randint(0, 3, (40,), generator=generator)
    found = neighbors(train, test, 30)
    for k in (1, 7, 30):
        assert torch.equal(vote(*found, labels, 3, k, 0.07), knn(train, labels, test, 3, k))


def test_near_ones_outvote_many_far_ones() -> None:
    train = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.6, 0.8], [0.6, 0.8]])
    labels = torch.tensor([0, 1, 1, 1])
    query = torch.tensor([[1.0, 0.05]])
    assert knn(train, labels, query, 2, 4, 0.07).item() == 0
    assert knn(train, labels, query, 2, 4, 10.0).item() == 1  # almost a plain majority


def test_length_of_features_does_not_matter() -> None:
    train = torch.tensor([[100.0, 0.0], [0.0, 0.1]])
    assert knn(train, torch.tensor([0, 1]), torch.tensor([[0.01, 0.02]]), 2, 1).item() == 1


def test_chunks_change_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    train, test = torch.randn(50, 8, generator=generator), torch.randn(2 * module.CHUNK + 3, 8, generator=generator)
    labels = torch.randint(0, 3, (50,), generator=generator)
    whole = knn(train, labels, test, 3)
    assert len(whole) == len(test)
    tail = knn(train, labels, test[-5:], 3)
    assert torch.equal(whole[-5:], tail)
