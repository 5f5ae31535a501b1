"""Vote distributions (FERPlus): softmax regression on frozen features, fitted to the votes of ten annotators."""

# n samples, K classes
import torch

from simfle.eval.analysis import metrics
from simfle.eval.analysis.results import VOTES
from simfle.eval.data.targets import votes
from simfle.eval.protocols.base import ModelSelection, ProtocolInputs, ProtocolResult
from simfle.eval.protocols.linear_fast import FeatureScaling, candidates, fit, predict


def run(job: ProtocolInputs) -> ProtocolResult:
    """Fit all candidates of the fast probe to the votes and select by cross-entropy on validation."""
    splits, config = (job.splits.train, job.splits.val, job.splits.test), job.config.linear_fast
    rows, values = zip(*(votes(split) for split in splits), strict=True)
    x, on_val, on_test = (job.features(split.only(chosen)) for split, chosen in zip(splits, rows, strict=True))
    scale = FeatureScaling.of(x)
    targets = torch.from_numpy(values[0]).to(x.device, x.dtype)
    weight, bias = fit(scale(x), targets, config, job.seed)
    guess_val, guess_test = (
        predict(scale(features), weight, bias).double().cpu().numpy() for features in (on_val, on_test)
    )  # [R, n, K]
    metric = metrics.MAIN[VOTES]
    choice = ModelSelection(metric, lower=True)
    for place, (lr, decay) in enumerate(candidates(config)):
        scores = [
            metrics.measure(VOTES, truth, found[place])[metric]
            for truth, found in ((values[1], guess_val), (values[2], guess_test))
        ]
        choice.update({"lr": lr, "weight_decay": decay}, scores[0], scores[1], guess_test[place])
    return choice.outcome(values[2], rows[2])
