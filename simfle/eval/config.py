"""Configuration of an evaluation, from `configs/eval/*.yaml` and key=value arguments."""

# ruff: noqa: RUF009 - option() is a dataclass field
from dataclasses import dataclass

from simfle.config.schema import config_field
from simfle.errors import UserError


@dataclass(frozen=True)
class LinearConfig:
    """Published linear probe: random crops and flips in each epoch, constant learning rate, unnormalized features."""

    epochs: int = config_field(100, "epochs")
    batch: int = config_field(1024, "batch size, at most the number of training images")
    lr: float = config_field(0.5, "constant learning rate for a batch of 256; scaled linearly with the batch size")
    momentum: float = config_field(0.9, "SGD momentum")
    scale: list[float] = config_field(lambda: [0.08, 1.0], "crop area range, as fractions of the image area")


@dataclass(frozen=True)
class LinearFastConfig:
    """Fast linear probe: features computed once, all learning rates and weight decays trained in parallel."""

    epochs: int = config_field(100, "number of epochs, with a cosine schedule to 0")
    batch: int = config_field(256, "batch size, at most the number of training images")
    lrs: list[float] = config_field(lambda: [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0], "learning rates to select from")
    weight_decays: list[float] = config_field(lambda: [0.0, 1e-4, 1e-3, 1e-2], "weight decays to select from")
    momentum: float = config_field(0.9, "SGD momentum")


@dataclass(frozen=True)
class KnnConfig:
    """Weighted k-nearest neighbors; k is selected on validation."""

    ks: list[int] = config_field(lambda: [1, 5, 10, 20, 50, 100, 200], "numbers of neighbors to select from")
    temperature: float = config_field(0.07, "temperature of the vote weights exp(cosine / temperature)")


@dataclass(frozen=True)
class FinetuneConfig:
    """Fine-tuning of the whole network; the epoch is selected on validation."""

    epochs: int = config_field(30, "number of epochs, with a cosine schedule to 0")
    warmup_epochs: int = config_field(3, "number of linear warm-up epochs before the cosine schedule")
    batch: int = config_field(64, "batch size")
    lr: float = config_field(5e-4, "maximum learning rate, used for the classifier")
    layer_decay: float = config_field(0.75, "learning-rate factor per layer below the classifier")
    weight_decay: float = config_field(0.05, "AdamW weight decay, except for biases and normalization")
    smoothing: float = config_field(0.1, "label smoothing")
    balance: str = config_field(
        "sampling", "class balancing: sampling (classes equally often), weights (in the loss) or none"
    )
    scale: list[float] = config_field(lambda: [0.5, 1.0], "crop area range, as fractions of the image area")
    jitter: float = config_field(
        0.4, "color jitter j: brightness, contrast and saturation from [1 - j, 1 + j], hue up to j / 4 turns"
    )
    bf16: bool = config_field(True, "use bf16 autocast on a GPU")


@dataclass(frozen=True)
class LandmarkConfig:
    """Landmark regression from frozen feature maps."""

    epochs: int = config_field(100, "number of epochs, with a cosine schedule to 0")
    batch: int = config_field(64, "batch size")
    lrs: list[float] = config_field(lambda: [3e-4, 1e-3, 3e-3, 1e-2], "AdamW learning rates to select from")
    weight_decay: float = config_field(1e-4, "AdamW weight decay")


@dataclass(frozen=True)
class CamConfig:
    """Comparison of class activation maps with landmarks."""

    radius: float = config_field(0.1, "radius around a landmark, as a fraction of the side of the landmarks' box")


@dataclass(frozen=True)
class AffectConfig:
    """Regression of valence and arousal from frozen features."""

    ridge_alphas: list[float] = config_field(
        lambda: [1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0], "ridge strengths per training sample to select from"
    )


def _scratch() -> FinetuneConfig:
    """Return defaults for training from scratch: no layer decay, since no layer is pretrained, and more epochs."""
    return FinetuneConfig(epochs=100, warmup_epochs=5, lr=1e-3, layer_decay=1.0, scale=[0.3, 1.0])


