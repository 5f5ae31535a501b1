"""Configuration: dataclasses -> YAML -> key=value, strict, never mutated.

The dataclasses below are the schema. Each field carries its help text. `free=True` marks fields that do not change the
result of a run (speed, logging, number of processes). All other fields together are the identity of a run: a run folder
cannot be resumed with another identity.
"""

import dataclasses
import difflib
import hashlib
import io
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from simfle.errors import UserError
from simfle.layers import check_keys, complete, fields, flatten, read_yaml, texts_as_written, typed, unfit

log = logging.getLogger(__name__)
T = TypeVar("T")
CONFIGS = (Path(__file__).parent / "configs").resolve()  # in a checkout a symlink, in a wheel a copy


def option(
    default: Any, text: str, *, free: bool = False, words: dict[str, Any] | None = None, path: bool = False
) -> Any:
    """Make a dataclass field with its help text.

    Args:
        default: default value, or a function that makes it.
        text: help text.
        free: whether the value may change when a run is resumed.
        words: names for some of the values, such as auto for -1.
        path: whether the field holds paths, in which ~ is expanded.
    """
    metadata = {"help": text, "free": free, "words": words or {}, "path": path}
    if callable(default):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class DataConfig:
    shards: list[str] = option(list, "shard folders or URLs", free=True, path=True)
    splits: list[str] = option(lambda: ["train"], "splits to train on (empty = all)")
    backend: str = option("auto", "auto (dali with a GPU, otherwise opencv), opencv or dali", free=True)
    threads: int = option(0, "decoding threads per process (0 = cores / local processes)", free=True)
    prefetch: int = option(2, "prefetched batches per process", free=True)
    streams: int = option(64, "canonical streams (uses the greatest common divisor with the global batch)")
    window: int = option(16384, "shuffle window in samples of a stream")
    max_damaged: float = option(
        0.001,
        "maximum fraction of corrupt samples before the run stops (0 = none allowed, otherwise at least 10 samples)",
        free=True,
    )
    cache: str = option(
        "", "cache folder for shards from URLs, on a local disk (empty = ~/.cache/simfle/shards)", free=True, path=True
    )
    cache_gb: float = option(50.0, "maximum size of the cache folder in GB, for all processes of a machine", free=True)
    streaming: bool = option(
        False, "stream tars without an index or a cache, such as data.shards=['https://host/{000..099}.tar']"
    )


@dataclass(frozen=True)
class ViewsConfig:
    size: int = option(224, "side of the two augmented views in pixels")
    face_size: int = option(112, "side of the unaugmented face in pixels")
    scale: list[float] = option(lambda: [0.08, 1.0], "range of the crop's fraction of the image area")
    ratio: list[float] = option(lambda: [3 / 4, 4 / 3], "range of the crop's aspect ratio (width / height)")
    flip: float = option(0.5, "probability of a horizontal flip")
    jitter: float = option(0.8, "probability of color jitter")
    brightness: float = option(0.8, "brightness factor drawn from [1 - b, 1 + b]")
    contrast: float = option(0.8, "contrast factor drawn from [1 - c, 1 + c]")
    saturation: float = option(0.8, "saturation factor drawn from [1 - s, 1 + s]")
    hue: float = option(0.2, "hue shift drawn from [-h, h] turns")
    greyscale: float = option(0.2, "probability of grayscale")
    sigma: list[float] = option(lambda: [0.1, 2.0], "range of the Gaussian blur's sigma in pixels; always applied")


@dataclass(frozen=True)
class FaceMAEConfig:
    enabled: bool = option(True, "enable the FaceMAE branch (false = BYOL with SimFLE's heads)")
    patch: int = option(16, "patch side in pixels (method mae takes its encoder from model.backbone)")
    width: int = option(768, "encoder width")
    depth: int = option(12, "encoder blocks")
    heads: int = option(12, "encoder attention heads")
    decoder_width: int = option(512, "decoder width")
    decoder_depth: int = option(8, "decoder blocks")
    decoder_heads: int = option(16, "decoder attention heads")
    mask_ratio: float = option(0.75, "fraction of masked patches")
    attend: bool = option(
        False, "let the decoder attend to the feature maps of both views: the reconstruction loss trains the backbone"
    )
    masking: str = option("semantic", "semantic (by the backbone's channels) or random, at the same cost; mae: random")


