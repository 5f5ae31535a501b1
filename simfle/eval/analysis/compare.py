"""Paired tests of the difference between two backbones on the same test samples.

Resampling and permutation use whole groups (people), because the images of one person are not independent. If people
are unknown, each sample is its own group.
"""

# m test samples, S runs (seeds)
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import binomtest

from simfle.errors import UserError
from simfle.eval.analysis.metrics import LOWER_IS_BETTER, Values, bootstrap_weights, bounds, classes_of, mean, measure
from simfle.eval.analysis.results import CLASSES, Result


@dataclass(frozen=True)
class Comparison:
    """Metric of `first` minus metric of `second`, both averaged over seeds.

    interval: 95 %, by the paired bootstrap. p: p-value of a two-sided permutation test that swaps the predictions of
    whole groups. mcnemar: p-value of McNemar's exact test on the first seed of each backbone, which assumes independent
    samples; None unless the labels are classes.
    """

    benchmark: str
    protocol: str
    metric: str
    first: str
    second: str
    difference: float
    interval: tuple[float, float]
    p: float
    mcnemar: float | None

    @property
    def first_is_better(self) -> bool:
        """Return whether the first backbone is better. The difference may still be due to chance."""
        return (self.difference < 0) == (self.metric in LOWER_IS_BETTER)


def compare(first: Sequence[Result], second: Sequence[Result], resamples: int = 1000, metric: str = "") -> Comparison:
    """Compare two backbones (each with its seeds) on one benchmark by one protocol. `metric` is the primary metric.

    Raises:
        UserError: If the results were measured on different benchmarks, protocols or samples.
    """
    a, b = first[0], second[0]
    labels, runs_a = _aligned(first, a)
    other, runs_b = _aligned(second, a)
    if a.kind != b.kind or a.classes != b.classes:
        raise UserError(
            f"compare: {a.path} and {b.path} have different classes. Fix: evaluate both on the same benchmark."
        )
    if not np.array_equal(labels, other):
        raise UserError(
            f"compare: {a.path} and {b.path} have different labels for {a.benchmark}. "
            "Fix: evaluate both on the same shards."
        )
    metric = metric or a.metric

    def score(runs: Sequence[Values], weights: Values | None = None) -> float:
        return mean([measure(a.kind, labels, run, len(a.classes), weights) for run in runs])[metric]

    resampled = bootstrap_weights(a.samples.groups, resamples, classes_of(a.kind, labels))
    seen = [score(runs_a, weights) - score(runs_b, weights) for weights in resampled]
    difference = score(runs_a) - score(runs_b)
    return Comparison(
        a.benchmark,
        a.protocol,
        metric,
        a.backbone["id"],
        b.backbone["id"],
        difference,
        bounds(seen),
        _permutation(runs_a, runs_b, a.samples.groups, score, abs(difference), resamples),
        mcnemar(labels, runs_a[0], runs_b[0]) if a.kind == CLASSES else None,
    )


def mcnemar(labels: Values, first: Values, second: Values) -> float:
    """Return McNemar's exact two-sided p (1947), from the samples that exactly one of the two predicted correctly."""
    right_a, right_b = first == labels, second == labels
    only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    return float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0


def _aligned(results: Sequence[Result], like: Result) -> tuple[Values, list[Values]]:
    """Return labels and predictions of every seed, in the sample order of `like`."""
    runs: list[Values] = []
    labels: Values = np.empty(0)
    for result in results:
        if (result.benchmark, result.protocol, result.kind) != (like.benchmark, like.protocol, like.kind):
            raise UserError(
                f"compare: {result.path} and {like.path} have different benchmarks or protocols. "
                "Fix: compare results of the same benchmark and protocol."
            )
        place = {name: position for position, name in enumerate(result.samples.keys)}
        if place.keys() != set(like.samples.keys) or len(place) != len(like.samples.keys):
            raise UserError(
                f"compare: {result.path} and {like.path} have different test samples. "
                "Fix: evaluate both on the same shards."
            )
        order = [place[name] for name in like.samples.keys]
        labels = result.labels()[order]
        runs.append(result.predictions()[order])
    return labels, runs


def _permutation(
    runs_a: list[Values], runs_b: list[Values], groups: Sequence[str], score: Any, seen: float, resamples: int
) -> float:
    """Return the fraction of random swaps (including the observed one) with at least the observed difference."""
    many = math.lcm(len(runs_a), len(runs_b))  # uses each run equally often, so that the means equal those compared
    a, b = (np.stack([runs[seed % len(runs)] for seed in range(many)]) for runs in (runs_a, runs_b))  # [S, m, ...]
    names, group = np.unique(np.array(groups), return_inverse=True)
    rng = np.random.default_rng(0)
    as_large = 1
    for _ in range(resamples):
        swap = rng.random(len(names))[group] < 0.5  # [m]
        swap = swap.reshape(1, -1, *[1] * (a.ndim - 2))
        difference = score(list(np.where(swap, b, a))) - score(list(np.where(swap, a, b)))
        as_large += abs(difference) >= seen - 1e-12
    return as_large / (resamples + 1)
