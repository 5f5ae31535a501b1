"""Inputs and outputs of all protocols, and the protocols by name."""

# m test samples, K classes
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from simfle.errors import UserError
from simfle.eval.analysis import metrics
from simfle.eval.analysis.metrics import Values
from simfle.eval.analysis.results import AFFECT, CAM, CLASSES, LANDMARKS, VOTES
from simfle.eval.backbones.load import LoadedBackbone
from simfle.eval.config import EvalConfig
from simfle.eval.data.folds import FoldSplits
from simfle.eval.data.splits import Split
from simfle.eval.features.extractor import Extractor
from simfle.eval.probe import LinearProbe


@dataclass(frozen=True)
class ProtocolInputs:
    """Inputs of one classifier (or regressor) to fit and test: `splits` of one fold, with one seed.

    weights: digest of the backbone's tensors, the key of its cached features; split_config: section of the
    configuration for the protocol; metric: metric of the benchmark.
    """

    backbone: LoadedBackbone
    weights: str
    splits: FoldSplits
    config: EvalConfig
    split_config: str
    metric: str
    seed: int
    extractor: Extractor
    points: list[int]
    normalizer: tuple[list[int], list[int]]

    @property
    def classes(self) -> int:
        """Number of classes K."""
        return len(self.splits.train.classes)

    def features(self, split: Split) -> Tensor:
        """Return features [n, C] of a split, unaugmented, on the device."""
        return self.extractor.pooled(self.backbone, split, self.weights)

    def score(self, split: Split, predictions: NDArray[np.int64]) -> float:
        """Return the benchmark's metric of predicted classes [n]."""
        return metrics.measure(CLASSES, split.labels, predictions, self.classes)[self.metric]


@dataclass(frozen=True)
class ProtocolResult:
    """Outputs of one fit. labels, predictions: [m, ...], see `results.Samples`.

    test_rows: mask of the test samples [m] that have a label of this kind (None = all); chosen: the selection on
    validation; best_on_test: the best candidate on test; probe: to keep, with its calibration error on test.
    """

    labels: Values
    predictions: Values
    chosen: dict[str, Any]
    best_on_test: dict[str, Any] | None = None
    test_rows: NDArray[np.int64] | None = None
    probe: LinearProbe | None = None
    calibration_error: float = math.nan


@dataclass
class ModelSelection:
    """Best epoch or candidate on validation, whose predictions are used, and the best one on the test samples.

    If candidates are equal, the first is selected. metric: name of the metric; lower: whether lower values are better.
    """

    metric: str
    lower: bool = False
    chosen: dict[str, Any] = field(default_factory=dict)
    on_test: dict[str, Any] = field(default_factory=dict)
    predictions: Values = field(default_factory=lambda: np.empty(0))

    def update(self, what: dict[str, Any], on_val: float, on_test: float, predictions: Values) -> None:
        """Add a candidate: its description, its scores and its predictions of the test samples [m, ...]."""
        if self._beats(on_val, self.chosen):
            self.chosen, self.predictions = {**what, self.metric: on_val}, predictions
        if self._beats(on_test, self.on_test):
            self.on_test = {**what, self.metric: on_test}

    def _beats(self, score: float, best: dict[str, Any]) -> bool:
        if not best or math.isnan(best[self.metric]):  # any candidate beats one that diverged
            return True
        return score < best[self.metric] if self.lower else score > best[self.metric]

    def outcome(self, labels: Values, kept: NDArray[np.int64] | None = None) -> ProtocolResult:
        """Return the result to report."""
        return ProtocolResult(labels, self.predictions, self.chosen, self.on_test, kept)


@dataclass(frozen=True)
class Protocol:
    """Evaluation protocol. kind: type of prediction; module: a file with `run(job) -> ProtocolResult`.

    part: section of the configuration; seeded: whether a seed has an effect when all labels are used.
    """

    kind: str
    module: str
    part: str
    seeded: bool = True

    def run(self, job: ProtocolInputs) -> ProtocolResult:
        """Fit and test."""
        function: Callable[[ProtocolInputs], ProtocolResult] = import_module(f"simfle.eval.protocols.{self.module}").run
        return function(job)


PROTOCOLS = {
    "linear": Protocol(CLASSES, "linear", "linear"),
    "linear_fast": Protocol(CLASSES, "linear_fast", "linear_fast"),
    "knn": Protocol(CLASSES, "knn", "knn", seeded=False),
    "finetune": Protocol(CLASSES, "finetune", "finetune"),
    "scratch": Protocol(CLASSES, "finetune", "scratch"),
    "landmarks": Protocol(LANDMARKS, "landmarks", "landmarks"),
    "cam": Protocol(CAM, "cam", "cam"),
    "affect": Protocol(AFFECT, "valence_arousal", "affect", seeded=False),
    "votes": Protocol(VOTES, "label_distribution", "linear_fast"),
}
"""scratch is `finetune` of a randomly initialized backbone, with its own settings."""


def parse(word: str) -> tuple[str, float]:
    """Parse finetune@0.01 to ("finetune", 0.01). Raises UserError for an unknown protocol or a fraction outside of (0,
    1]."""
    name, _, text = word.partition("@")
    if name not in PROTOCOLS:
        raise UserError(f"protocols={name}: unknown. Fix: choose from {', '.join(PROTOCOLS)}.")
    try:
        share = float(text) if text else 1.0
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise UserError(
            f"protocols={word}: the fraction of labels is out of range. Fix: choose more than 0 and at most 1."
        )
    return name, share