@dataclass(frozen=True)
class ContrastConfig:
    temperature: float = option(0.2, "temperature of SimCLR, MoCo and SwAV")
    queue: int = option(65536, "queue size: keys of earlier batches that MoCo keeps as negatives")
    splits: int = option(
        4, "parts of a shuffled micro-batch in MoCo's key encoder, each with separate BatchNorm statistics"
    )
    prototypes: int = option(3000, "number of SwAV's prototypes")
    epsilon: float = option(0.05, "epsilon (entropy weight) of SwAV's Sinkhorn-Knopp")
    sinkhorn: int = option(3, "iterations of SwAV's Sinkhorn-Knopp")


@dataclass(frozen=True)
class VICRegConfig:
    invariance: float = option(25.0, "weight of VICReg's invariance loss")
    variance: float = option(25.0, "weight of VICReg's variance loss")
    covariance: float = option(1.0, "weight of VICReg's covariance loss")


@dataclass(frozen=True)
class ModelConfig:
    method: str = option("simfle", "simfle, byol, simsiam, simclr, moco, swav, vicreg or mae")
    backbone: str = option("resnet50", "timm model with a feature map (method mae: a timm ViT)")
    output_stride: int = option(
        0, "output stride: 8, 16, or 0 (network's default, 32); a smaller stride keeps more detail of small faces"
    )
    hidden: int = option(4096, "hidden width of the MLP heads")
    projection: int = option(256, "output width of the MLP heads")
    bottleneck: int = option(512, "hidden width of SimSiam's predictor")
    momentum: float = option(0.99, "EMA momentum of the target network")
    momentum_schedule: str = option("constant", "constant, or cosine from model.momentum to 1 over the run")
    groups: int = option(32, "channel groups of the semantic masking")
    grouping: str = option(
        "repaired", "repaired (groups separate) or reference (the paper's initialization: groups collapse)"
    )
    distillation: str = option(
        "reference",
        "reference (the paper's, which constant heads minimize) or predict (each view predicts FaceMAE's mean token, "
        "standardized; no gradient to FaceMAE)",
    )
    alpha: float = option(0.3, "weight of the distillation loss")
    beta: float = option(0.03, "weight of the grouping loss")
    temperature: float = option(4.0, "temperature of the distillation loss")
    facemae: FaceMAEConfig = option(FaceMAEConfig, "the masked autoencoder")
    contrast: ContrastConfig = option(ContrastConfig, "settings of the methods with negatives or prototypes")
    vicreg: VICRegConfig = option(VICRegConfig, "weights of VICReg's losses")
    recompute: bool = option(
        False, "activation checkpointing: less memory, one more forward pass, the same results", free=True
    )
    compile: bool = option(
        False,
        "torch.compile for backbones and FaceMAE: takes minutes at the start, then faster; not at ZeRO stage 3",
        free=True,
    )
    mean: list[float] = option(lambda: [0.5795, 0.4522, 0.3957], "channel means of normalization, in [0, 1]")
    std: list[float] = option(lambda: [0.2769, 0.2473, 0.2412], "channel deviations of normalization, in [0, 1]")


@dataclass(frozen=True)
class OptimConfig:
    name: str = option("sgd", "sgd, adamw or lars (lars needs train.zero_stage=0)")
    lr: float = option(0.05, "learning rate for a global batch of 256; scaled linearly with the global batch")
    momentum: float = option(0.9, "momentum of sgd and lars")
    betas: list[float] = option(lambda: [0.9, 0.95], "betas of adamw")
    weight_decay: float = option(1e-4, "weight decay, applied to every parameter unless decay_norms is false")
    decay_norms: bool = option(True, "apply weight decay to norms, biases and tokens as well")
    predictor_rate: float = option(1.0, "learning rate factor of the predictor (BYOL, SimFLE, SimSiam)")
    trust: float = option(0.001, "trust coefficient of lars")
    warmup_steps: int = option(0, "linear warm-up in steps, before the cosine")
    clip: float = option(0.0, "maximum gradient norm (0 = no clipping)")


