"""What an evaluation is told. `configs/eval/*.yaml` and key=value arguments fill it."""

# ruff: noqa: RUF009 - option() is a dataclass field
from dataclasses import dataclass

from simfle.config import option
from simfle.errors import UserError


@dataclass(frozen=True)
class LinearConfig:
    """The published linear probe: random crops and flips in each epoch, a constant step, the features as they are."""

    epochs: int = option(100, "epochs")
    batch: int = option(1024, "samples per step; at most the training images")
    lr: float = option(0.5, "learning rate for a batch of 256, constant; scaled linearly with the batch")
    momentum: float = option(0.9, "momentum of SGD")
    scale: list[float] = option(lambda: [0.08, 1.0], "range of the crop's share of the image area")


@dataclass(frozen=True)
class FastConfig:
    """The fast linear probe: features computed once, all learning rates and weight decays trained at once."""

    epochs: int = option(100, "epochs, with a cosine to 0")
    batch: int = option(256, "samples per step; at most the training images")
    lrs: list[float] = option(lambda: [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0], "learning rates to choose from")
    decays: list[float] = option(lambda: [0.0, 1e-4, 1e-3, 1e-2], "weight decays to choose from")
    momentum: float = option(0.9, "momentum of SGD")


@dataclass(frozen=True)
class KnnConfig:
    """Weighted k nearest neighbours; k is chosen on validation."""

    ks: list[int] = option(lambda: [1, 5, 10, 20, 50, 100, 200], "numbers of neighbours to choose from")
    temperature: float = option(0.07, "votes weigh exp(cosine / temperature)")


@dataclass(frozen=True)
class FinetuneConfig:
    """Training of the whole network; the epoch is chosen on validation."""

    epochs: int = option(30, "epochs, with a cosine to 0")
    warmup: int = option(3, "epochs of linear warm-up before the cosine")
    batch: int = option(64, "samples per step")
    lr: float = option(5e-4, "largest learning rate, of the classifier")
    layer_decay: float = option(0.75, "each layer below the classifier learns so much slower than the one above it")
    weight_decay: float = option(0.05, "weight decay of AdamW, not on biases and normalisation")
    smoothing: float = option(0.1, "label smoothing")
    balance: str = option("sampling", "classes: sampling (each drawn equally often), weights (in the loss) or none")
    scale: list[float] = option(lambda: [0.5, 1.0], "range of the crop's share of the image area")
    jitter: float = option(
        0.4, "brightness, contrast and saturation are drawn from [1 - j, 1 + j]; hue from j / 4 turns"
    )
    bf16: bool = option(True, "bf16 autocast, on a GPU")


@dataclass(frozen=True)
class LandmarkConfig:
    """Landmarks from frozen feature maps."""

    epochs: int = option(100, "epochs, with a cosine to 0")
    batch: int = option(64, "samples per step")
    lrs: list[float] = option(lambda: [3e-4, 1e-3, 3e-3, 1e-2], "learning rates of AdamW to choose from")
    weight_decay: float = option(1e-4, "weight decay of AdamW")


@dataclass(frozen=True)
class CamConfig:
    """Class activation maps against landmarks."""

    radius: float = option(0.1, "what counts as near a landmark: so much of the side of the landmarks' box")


@dataclass(frozen=True)
class AffectConfig:
    """Valence and arousal from frozen features."""

    ridges: list[float] = option(
        lambda: [1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0], "strengths of the ridge, per training sample, to choose from"
    )


def _scratch() -> FinetuneConfig:
    """Nothing is learnt yet that a lower layer should keep, and it takes longer."""
    return FinetuneConfig(epochs=100, warmup=5, lr=1e-3, layer_decay=1.0, scale=[0.3, 1.0])


