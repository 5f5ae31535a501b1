"""Has a run collapsed, and what do its features know? On a validation split: ranks, spread, kNN and a linear probe.

python examples/effective_rank.py SHARDS runs/mine ... [random:runs/mine] [step:120=runs/mine]

The probes are fitted on training images, with their settings chosen on a tenth of those; the validation split is
measured once. The test split is not read. random:RUN is a network of RUN's shape with its initial weights.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from simfle import collapse
from simfle.config import PretrainConfig, load
from simfle.eval import fast, knn
from simfle.eval.backbones import Backbone, Card, calibrate, frozen
from simfle.eval.config import FastConfig
from simfle.eval.features import Extractor
from simfle.eval.splits import Split, read_split
from simfle.models.methods import build_method

FIT = 8000  # training images that the probes are fitted on
FAST = FastConfig(epochs=40, lrs=[0.003, 0.01, 0.03, 0.1, 0.3], decays=[0.0, 1e-3, 1e-2])


def network_of(run: Path, random: bool) -> tuple[nn.Module, PretrainConfig]:
    """The run's online backbone after its last checkpoint, or as it began."""
    config = load(PretrainConfig, run / "config.yaml")
    torch.manual_seed(config.train.seed)
    model = build_method(config.model, config.views)
    if not random:
        newest = sorted(run.glob("checkpoints/step-*"))[-1] / "model.safetensors"
        model.load_state_dict(load_file(newest), strict=False)
    return model.online.backbone, config  # type: ignore[union-attr, return-value]


def accuracies(fit: Tensor, labels: Tensor, val: Tensor, wanted: Tensor) -> tuple[float, float]:
    """Of the linear probe and of kNN on validation features; their settings are chosen on a tenth of `fit`."""
    held = torch.arange(len(fit)) % 10 == 0
    scale = fast.Scaling.of(fit[~held])
    classes = int(labels.max()) + 1
    weight, bias = fast.fit(scale(fit[~held]), torch.eye(classes)[labels[~held]], FAST, 0)
    best = (fast.predict(scale(fit[held]), weight, bias).argmax(2) == labels[held]).float().mean(1).argmax()
    linear = (fast.predict(scale(val), weight, bias)[best].argmax(1) == wanted).float().mean()
    found = {}
    for k in (5, 10, 20, 50, 100, 200):
        chosen = knn.vote(*knn.neighbours(fit[~held], fit[held], k), labels[~held], classes, k, 0.07)
        found[k] = float((chosen == labels[held]).float().mean())
    k = max(found, key=lambda each: found[each])
    near = knn.vote(*knn.neighbours(fit, val, k), labels, classes, k, 0.07)
    return float(linear), float((near == wanted).float().mean())


def main(shards: str, names: list[str]) -> None:
    train, val = read_split([shards], "train"), read_split([shards], "val")
    fit = train.only(np.sort(np.random.default_rng(0).permutation(len(train))[:FIT]))
    print(f"{'run':40} rank  of   rankme  spread  linear    kNN")
    for name in names:
        random = name.startswith("random:")
        network, config = network_of(Path(name.removeprefix("random:")), random)
        model, size = config.model, config.views.size
        channels = int(network.num_features)  # type: ignore[arg-type]
        card = Card(model.backbone, "online", channels, tuple(model.mean), tuple(model.std), size, {})
        backbone = Backbone(frozen(network, card), card)
        extractor = Extractor(size, 256, torch.device("cpu"), 1)
        if random:
            calibrate(backbone, extractor.images(fit.source, fit.rows[:2000]))

        def features(split: Split, backbone: Backbone = backbone, extractor: Extractor = extractor) -> Tensor:
            return torch.cat(list(extractor.features(backbone, split)))

        of_fit, of_val = features(fit), features(val)
        linear, near = accuracies(of_fit, torch.from_numpy(fit.labels), of_val, torch.from_numpy(val.labels))
        print(
            f"{name[-40:]:40} {collapse.effective_rank(of_val):4.1f} {channels:4} {collapse.rankme(of_val):7.1f} "
            f"{collapse.spread(of_val):7.3f} {100 * linear:6.1f} {100 * near:6.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
