"""Metrics of predictions and their confidence intervals.

All metrics take a weight per sample, so one formula serves both the samples themselves (weights 1) and bootstrap
resamples (weight = number of times drawn). `results.Samples` lists the kinds of labels and predictions.
"""

# m test samples, S runs (seeds), K classes, G groups
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simfle.eval.analysis.results import AFFECT, CAM, CLASSES, LANDMARKS, VOTES

Values = NDArray[Any]
Floats = NDArray[np.float64]
Interval = tuple[float, float]

LIMITS = (0.08, 0.10)  # thresholds on landmark errors above which a face is a failure
TRIES = 100  # attempts to draw a resample with all classes
MAIN = {VOTES: "cross_entropy", AFFECT: "ccc", LANDMARKS: "nme", CAM: "gain"}
"""Primary metric by kind; for classes, the benchmark defines it."""
LOWER_IS_BETTER = frozenset({"cross_entropy", "kl", "rmse_valence", "rmse_arousal", "nme", "failure_08", "failure_10"})


def measure(
    kind: str, labels: Values, predictions: Values, classes: int = 0, weights: Floats | None = None
) -> dict[str, float]:
    """Return all metrics of one kind by name. `weights` are [m]; None means that all are 1."""
    w = np.ones(len(labels)) if weights is None else weights
    if kind == CLASSES:
        return of_confusion(confusion(labels, predictions, classes, w))
    return {VOTES: _votes, AFFECT: _affect, LANDMARKS: _landmarks, CAM: _cam}[kind](labels, predictions, w)


def confusion(labels: Values, predictions: Values, classes: int, weights: Floats | None = None) -> Floats:
    """Return the confusion matrix [K, K]: rows are true classes, columns predicted ones."""
    return np.bincount(labels * classes + predictions, weights, classes**2).reshape(classes, classes).astype(float)


def of_confusion(table: Floats) -> dict[str, float]:
    """Return accuracy, balanced_accuracy (mean recall of the classes that occur) and macro_f1, all from 0 to 1.

    macro_f1: mean F1 of the classes that occur or are predicted (F1 = 2 TP / (2 TP + FP + FN)).
    """
    right, truth, predicted = table.diagonal(), table.sum(1), table.sum(0)
    there, any_of_it = truth > 0, truth + predicted > 0
    return {
        "accuracy": float(right.sum() / table.sum()),
        "balanced_accuracy": float((right[there] / truth[there]).mean()),
        "macro_f1": float((2 * right[any_of_it] / (truth + predicted)[any_of_it]).mean()),
    }


def _votes(labels: Floats, predictions: Floats, w: Floats) -> dict[str, float]:
    """Return metrics of distributions [m, K]: cross_entropy and kl in nats, accuracy for the class with the most
    votes."""
    least = 1e-12
    cross = -(labels * np.log(np.maximum(predictions, least))).sum(1)
    entropy = -(labels * np.log(np.maximum(labels, least))).sum(1)
    right = labels.argmax(1) == predictions.argmax(1)
    return {
        "cross_entropy": float(np.average(cross, weights=w)),
        "kl": float(np.average(cross - entropy, weights=w)),
        "accuracy": float(np.average(right, weights=w)),
    }


def concordance(truth: Floats, found: Floats, w: Floats) -> float:
    """Return Lin's concordance correlation coefficient (1989): 2 cov / (var + var + (mean - mean)^2), -1 to 1."""
    mean_t, mean_f = np.average(truth, weights=w), np.average(found, weights=w)
    cov = np.average((truth - mean_t) * (found - mean_f), weights=w)
    spread = np.average((truth - mean_t) ** 2, weights=w) + np.average((found - mean_f) ** 2, weights=w)
    total = spread + (mean_t - mean_f) ** 2
    return float(2 * cov / total) if total > 0 else 0.0


def _affect(labels: Floats, predictions: Floats, w: Floats) -> dict[str, float]:
    """Return metrics of valence and arousal [m, 2]: concordance and root mean squared error of both; ccc is their
    mean."""
    found: dict[str, float] = {}
    for place, name in enumerate(("valence", "arousal")):
        truth, guess = labels[:, place], predictions[:, place]
        found[f"ccc_{name}"] = concordance(truth, guess, w)
        found[f"rmse_{name}"] = float(np.sqrt(np.average((truth - guess) ** 2, weights=w)))
    return {"ccc": (found["ccc_valence"] + found["ccc_arousal"]) / 2, **found}


def _landmarks(labels: Floats, predictions: Floats, w: Floats) -> dict[str, float]:
    """Return metrics of errors [m]: nme, their mean; the fraction of failures; auc.

    auc: area below the cumulative error distribution from 0 to the limit, divided by the limit (the mean of max(0, 1 -
    error / limit)).
    """
    found = {"nme": float(np.average(predictions, weights=w))}
    for limit in LIMITS:
        name = f"{100 * limit:02.0f}"
        found[f"failure_{name}"] = float(np.average(predictions > limit, weights=w))
        found[f"auc_{name}"] = float(np.average(np.maximum(0, 1 - predictions / limit), weights=w))
    return found


def _cam(labels: Floats, predictions: Floats, w: Floats) -> dict[str, float]:
    """Return metrics of fractions [m]: share (of the energy near landmarks), chance (the area's share) and gain (share
    / chance)."""
    share, chance = float(np.average(predictions, weights=w)), float(np.average(labels, weights=w))
    return {"gain": share / chance if chance > 0 else 0.0, "share": share, "chance": chance}


def bootstrap_weights(
    groups: Sequence[str], resamples: int, labels: Values | None = None, seed: int = 0
) -> Iterator[Floats]:
    """Return the number of times that each of m samples is drawn, per resample, when drawing groups with replacement.

    Images of one person are not independent, so each resample draws as many people as there are. labels: [m] classes,
    and each resample must contain all of them: without a rare difficult class, a mean over classes would be higher.
    """
    names, group = np.unique(np.array(groups), return_inverse=True)
    rng = np.random.default_rng(seed)
    share = np.full(len(names), 1 / len(names))
    kinds = labels if labels is not None else np.zeros(len(group), dtype=int)
    there = np.bincount(kinds) > 0
    for _ in range(resamples):
        for _ in range(TRIES):
            weights = rng.multinomial(len(names), share).astype(float)[group]
            if (np.bincount(kinds, weights)[there] > 0).all():
                break
        yield weights


def classes_of(kind: str, labels: Values) -> Values | None:
    """Return the labels if they are classes, otherwise None."""
    return labels if kind == CLASSES else None


def intervals(
    kind: str, labels: Values, runs: Sequence[Values], groups: Sequence[str], classes: int, resamples: int
) -> dict[str, Interval]:
    """Return the bootstrap 95 % interval of each metric, averaged over runs (seeds) of predictions [m, ...]."""
    found: dict[str, list[float]] = {}
    for weights in bootstrap_weights(groups, resamples, classes_of(kind, labels)):
        for name, value in mean([measure(kind, labels, run, classes, weights) for run in runs]).items():
            found.setdefault(name, []).append(value)
    return {name: bounds(values) for name, values in found.items()}


def mean(parts: Sequence[dict[str, float]]) -> dict[str, float]:
    """Return each metric, averaged over runs."""
    return {name: sum(part[name] for part in parts) / len(parts) for name in parts[0]}


def bounds(values: Sequence[float]) -> Interval:
    """Return the central 95 % interval of resampled values."""
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
