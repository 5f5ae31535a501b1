"""Valence and arousal from frozen features: ridge regression in closed form."""

# n samples, C channels
import torch
from torch import Tensor

from simfle.eval.analysis import metrics
from simfle.eval.analysis.results import AFFECT
from simfle.eval.data.targets import affect
from simfle.eval.protocols.base import ModelSelection, ProtocolInputs, ProtocolResult
from simfle.eval.protocols.linear_fast import FeatureScaling


def run(job: ProtocolInputs) -> ProtocolResult:
    """Fit with each ridge strength and select by the mean concordance on validation."""
    splits = job.splits.train, job.splits.val, job.splits.test
    rows, values = zip(*(affect(split) for split in splits), strict=True)
    x, on_val, on_test = (job.features(split.only(chosen)) for split, chosen in zip(splits, rows, strict=True))
    scale = FeatureScaling.of(x)
    solve = Ridge(scale(x).double(), torch.from_numpy(values[0]).to(x.device))
    metric = metrics.MAIN[AFFECT]
    choice = ModelSelection(metric)
    for strength in job.config.affect.ridge_alphas:
        weight, bias = solve(strength)
        guess_val, guess_test = (
            (scale(features).double() @ weight + bias).clamp(-1, 1).cpu().numpy() for features in (on_val, on_test)
        )
        scores = [metrics.measure(AFFECT, *pair)[metric] for pair in ((values[1], guess_val), (values[2], guess_test))]
        choice.update({"ridge": strength}, scores[0], scores[1], guess_test)
    return choice.outcome(values[2], rows[2])


class Ridge:
    """Solve min |X W + b - Y|^2 / n + strength |W|^2 for many strengths with one eigendecomposition of X^T X / n."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.mean_x, self.mean_y = x.mean(0), y.mean(0)
        centered = x - self.mean_x
        self.values, self.vectors = torch.linalg.eigh(centered.T @ centered / len(x))  # [C], [C, C]
        self.projected = self.vectors.T @ (centered.T @ (y - self.mean_y)) / len(x)  # [C, T]

    def __call__(self, strength: float) -> tuple[Tensor, Tensor]:
        """Return weights [C, T] and biases [T]."""
        weight = self.vectors @ (self.projected / (self.values.clamp_min(0) + strength)[:, None])
        return weight, self.mean_y - self.mean_x @ weight
