"""Evaluate backbones: each beside a randomly initialised one of its shape, by each protocol, for each seed."""

# n training samples, m test samples, S seeds, C channels, K classes
import logging
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from simfle.errors import UserError
from simfle.eval import summary as results
from simfle.eval.backbones import Backbone, Card, calibrate, load_backbone, random_backbone
from simfle.eval.config import EvalConfig, check
from simfle.eval.features import Crop, Extractor
from simfle.eval.knn import knn
from simfle.eval.linear import Batches, Scaling, cached_batches, epoch_order, linear_probe
from simfle.eval.metrics import interval, measure
from simfle.eval.splits import Split, choose_classes, read_split
from simfle.provenance import git_revision, versions

log = logging.getLogger(__name__)

CALIBRATION = 1024  # training images that give a random backbone its BatchNorm statistics


@dataclass(frozen=True)
class Outcome:
    """Predictions of one backbone by one protocol: [S, m], one row a seed (one row alone where no seed matters)."""

    backbone: Backbone
    protocol: str
    seeds: list[int]
    predictions: np.ndarray


def evaluate(config: EvalConfig, command: list[str]) -> results.Results:
    """Run an evaluation and write `config.out` atomically. The same inputs give the same numbers on one machine.

    Raises:
        UserError: see `check`, `load_backbone`, `read_split`, `choose_classes`.
    """
    check(config)
    if config.device == "cuda" and not torch.cuda.is_available():
        raise UserError("device: cuda is asked for and torch sees no GPU; use device=cpu or mend the driver")
    _make_repeatable()
    backbones = [load_backbone(Path(path)) for path in config.backbones]  # before the hours, not after
    train = read_split(config.shards, config.train_split)
    test = read_split(config.shards, config.test_split)
    train, test, left_out = choose_classes(train, test, config.min_class_count)
    for name, count in left_out.items():
        log.warning(
            "class %s is left out: %d images are fewer than min_class_count=%d", name, count, config.min_class_count
        )
    for split in (train, test):
        if split.unlabelled:
            log.warning("split %s: %d images without a label are left out", split.name, split.unlabelled)
    outcomes: list[Outcome] = []
    for backbone in backbones:
        outcomes += _of_trained(backbone, train, test, config)
        if config.random and not _shape_done(backbone, outcomes):
            outcomes += _of_random(backbone, train, test, config)
    report = _collect(outcomes, train, test, left_out, config, command)
    results.write(Path(config.out), report)
    return report


def _make_repeatable() -> None:
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    cv2.setNumThreads(1)  # our own threads decode; OpenCV's would only fight with them


def _extractor(config: EvalConfig, size: int) -> Extractor:
    name = config.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    threads = config.threads or len(os.sched_getaffinity(0))
    return Extractor(size, config.forward_batch, torch.device(name), threads)


def _of_trained(backbone: Backbone, train: Split, test: Split, config: EvalConfig) -> Iterator[Outcome]:
    log.info("evaluating %s", backbone.file)
    for protocol, (seeds, predictions) in _protocols(backbone, train, test, config, config.seeds).items():
        yield Outcome(backbone, protocol, seeds, np.stack(predictions))


def _of_random(like: Backbone, train: Split, test: Split, config: EvalConfig) -> Iterator[Outcome]:
    """Another initialisation for each seed."""
    found: dict[str, list[np.ndarray]] = {}
    for seed in config.seeds:
        log.info("evaluating a randomly initialised %s, seed %d", like.card.name, seed)
        backbone = random_backbone(like.card, seed)
        if config.calibrate:
            _calibrate(backbone, train, config)
        for protocol, (_, predictions) in _protocols(backbone, train, test, config, [seed]).items():
            found.setdefault(protocol, []).extend(predictions)
    for protocol, predictions in found.items():
        yield Outcome(backbone, protocol, list(config.seeds), np.stack(predictions))


def _calibrate(backbone: Backbone, train: Split, config: EvalConfig) -> None:
    extractor = _extractor(config, config.size or backbone.card.size)
    backbone.module.to(extractor.device)
    calibrate(backbone, extractor.images(train, epoch_order(len(train), 0, 0)[:CALIBRATION]))