@dataclass(frozen=True)
class EvalConfig:
    """Which backbones, on which benchmarks, by which protocols, with which seeds."""

    benchmarks: list[str] = option(
        list,
        "names in configs/benchmarks or YAML files of one's own; NAME=FOLDER says where its shards are",
        path=True,
    )
    shards: list[str] = option(
        list, "shards of benchmarks that do not name theirs; without benchmarks: one's own", path=True
    )
    train_split: str = option("train", "without benchmarks: split that classifiers are fitted on")
    val_split: str = option("", "without benchmarks: split that choices are made on; empty: cut from train_split")
    test_split: str = option("test", "without benchmarks: split that they are measured on")
    val_share: float = option(0.1, "without benchmarks: share of train_split that is cut off for choices, by person")
    min_class_count: int = option(1, "without benchmarks: classes with fewer images in all splits are left out")
    backbones: list[str] = option(
        list, "backbone.safetensors files, or sources of other people's weights (simfle/eval/foreign.py)", path=True
    )
    random: bool = option(True, "also evaluate a randomly initialised backbone of each shape, one per seed")
    calibrate: str = option(
        "random", "whose BatchNorm gets the statistics of the training images: that of random backbones, of all "
        "(pretraining's were of other images and views), or none"
    )  # fmt: skip
    protocols: list[str] = option(
        list, "linear, linear_fast, knn, finetune, scratch, landmarks, cam, affect, votes; NAME@0.01 trains on 1 % of "
        "the labels; empty: those of each benchmark"
    )  # fmt: skip
    seeds: list[int] = option(lambda: [0], "seeds of classifiers, subsets of labels and random backbones")
    size: int = option(0, "side of the images, pixels; 0: the size of the views that the backbone was trained on")
    linear: LinearConfig = option(LinearConfig, "the published linear probe")
    fast: FastConfig = option(FastConfig, "linear_fast, and votes")
    knn: KnnConfig = option(KnnConfig, "nearest neighbours")
    finetune: FinetuneConfig = option(FinetuneConfig, "fine-tuning")
    scratch: FinetuneConfig = option(_scratch, "supervised training of a randomly initialised backbone")
    landmarks: LandmarkConfig = option(LandmarkConfig, "landmarks")
    cam: CamConfig = option(CamConfig, "class activation maps")
    affect: AffectConfig = option(AffectConfig, "valence and arousal")
    resamples: int = option(1000, "bootstrap resamples of 95 % intervals, by person where known")
    forward_batch: int = option(256, "images per forward pass of a frozen backbone")
    device: str = option("auto", "auto, cpu or cuda")
    threads: int = option(0, "decoding threads; 0: the cores divided by the local processes")
    loader: str = option(
        "auto", "what decodes images: opencv, dali or ffcv; auto: ffcv where there is a beton and ffcv, else opencv"
    )
    betons: list[str] = option(
        list,
        "betons of the splits (simfle shards beton) or folders of them; those beside the shards are found anyway",
        path=True,
    )
    out: str = option(
        "eval", "folder of the results; summary.json in it is the table of all that were asked for", path=True
    )
    cache: str = option(
        "", "folder of computed features, which may be removed at any time; empty: OUT/features", path=True
    )


def check(config: EvalConfig) -> None:
    """Raise a UserError that names the first field out of its range."""

    def need(good: bool, field: str, what: str) -> None:
        if not good:
            value: object = config
            for name in field.split("."):
                value = getattr(value, name)
            raise UserError(f"{field}: {value!r} must be {what}")

    need(bool(config.out), "out", "a folder for the results")
    for field in ("min_class_count", "resamples", "forward_batch"):
        need(getattr(config, field) >= 1, field, "at least 1")
    for field in ("size", "threads"):
        need(getattr(config, field) >= 0, field, "0 or more")
    for name in ("linear", "fast", "finetune", "scratch", "landmarks"):
        part = getattr(config, name)
        need(part.epochs >= 1, f"{name}.epochs", "at least 1")
        need(part.batch >= 1, f"{name}.batch", "at least 1")
        if hasattr(part, "lrs"):
            need(min(part.lrs, default=0) > 0, f"{name}.lrs", "numbers above 0, at least one")
        else:
            need(part.lr > 0, f"{name}.lr", "more than 0")
    for name in ("linear", "finetune", "scratch"):
        scale = getattr(config, name).scale
        need(len(scale) == 2 and 0 < scale[0] <= scale[1] <= 1, f"{name}.scale", "two shares, 0 < low <= high <= 1")
    for name in ("linear", "fast"):
        need(0 <= getattr(config, name).momentum < 1, f"{name}.momentum", "at least 0 and below 1")
    for name in ("finetune", "scratch"):
        part = getattr(config, name)
        need(part.balance in ("sampling", "weights", "none"), f"{name}.balance", "sampling, weights or none")
        need(part.batch >= 2, f"{name}.batch", "at least 2, for BatchNorm")
        need(0 < part.layer_decay <= 1, f"{name}.layer_decay", "above 0 and at most 1")
        need(0 <= part.smoothing < 1, f"{name}.smoothing", "at least 0 and below 1")
        need(0 <= part.jitter <= 1, f"{name}.jitter", "0 to 1")
    need(min(config.fast.decays, default=-1) >= 0, "fast.decays", "numbers from 0 on, at least one")
    need(min(config.knn.ks, default=0) >= 1, "knn.ks", "numbers from 1 on, at least one")
    need(config.knn.temperature > 0, "knn.temperature", "more than 0")
    need(min(config.affect.ridges, default=0) > 0, "affect.ridges", "numbers above 0, at least one")
    need(config.cam.radius > 0, "cam.radius", "more than 0")
    need(config.calibrate in ("random", "all", "none"), "calibrate", "random, all or none")
    need(config.loader in ("auto", "opencv", "dali", "ffcv"), "loader", "auto, opencv, dali or ffcv")
    need(config.device in ("auto", "cpu", "cuda"), "device", "auto, cpu or cuda")
    need(len(config.seeds) == len(set(config.seeds)) > 0, "seeds", "at least one, each once")
    need(min(config.seeds) >= 0, "seeds", "0 or more")
    if not config.backbones:
        raise UserError("backbones: none given; pass --run RUN, --backbone FILE or backbones=[FILE]")
