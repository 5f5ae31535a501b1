"""Configuration of an evaluation, from `configs/eval/*.yaml` and key=value arguments."""

# ruff: noqa: RUF009 - config_field() is a dataclass field
from dataclasses import dataclass

from simfle.config.schema import config_field
from simfle.config.validate import validate
from simfle.errors import UserError


@dataclass(frozen=True)
class LinearConfig:
    """Published linear probe: random crops and flips in each epoch, constant learning rate, unnormalized features."""

    epochs: int = config_field(100, "epochs", min=1)
    batch: int = config_field(1024, "batch size, at most the number of training images", min=1)
    lr: float = config_field(
        0.5, "constant learning rate for a batch of 256; scaled linearly with the batch size", above=0
    )
    momentum: float = config_field(0.9, "SGD momentum", min=0, below=1)
    scale: list[float] = config_field(
        lambda: [0.08, 1.0], "crop area range, as fractions of the image area", length=2, ascending=True, above=0, max=1
    )


@dataclass(frozen=True)
class LinearFastConfig:
    """Fast linear probe: features are computed once; all learning rates and weight decays are trained in parallel."""

    epochs: int = config_field(100, "number of epochs, with a cosine schedule to 0", min=1)
    batch: int = config_field(256, "batch size, at most the number of training images", min=1)
    lrs: list[float] = config_field(
        lambda: [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0], "learning rates to select from", nonempty=True, above=0
    )
    weight_decays: list[float] = config_field(
        lambda: [0.0, 1e-4, 1e-3, 1e-2], "weight decays to select from", nonempty=True, min=0
    )
    momentum: float = config_field(0.9, "SGD momentum", min=0, below=1)


@dataclass(frozen=True)
class KnnConfig:
    """Weighted k-nearest neighbors; k is selected on validation."""

    ks: list[int] = config_field(
        lambda: [1, 5, 10, 20, 50, 100, 200], "numbers of neighbors to select from", nonempty=True, min=1
    )
    temperature: float = config_field(0.07, "temperature of the vote weights exp(cosine / temperature)", above=0)


@dataclass(frozen=True)
class FinetuneConfig:
    """Fine-tuning of the whole network; the epoch is selected on validation."""

    epochs: int = config_field(30, "number of epochs, with a cosine schedule to 0", min=1)
    warmup_epochs: int = config_field(3, "number of linear warm-up epochs before the cosine schedule")
    batch: int = config_field(64, "batch size", min=2)
    lr: float = config_field(5e-4, "maximum learning rate, used for the classifier", above=0)
    layer_decay: float = config_field(0.75, "learning-rate factor per layer below the classifier", above=0, max=1)
    weight_decay: float = config_field(0.05, "AdamW weight decay, except for biases and normalization")
    smoothing: float = config_field(0.1, "label smoothing", min=0, below=1)
    balance: str = config_field(
        "sampling",
        "class balancing: sampling (classes equally often), weights (in the loss) or none",
        choices=("sampling", "weights", "none"),
    )
    scale: list[float] = config_field(
        lambda: [0.5, 1.0], "crop area range, as fractions of the image area", length=2, ascending=True, above=0, max=1
    )
    jitter: float = config_field(
        0.4,
        "color jitter j: brightness, contrast and saturation from [1 - j, 1 + j], hue up to j / 4 turns",
        min=0,
        max=1,
    )
    bf16: bool = config_field(True, "use bf16 autocast on a GPU")


@dataclass(frozen=True)
class LandmarkConfig:
    """Landmark regression from frozen feature maps."""

    epochs: int = config_field(100, "number of epochs, with a cosine schedule to 0", min=1)
    batch: int = config_field(64, "batch size", min=1)
    lrs: list[float] = config_field(
        lambda: [3e-4, 1e-3, 3e-3, 1e-2], "AdamW learning rates to select from", nonempty=True, above=0
    )
    weight_decay: float = config_field(1e-4, "AdamW weight decay")


@dataclass(frozen=True)
class CamConfig:
    """Comparison of class activation maps with landmarks."""

    radius: float = config_field(
        0.1, "radius around a landmark, as a fraction of the side of the landmarks' box", above=0
    )


@dataclass(frozen=True)
class AffectConfig:
    """Regression of valence and arousal from frozen features."""

    ridge_alphas: list[float] = config_field(
        lambda: [1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0],
        "ridge strengths per training sample to select from",
        nonempty=True,
        above=0,
    )


def _scratch() -> FinetuneConfig:
    """Return defaults for training from scratch: no layer decay, because no layer is pretrained, and more epochs."""
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
        0.1, "without benchmarks: fraction of train_split to hold out for model selection, by person", above=0, max=0.5
    )
    min_class_count: int = config_field(
        1, "without benchmarks: minimum number of images of a class in all splits; rarer classes are excluded", min=1
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
        "(pretraining used other images and views), or none", choices=("random", "all", "none")
    )  # fmt: skip
    protocols: list[str] = config_field(
        list, "linear, linear_fast, knn, finetune, scratch, landmarks, cam, affect, votes; NAME@0.01 trains on 1 % of "
        "the labels (empty = those of each benchmark)"
    )  # fmt: skip
    seeds: list[int] = config_field(
        lambda: [0], "seeds of classifiers, label subsets and random backbones", nonempty=True, distinct=True, min=0
    )
    image_size: int = config_field(0, "side of the images in pixels (0 = size of the backbone's training views)", min=0)
    linear: LinearConfig = config_field(LinearConfig, "published linear probe")
    linear_fast: LinearFastConfig = config_field(LinearFastConfig, "linear_fast, and votes")
    knn: KnnConfig = config_field(KnnConfig, "nearest neighbors")
    finetune: FinetuneConfig = config_field(FinetuneConfig, "fine-tuning")
    scratch: FinetuneConfig = config_field(_scratch, "supervised training of a randomly initialized backbone")
    landmarks: LandmarkConfig = config_field(LandmarkConfig, "landmarks")
    cam: CamConfig = config_field(CamConfig, "class activation maps")
    affect: AffectConfig = config_field(AffectConfig, "valence and arousal")
    bootstrap_samples: int = config_field(
        1000, "number of bootstrap resamples for 95 % intervals, by person if known", min=1
    )
    forward_batch: int = config_field(256, "images per forward pass of a frozen backbone", min=1)
    device: str = config_field("auto", "auto, cpu or cuda", choices=("auto", "cpu", "cuda"))
    threads: int = config_field(0, "number of decoding threads (0 = cores divided by local processes)", min=0)
    decoder: str = config_field(
        "auto",
        "image decoder: opencv, dali, ffcv or auto (ffcv if it is installed and a beton exists, otherwise opencv)",
        choices=("auto", "opencv", "dali", "ffcv"),
    )
    ffcv_files: list[str] = config_field(
        list,
        "betons of the splits (simfle shards ffcv), or their folders; betons beside the shards are found automatically",
        is_path=True,
    )
    out: str = config_field(
        "eval", "output folder; its summary.json holds the table of all requested results", is_path=True, nonempty=True
    )
    cache_dir: str = config_field(
        "", "folder of cached features, which can be deleted at any time (empty = OUT/features)", is_path=True
    )


def check(config: EvalConfig) -> None:
    """Raise UserError for values out of range, or an evaluation without backbones."""
    validate(config, unused=("val_fraction",) if config.benchmarks else ())
    if not config.backbones:
        raise UserError("backbones=[]: empty. Fix: pass --run RUN, --backbone FILE or backbones=[FILE].")