def _protocols(
    backbone: Backbone, train: Split, test: Split, config: EvalConfig, seeds: list[int]
) -> dict[str, tuple[list[int], list[np.ndarray]]]:
    """protocol -> (seeds, predictions [m] for each)."""
    extractor = _extractor(config, config.size or backbone.card.size)
    backbone.module.to(extractor.device)
    at_test = extractor.all(backbone, test)  # [m, C]
    labels = torch.from_numpy(train.labels).to(extractor.device)
    # Un-augmented training features: neighbours for kNN, and all the linear probe needs where it does not augment.
    whole = "knn" in config.protocols or not config.augment or config.standardise
    at_train = extractor.all(backbone, train) if whole else torch.empty(0)  # [n, C]
    scale = Scaling.of(at_train) if config.standardise else Scaling()
    classes = len(train.classes)
    found: dict[str, tuple[list[int], list[np.ndarray]]] = {}
    for protocol in dict.fromkeys(config.protocols):
        if protocol == "knn":  # nothing in it is drawn
            predicted = knn(at_train, labels, at_test, classes, config.k, config.temperature)
            found[protocol] = (seeds[:1], [predicted.cpu().numpy()])
            continue
        predictions = []
        for seed in seeds:
            if config.augment:
                batches = _augmented(extractor, backbone, train, labels, scale, config, seed)
            else:
                batches = cached_batches(scale(at_train), labels, config.batch, seed)
            layer = linear_probe(batches, backbone.card.features, classes, len(train), config, seed)
            with torch.no_grad():
                predictions.append(layer(scale(at_test)).argmax(1).cpu().numpy())
        found[protocol] = (list(seeds), predictions)
    return found


def _augmented(
    extractor: Extractor,
    backbone: Backbone,
    train: Split,
    labels: Tensor,
    scale: Scaling,
    config: EvalConfig,
    seed: int,
) -> Batches:
    """Batches of features of randomly cropped and flipped images, fresh ones in every epoch."""
    share = (config.scale[0], config.scale[1])

    def batches(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        order = epoch_order(len(train), seed, epoch)
        crop = Crop(seed, epoch, share)
        for start in range(0, len(order), config.batch):
            rows = order[start : start + config.batch]
            features = torch.cat(list(extractor.features(backbone, train, rows, crop)))  # [b, C]
            yield scale(features), labels[torch.from_numpy(rows)]

    return batches


def _shape_done(backbone: Backbone, outcomes: list[Outcome]) -> bool:
    """Whether a random backbone of this shape is there already: one is enough for the online and the target network."""

    def shape(card: Card) -> tuple:
        return card.name, card.size, card.mean, card.std

    return any(o.backbone.file is None and shape(o.backbone.card) == shape(backbone.card) for o in outcomes)


def _collect(
    outcomes: list[Outcome], train: Split, test: Split, left_out: dict[str, int], config: EvalConfig, command: list[str]
) -> results.Results:
    classes = len(train.classes)
    rows, summary = [], []
    for outcome in outcomes:
        card, file = outcome.backbone.card, outcome.backbone.file
        about = {
            "backbone": str(file) if file else f"random {card.name}",
            "kind": card.network if file else "random",
            "model": card.name,
            "protocol": outcome.protocol,
        }
        metrics = [measure(test.labels, predicted, classes) for predicted in outcome.predictions]
        for seed, predicted, found in zip(outcome.seeds, outcome.predictions, metrics, strict=True):
            bounds = interval(test.labels, predicted[None], test.groups, classes, config.resamples)
            rows.append({**about, "seed": seed, "interval": list(bounds), **asdict(found)})
        balanced = np.array([found.balanced_accuracy for found in metrics])
        bounds = interval(test.labels, outcome.predictions, test.groups, classes, config.resamples)
        summary.append(
            {
                **about,
                "seeds": len(metrics),
                "balanced_accuracy": float(balanced.mean()),
                "spread": float(balanced.std(ddof=1)) if len(balanced) > 1 else 0.0,
                "interval": list(bounds),
                "accuracy": float(np.mean([found.accuracy for found in metrics])),
                "macro_f1": float(np.mean([found.macro_f1 for found in metrics])),
            }
        )
    data = {
        "classes": list(train.classes),
        "left_out": left_out,
        "train": {
            "split": train.name,
            "samples": len(train),
            "people": _people(train),
            "counts": _counts(train),
        },
        "test": {"split": test.name, "samples": len(test), "people": _people(test), "counts": _counts(test)},
        "chance": 1 / classes,
    }
    return results.Results(command, asdict(config), versions(), git_revision(), data, rows, summary)


def _people(split: Split) -> int | None:
    """How many people (or films) a split shows; None where the shards do not say."""
    return len(set(split.groups)) if split.groups != split.keys else None


def _counts(split: Split) -> list[int]:
    return np.bincount(split.labels, minlength=len(split.classes)).tolist()