@dataclass(frozen=True)
class TrainConfig:
    run: str = option("runs/simfle", "run folder", free=True, path=True)
    seed: int = option(0, "seed of initialization, sample order, views and groups")
    epochs: float = option(100.0, "length of the run in epochs, if steps is 0")
    steps: int = option(0, "length of the run in optimizer steps (0 = from epochs)")
    global_batch: int = option(256, "samples per optimizer step, over all processes")
    micro_batch: int = option(
        0,
        "samples per forward pass of one process (0 = global batch / processes; auto = the most that fit into GPU "
        "memory, found by trial; the global batch is unchanged)",
        free=True,
        words={"auto": -1},
    )
    zero_stage: int = option(
        -1,
        "DeepSpeed ZeRO stage, 0 to 3 (auto = 0 if parameters, gradients and optimizer fit eight times into the "
        "memory of a process, otherwise 2)",
        free=True,
        words={"auto": -1},
    )
    precision: str = option("bf16", "bf16 (autocast; parameters, BatchNorm, EMA and optimizer stay fp32) or fp32")
    sync_statistics: bool = option(False, "synchronize BatchNorm and grouping statistics across processes")
    device: str = option("auto", "auto, cpu or cuda", free=True)
    timeout: float = option(
        600.0,
        "seconds without progress before a hanging run exits and reports the processes it waits for (0 = never)",
        free=True,
    )
    deterministic: bool = option(
        False,
        "use deterministic GPU kernels, slower: a resumed run has the losses of an uninterrupted run (always the case "
        "on a CPU)",
        free=True,
    )
    stop_after: int = option(0, "save and exit after this step, schedule unchanged (0 = run to the end)", free=True)
    log_every: int = option(10, "steps between log lines", free=True)
    images_every: int = option(500, "steps between images of masks and reconstructions (0 = none)", free=True)
    checkpoint_every: int = option(500, "steps between checkpoints", free=True)
    keep: int = option(2, "number of complete checkpoints to keep", free=True)
    checkpoint_bandwidth: float = option(
        0.0, "maximum background write rate of checkpoints in MB/s (0 = no limit)", free=True
    )
    record_samples: bool = option(False, "write ids and checksums of all consumed samples to RUN/samples", free=True)
    profile: bool = option(False, "trace some steps to RUN/profile, for https://ui.perfetto.dev", free=True)
    profile_steps: list[int] = option(lambda: [3, 5], "first and last traced step, counted from this start", free=True)
    profile_ranks: list[int] = option(lambda: [0], "ranks of the traced processes", free=True)


@dataclass(frozen=True)
class MonitorConfig:
    shards: list[str] = option(list, "folders of labeled shards for probes during training", free=True, path=True)
    every: int = option(0, "steps between probes, kNN and linear (0 = none)", free=True)
    fit_split: str = option("train", "split for fitting the probes", free=True)
    val_split: str = option("val", "split for measuring the probes", free=True)
    samples: int = option(5000, "number of images for fitting the probes, sampled once", free=True)
    seconds: float = option(120.0, "maximum seconds that training waits for a probe before it is abandoned", free=True)


@dataclass(frozen=True)
class PretrainConfig:
    """Configuration of a pretraining run, filled from `configs/pretrain/*.yaml` and key=value arguments."""

    data: DataConfig = option(DataConfig, "samples")
    views: ViewsConfig = option(ViewsConfig, "augmentation")
    model: ModelConfig = option(ModelConfig, "method and networks")
    optim: OptimConfig = option(OptimConfig, "optimizer and schedule")
    train: TrainConfig = option(TrainConfig, "training loop")
    monitor: MonitorConfig = option(MonitorConfig, "probes of the features during training")


