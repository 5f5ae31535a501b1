"""Measure whether a run has collapsed: ranks, spread, kNN and a linear probe on a validation split.

python examples/effective_rank.py SHARDS runs/mine ... [random:runs/mine]

The probes are fitted on training images, and their settings are selected on a tenth of these images. The validation
split is measured once, and the test split is not read. random:RUN is RUN's network with its initial weights.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from simfle.config.schema import PretrainConfig, load
from simfle.eval.backbones.load import BackboneMetadata, LoadedBackbone, frozen, recalibrate_batchnorm
from simfle.eval.data.splits import Split, read_split
from simfle.eval.features.extractor import Extractor
from simfle.models import collapse_metrics
from simfle.models.registry import build_method
from simfle.train.telemetry.probe_monitor import accuracies

FIT = 8000  # training images to fit the probes on


def network_of(run: Path, random: bool) -> tuple[nn.Module, PretrainConfig]:
    """Return the run's online backbone from its last checkpoint, or with its initial weights."""
    config = load(PretrainConfig, run / "config.yaml")
    torch.manual_seed(config.train.seed)
    model = build_method(config.model, config.views)
    if not random:
        newest = sorted(run.glob("checkpoints/step-*"))[-1] / "model.safetensors"
        model.load_state_dict(load_file(newest), strict=False)
    return model.online.backbone, config  # type: ignore[union-attr, return-value]


def main(shards: str, names: list[str]) -> None:
    train, val = read_split([shards], "train"), read_split([shards], "val")
    fit = train.only(np.sort(np.random.default_rng(0).permutation(len(train))[:FIT]))
    print(f"{'run':40} rank  of   rankme  spread  linear    kNN")
    for name in names:
        random = name.startswith("random:")
        network, config = network_of(Path(name.removeprefix("random:")), random)
        model, size = config.model, config.views.size
        channels = int(network.num_features)  # type: ignore[arg-type]
        colors = tuple(model.mean), tuple(model.std)
        card = BackboneMetadata(
            model.backbone, "online", channels, *colors, size, {}, output_stride=model.output_stride
        )
        backbone = LoadedBackbone(frozen(network, card), card)
        extractor = Extractor(size, 256, torch.device("cpu"), 1)
        if random:
            recalibrate_batchnorm(backbone, extractor.images(fit.source, fit.rows[:2000]))

        def features(split: Split, backbone: LoadedBackbone = backbone, extractor: Extractor = extractor) -> Tensor:
            return torch.cat(list(extractor.features(backbone, split)))

        of_fit, of_val = features(fit), features(val)
        linear, near = accuracies(of_fit, torch.from_numpy(fit.labels), of_val, torch.from_numpy(val.labels))
        print(
            f"{name[-40:]:40} {collapse_metrics.effective_rank(of_val):4.1f} {channels:4} "
            f"{collapse_metrics.rankme(of_val):7.1f} "
            f"{collapse_metrics.spread(of_val):7.3f} {100 * linear:6.1f} {100 * near:6.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
