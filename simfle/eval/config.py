"""What an evaluation is told. `configs/eval/*.yaml` and key=value arguments fill it."""

# ruff: noqa: RUF009 - option() is a dataclass field
from dataclasses import dataclass
from pathlib import Path

from simfle.config import option
from simfle.errors import UserError

PROTOCOLS = ("linear", "knn")


@dataclass(frozen=True)
class EvalConfig:
    """Defaults are the published linear probe (`linear`) and InstDisc's weighted kNN (`knn`)."""

    shards: list[str] = option(list, "folders of labelled shards, each with a manifest.json")
    train_split: str = option("train", "split that classifiers are fitted on")
    test_split: str = option("test", "split that they are measured on, once, after the last epoch")
    min_class_count: int = option(1, "classes with fewer images in both splits together are left out")
    backbones: list[str] = option(list, "backbone.safetensors files, each with its backbone.json")
    random: bool = option(True, "also evaluate a randomly initialised backbone of each shape, one per seed")
    calibrate: bool = option(
        True, "give random backbones the BatchNorm statistics of the training images; false: leave them at 0 and 1"
    )
    protocols: list[str] = option(lambda: list(PROTOCOLS), "linear, knn")
    seeds: list[int] = option(lambda: [0], "seeds of the linear classifier and of the random backbones")
    size: int = option(0, "side of the images, pixels; 0: the size of the views that the backbone was trained on")
    epochs: int = option(100, "linear: epochs")
    batch: int = option(1024, "linear: samples per step; at most the training images")
    lr: float = option(0.5, "linear: learning rate for a batch of 256, constant; scaled linearly with the batch")
    momentum: float = option(0.9, "linear: momentum of SGD")
    augment: bool = option(True, "linear: random crops and flips in each epoch; false: features are computed once")
    scale: list[float] = option(lambda: [0.08, 1.0], "linear: range of the crop's share of the image area")
    standardise: bool = option(
        False, "linear: give each feature mean 0 and deviation 1 over the training images first; not in the paper"
    )
    k: int = option(20, "knn: neighbours")
    temperature: float = option(0.07, "knn: votes weigh exp(cosine / temperature)")
    resamples: int = option(1000, "bootstrap resamples of the 95 % interval, by person where known")
    forward_batch: int = option(256, "images per forward pass of the backbone")
    device: str = option("auto", "auto, cpu or cuda")
    threads: int = option(0, "decoding threads; 0: as many as cores")
    out: str = option("results.json", "the file of results")


def check(config: EvalConfig) -> None:
    """Raise a UserError that names the first field out of its range."""
    for field in ("min_class_count", "epochs", "batch", "k", "resamples", "forward_batch"):
        if getattr(config, field) < 1:
            raise UserError(f"{field}: {getattr(config, field)} must be at least 1")
    if config.size < 0 or config.threads < 0:
        raise UserError("size, threads: must be 0 or more")
    if config.lr <= 0 or config.temperature <= 0:
        raise UserError("lr, temperature: must be more than 0")
    if config.device not in ("auto", "cpu", "cuda"):
        raise UserError(f"device: {config.device!r} is unknown; there are: auto, cpu, cuda")
    if not config.backbones:
        raise UserError("backbones: none given; pass --run RUN, --backbone FILE or backbones=[FILE]")
    if not config.seeds or not config.protocols:
        raise UserError("seeds, protocols: at least one of each is needed")
    for name in config.protocols:
        if name not in PROTOCOLS:
            raise UserError(f"protocols: {name!r} is unknown; there are: {', '.join(PROTOCOLS)}")
    if config.train_split == config.test_split:
        raise UserError(f"test_split: {config.test_split!r} is the training split too; name another one")
    if Path(config.out).is_dir():
        raise UserError(f"out: {config.out} is a folder; name a file such as {Path(config.out) / 'results.json'}")
