"""How good predictions are, and how sure that is."""

# m test samples, S runs (seeds), K classes, G groups
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, f1_score

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Metrics:
    """accuracy, balanced_accuracy (mean recall), macro_f1, recall [K]: 0 to 1; confusion [K][K]: rows are the truth."""

    accuracy: float
    balanced_accuracy: float
    macro_f1: float
    recall: list[float]
    confusion: list[list[int]]


def measure(labels: Ints, predictions: Ints, classes: int) -> Metrics:
    """Metrics of predictions [m] against labels [m], both in 0 ... K - 1; every class must be among the labels."""
    names = list(range(classes))
    confusion = confusion_matrix(labels, predictions, labels=names)
    return Metrics(
        accuracy=float(accuracy_score(labels, predictions)),
        balanced_accuracy=float(balanced_accuracy_score(labels, predictions)),
        macro_f1=float(f1_score(labels, predictions, labels=names, average="macro", zero_division=0)),
        recall=(confusion.diagonal() / confusion.sum(1)).tolist(),
        confusion=confusion.tolist(),
    )


def interval(
    labels: Ints, predictions: Ints, groups: tuple[str, ...], classes: int, resamples: int = 1000
) -> tuple[float, float]:
    """Bootstrap 95 % interval of the balanced accuracy, averaged over runs: predictions [S, m].

    Whole groups (people) are drawn with replacement, for the images of one person are not independent. A class that a
    resample does not hold is left out of that resample's mean.
    """
    names, group = np.unique(np.array(groups), return_inverse=True)
    many, runs = len(names), len(predictions)
    total = np.zeros((many, classes))  # [G, K] samples
    np.add.at(total, (group, labels), 1)
    right = np.zeros((runs, many, classes))  # [S, G, K] samples that were recognised
    for run, predicted in enumerate(predictions):
        np.add.at(right[run], (group, labels), predicted == labels)
    right_on_average = right.mean(0)  # [G, K]
    rng = np.random.default_rng(0)
    scores = np.empty(resamples)
    for resample in range(resamples):
        drawn = rng.multinomial(many, np.full(many, 1 / many)).astype(float)  # [G] times drawn
        seen = drawn @ total  # [K]
        scores[resample] = ((drawn @ right_on_average)[seen > 0] / seen[seen > 0]).mean()
    low, high = np.percentile(scores, [2.5, 97.5])
    return float(low), float(high)
