"""Fine-tuning of the whole network with lower learning rates for lower layers. `scratch` starts from random weights.

The optimizer is AdamW with linear warm-up and a cosine schedule. Crops, flips and colors are a pure function of (seed,
epoch, sample id). The epoch is selected on validation. An interrupted task starts from the beginning.
"""

# n training samples, b of a batch, C channels, K classes
import copy
import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn
from torch.nn import functional as F

from simfle.data.philox import key, philox, uniform
from simfle.errors import UserError
from simfle.eval.backbones.load import LoadedBackbone
from simfle.eval.config import FinetuneConfig
from simfle.eval.data.splits import Split
from simfle.eval.features.extractor import Augment
from simfle.eval.protocols.base import ModelSelection, ProtocolInputs, ProtocolResult
from simfle.eval.protocols.linear import epoch_order

BALANCE = 17  # stream of the random numbers, see simfle.data.philox


def run(job: ProtocolInputs) -> ProtocolResult:
    """Train, and evaluate complete images after every epoch."""
    parts = job.splits
    config: FinetuneConfig = getattr(job.config, job.split_config)
    model = Classifier(job.backbone, job.classes, job.seed).to(job.extractor.device)
    optimizer = torch.optim.AdamW(parameter_groups(model, config))
    steps = max(1, len(parts.train) // config.batch)
    balance = _class_weights(parts.train).to(job.extractor.device) if config.balance == "weights" else None
    choice = ModelSelection(job.metric)
    for epoch in range(config.epochs):
        _train(model, optimizer, job, config, epoch, steps, balance)
        if not all(torch.isfinite(each).all() for each in model.state_dict().values()):
            raise UserError(
                f"{job.split_config}.lr={config.lr}: the weights are not finite after epoch {epoch + 1}. "
                f"Fix: lower {job.split_config}.lr, or export the backbone again if its weights are not finite."
            )
        on_val, on_test = (_predict(model, job, split) for split in (parts.val, parts.test))
        scores = job.score(parts.val, on_val), job.score(parts.test, on_test)
        choice.update({"epoch": epoch + 1}, *scores, on_test)
    return choice.outcome(parts.test.labels)


class Classifier(nn.Module):
    """A trainable copy of a backbone and a linear layer: images [b, 3, H, W] uint8 -> logits [b, K]."""

    def __init__(self, backbone: LoadedBackbone, classes: int, seed: int) -> None:
        super().__init__()
        self.backbone = copy.deepcopy(backbone.module).requires_grad_(True)
        self.head = nn.Linear(backbone.card.features, classes)
        with torch.no_grad():
            self.head.weight.normal_(0, 0.01, generator=torch.Generator().manual_seed(seed))
            self.head.bias.zero_()

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.backbone(images))


def parameter_groups(model: Classifier, config: FinetuneConfig) -> list[dict[str, Any]]:
    """Return parameter groups for AdamW: `lr_scale` is layer_decay ** (layers above), 1 for the classifier.

    Vectors have no weight decay. Layers are timm's: the stem, and each block.
    """
    network = model.backbone.network
    groups = param_groups_layer_decay(network, weight_decay=config.weight_decay, layer_decay=config.layer_decay)
    for group in groups:
        group["lr_scale"] *= config.layer_decay  # the classifier is above all of them
        group.pop("param_names", None)
    for part, decay in ((model.head.weight, config.weight_decay), (model.head.bias, 0.0)):
        groups.append({"params": [part], "weight_decay": decay, "lr_scale": 1.0})
    return [{**group, "lr": config.lr * group["lr_scale"]} for group in groups]


def lr_factor(step: int, steps: int, config: FinetuneConfig) -> float:
    """Return the learning-rate factor of a step, with `steps` steps per epoch: linear warm-up, then cosine to 0."""
    warm, total = config.warmup_epochs * steps, config.epochs * steps
    if step < warm:
        return (step + 1) / warm
    return 0.5 + 0.5 * math.cos(math.pi * (step - warm) / max(1, total - warm))


def draw_epoch(train: Split, balanced: bool, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return positions [n] of an epoch's training samples: each sample once, or classes equally often (samples
    repeat)."""
    if not balanced:
        return epoch_order(len(train), seed, epoch)
    counter = np.zeros((len(train), 4), np.uint32)
    counter[:, 0], counter[:, 1] = np.arange(len(train)), epoch
    words = uniform(philox(counter, key(seed, BALANCE)))  # [n, 4]
    members = [np.nonzero(train.labels == label)[0] for label in range(len(train.classes))]
    chosen = np.floor(words[:, 0] * len(members)).astype(np.int64)
    return np.array(
        [members[label][int(word * len(members[label]))] for label, word in zip(chosen, words[:, 1], strict=True)]
    )


def _train(
    model: Classifier,
    optimizer: torch.optim.Optimizer,
    job: ProtocolInputs,
    config: FinetuneConfig,
    epoch: int,
    steps: int,
    balance: Tensor | None,
) -> None:
    """Train one epoch."""
    train, device = job.splits.train, job.extractor.device
    order = draw_epoch(train, config.balance == "sampling", job.seed, epoch)[: steps * config.batch]
    labels = torch.from_numpy(train.labels[order]).to(device)
    augment = Augment(job.seed, epoch, (config.scale[0], config.scale[1]), config.jitter)
    model.train()
    images = job.extractor.images(train.source, train.rows[order], augment, config.batch)
    for number, (batch, truth) in enumerate(zip(images, labels.split(config.batch), strict=True)):
        factor = lr_factor(epoch * steps + number, steps, config)
        for group in optimizer.param_groups:
            group["lr"] = config.lr * group["lr_scale"] * factor
        with torch.autocast(device.type, torch.bfloat16, enabled=config.bf16 and device.type == "cuda"):
            logits = model(batch)
        loss = F.cross_entropy(logits.float(), truth, weight=balance, label_smoothing=config.smoothing)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def _predict(model: Classifier, job: ProtocolInputs, split: Split) -> NDArray[np.int64]:
    """Predict the classes [n] of a split from complete images."""
    model.eval()
    with torch.no_grad():
        found = [model(images).argmax(1) for images in job.extractor.images(split.source, split.rows)]
    return torch.cat(found).cpu().numpy()


def _class_weights(train: Split) -> Tensor:
    """Return weights [K], inverse to the counts, with mean 1 over the samples."""
    counts = np.bincount(train.labels, minlength=len(train.classes))
    return torch.from_numpy(len(train) / (len(counts) * counts)).float()