@dataclass(frozen=True)
class EvalConfig:
    """Backbones, benchmarks, protocols and seeds of an evaluation."""

    benchmarks: list[str] = config_field(
        list,
        "names in configs/benchmarks or YAML files; NAME=FOLDER also gives the shards",
        is_path=True,
    )
    shards: list[str] = config_field(
        list, "shards of benchmarks that do not specify them; without benchmarks: the data to evaluate on", is_path=True
    )
    train_split: str = config_field("train", "without benchmarks: split to fit classifiers on")
    val_split: str = config_field(
        "", "without benchmarks: split for model selection (empty = held out from train_split)"
    )
    test_split: str = config_field("test", "without benchmarks: split to test on")
    val_fraction: float = config_field(
        0.1, "without benchmarks: fraction of train_split to hold out for model selection, by person"
    )
    min_class_count: int = config_field(
        1, "without benchmarks: minimum number of images of a class in all splits; rarer classes are excluded"
    )
    backbones: list[str] = config_field(
        list,
        "backbone.safetensors files, or sources of third-party weights (simfle/eval/backbones/external.py)",
        is_path=True,
    )
    random_baseline: bool = config_field(
        True, "also evaluate a randomly initialized backbone of each shape, one per seed"
    )
    recalibrate_bn: str = config_field(
        "random", "backbones whose BatchNorm statistics are recomputed on the training images: random, all "
        "(pretraining used other images and views), or none"
    )  # fmt: skip
    protocols: list[str] = config_field(
        list, "linear, linear_fast, knn, finetune, scratch, landmarks, cam, affect, votes; NAME@0.01 trains on 1 % of "
        "the labels (empty = those of each benchmark)"
    )  # fmt: skip
    seeds: list[int] = config_field(lambda: [0], "seeds of classifiers, label subsets and random backbones")
    image_size: int = config_field(0, "side of the images in pixels (0 = size of the backbone's training views)")
    linear: LinearConfig = config_field(LinearConfig, "published linear probe")
    linear_fast: LinearFastConfig = config_field(LinearFastConfig, "linear_fast, and votes")
    knn: KnnConfig = config_field(KnnConfig, "nearest neighbors")
    finetune: FinetuneConfig = config_field(FinetuneConfig, "fine-tuning")
    scratch: FinetuneConfig = config_field(_scratch, "supervised training of a randomly initialized backbone")
    landmarks: LandmarkConfig = config_field(LandmarkConfig, "landmarks")
    cam: CamConfig = config_field(CamConfig, "class activation maps")
    affect: AffectConfig = config_field(AffectConfig, "valence and arousal")
    bootstrap_samples: int = config_field(1000, "number of bootstrap resamples for 95 % intervals, by person if known")
    forward_batch: int = config_field(256, "images per forward pass of a frozen backbone")
    device: str = config_field("auto", "auto, cpu or cuda")
    threads: int = config_field(0, "number of decoding threads (0 = cores divided by local processes)")
    decoder: str = config_field(
        "auto",
        "image decoder: opencv, dali, ffcv or auto (ffcv if it is installed and a beton exists, otherwise opencv)",
    )
    ffcv_files: list[str] = config_field(
        list,
        "betons of the splits (simfle shards ffcv), or their folders; those beside the shards are found automatically",
        is_path=True,
    )
    out: str = config_field(
        "eval", "output folder; its summary.json holds the table of all requested results", is_path=True
    )
    cache_dir: str = config_field(
        "", "folder of cached features, which can be deleted at any time (empty = OUT/features)", is_path=True
    )


def check(config: EvalConfig) -> None:
    """Raise UserError for the first field that is out of range."""

    def need(good: bool, field: str, what: str) -> None:
        if not good:
            value: object = config
            for name in field.split("."):
                value = getattr(value, name)
            raise UserError(f"{field}={value!r}: out of range. Fix: set it to {what}.")

    need(bool(config.out), "out", "a folder for the results")
    for field in ("min_class_count", "bootstrap_samples", "forward_batch"):
        need(getattr(config, field) >= 1, field, "at least 1")
    for field in ("image_size", "threads"):
        need(getattr(config, field) >= 0, field, "0 or more")
    for name in ("linear", "linear_fast", "finetune", "scratch", "landmarks"):
        part = getattr(config, name)
        need(part.epochs >= 1, f"{name}.epochs", "at least 1")
        need(part.batch >= 1, f"{name}.batch", "at least 1")
        if hasattr(part, "lrs"):
            need(min(part.lrs, default=0) > 0, f"{name}.lrs", "one or more numbers above 0")
        else:
            need(part.lr > 0, f"{name}.lr", "more than 0")
    for name in ("linear", "finetune", "scratch"):
        scale = getattr(config, name).scale
        need(len(scale) == 2 and 0 < scale[0] <= scale[1] <= 1, f"{name}.scale", "two fractions, 0 < low <= high <= 1")
    for name in ("linear", "linear_fast"):
        need(0 <= getattr(config, name).momentum < 1, f"{name}.momentum", "at least 0 and below 1")
    for name in ("finetune", "scratch"):
        part = getattr(config, name)
        need(part.balance in ("sampling", "weights", "none"), f"{name}.balance", "sampling, weights or none")
        need(part.batch >= 2, f"{name}.batch", "at least 2, for BatchNorm")
        need(0 < part.layer_decay <= 1, f"{name}.layer_decay", "above 0 and at most 1")
        need(0 <= part.smoothing < 1, f"{name}.smoothing", "at least 0 and below 1")
        need(0 <= part.jitter <= 1, f"{name}.jitter", "a number from 0 to 1")
    need(
        min(config.linear_fast.weight_decays, default=-1) >= 0,
        "linear_fast.weight_decays",
        "one or more numbers of at least 0",
    )
    need(min(config.knn.ks, default=0) >= 1, "knn.ks", "one or more numbers of at least 1")
    need(config.knn.temperature > 0, "knn.temperature", "more than 0")
    need(min(config.affect.ridge_alphas, default=0) > 0, "affect.ridge_alphas", "one or more numbers above 0")
    need(config.cam.radius > 0, "cam.radius", "more than 0")
    need(config.recalibrate_bn in ("random", "all", "none"), "recalibrate_bn", "random, all or none")
    need(config.decoder in ("auto", "opencv", "dali", "ffcv"), "decoder", "auto, opencv, dali or ffcv")
    need(config.device in ("auto", "cpu", "cuda"), "device", "auto, cpu or cuda")
    need(len(config.seeds) == len(set(config.seeds)) > 0, "seeds", "one or more distinct seeds")
    need(min(config.seeds) >= 0, "seeds", "seeds of at least 0")
    if not config.backbones:
        raise UserError("backbones=[]: empty. Fix: give --run RUN, --backbone FILE or backbones=[FILE].")