def load(schema: type[T], file: Path | None, overrides: Sequence[str] = ()) -> T:
    """Build a frozen `schema` from its defaults, a YAML file and `key=value` overrides, in this order.

    Raises:
        UserError: missing file, invalid YAML, unknown key (with the nearest known key), wrong type.
    """
    # Imported here: `--help` must not wait for OmegaConf and PyYAML.
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    for text in overrides:
        if "=" not in text:
            raise UserError(f"config: {text!r} is not key=value. Fix: write it like train.seed=1.")
    layers = []
    try:
        if file is not None:
            file = packaged(file)
            layers.append((str(file), OmegaConf.load(io.StringIO(texts_as_written(schema, read_yaml(file))))))
    except FileNotFoundError:
        raise UserError(_missing(file)) from None
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, TypeError, RecursionError, OSError) as error:
        raise UserError(f"config: cannot read {file}: {error}") from None
    layers.append(("command line", typed(schema, overrides)))
    merged = OmegaConf.structured(schema)
    for place, layer in layers:
        if not OmegaConf.is_dict(layer):
            raise UserError(f"config: {place}: a list or a bare value, not keys with values")
        check_keys(schema, layer, place)
        complete(schema, layer)
        try:
            merged = OmegaConf.merge(merged, layer)
        except OmegaConfBaseException as error:
            raise UserError(f"config: {place}: {unfit(schema, layer, error)}") from None
    try:
        return cast(T, OmegaConf.to_object(merged))
    except OmegaConfBaseException as error:  # unresolved or circular reference
        raise UserError(f"config: {str(error).splitlines()[0]} ({error.full_key})") from None


def read_plain(file: Path) -> dict[str, Any]:
    """Read a YAML file without a schema, such as the configuration of a run of another version of this program.

    Raises:
        UserError: missing file, invalid YAML, or values other than text, numbers, lists and keys; also see `load`.
    """
    import yaml

    try:
        found = yaml.safe_load(read_yaml(file))
        json.dumps(found)  # refuses dates, sets and circular structures
    except FileNotFoundError:
        raise UserError(f"config: {file} does not exist") from None
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, LookupError, RecursionError, OSError) as error:
        raise UserError(f"config: {file} is corrupt: {error!r}") from None
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise UserError(f"config: {file} is corrupt: no keys")
    return found


def packaged(file: Path) -> Path:
    """Return `file`, or the bundled config of the same name if `file` is missing and its path is configs/..."""
    if file.exists() or not file.parts or file.parts[0] != "configs":
        return file
    ours = CONFIGS.joinpath(*file.parts[1:])
    if ours.is_file():
        log.warning("config: %s not found; using the bundled config %s", file, ours)
        return ours
    return file


def _missing(file: Path | None) -> str:
    """Make the message for a missing configuration file, with the nearest bundled one."""
    ours = [str(Path("configs") / path.relative_to(CONFIGS)) for path in sorted(CONFIGS.rglob("*.yaml"))]
    near = difflib.get_close_matches(str(file), ours, n=1, cutoff=0.6)
    return f"config: {file} does not exist; " + (f"did you mean {near[0]}?" if near else f"see {CONFIGS}")


def identity(config: Any) -> dict[str, Any]:
    """Return the values that identify a run: every leaf that is not marked free."""
    free = {name for name, field in fields(type(config)) if field.metadata.get("free")}
    return {key: value for key, value in flatten(dataclasses.asdict(config)).items() if key not in free}


def digest(config: Any) -> str:
    """Return 16 hexadecimal digits that identify the non-free values of a config."""
    text = json.dumps(identity(config), sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def helps(schema: Any) -> dict[str, str]:
    """Return the help text of every leaf field, by dotted name."""
    return {name: str(field.metadata.get("help", "")) for name, field in fields(schema)}
