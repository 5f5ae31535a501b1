"""Configuration: dataclasses -> YAML -> key=value, strict, never mutated.

The dataclasses below are the schema. Each field carries its help text and its limits, which `simfle.config.validate`
checks. `resume_safe=True` marks fields that do not change the result of a run (speed, logging, number of processes).
All other fields together are the identity of a run: a run folder cannot be resumed with another identity.
"""

import dataclasses
import difflib
import io
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from shards.io.hashing import digest
from simfle.config.parsing import (
    absolute_source,
    check_keys,
    describe_type_error,
    fields,
    flatten,
    normalize_values,
    parse_overrides,
    read_yaml,
    texts_as_written,
)
from simfle.config.validate import Limits
from simfle.errors import UserError

log = logging.getLogger(__name__)
T = TypeVar("T")
METHODS = ("simfle", "byol", "simsiam", "simclr", "moco", "mocov3", "swav", "vicreg", "mae", "dino", "care", "fra")
CONFIGS = (Path(__file__).parents[1] / "configs").resolve()  # in a checkout a symlink, in a wheel a copy


def config_field(
    default: Any,
    text: str,
    *,
    resume_safe: bool = False,
    aliases: dict[str, Any] | None = None,
    is_path: bool = False,
    **limits: Any,
) -> Any:
    """Define a dataclass field with its help text and its limits.

    Args:
        default: default value, or a function that returns it.
        text: help text.
        resume_safe: whether the value may change when a run is resumed.
        aliases: names for some of the values, such as auto for -1.
        is_path: whether the field holds paths, in which ~ is expanded.
        limits: accepted values, as in `simfle.config.validate.Limits`: min, max, above, below, choices, length, ...
    """
    metadata = {"help": text, "resume_safe": resume_safe, "aliases": aliases or {}, "is_path": is_path}
    metadata["limits"] = Limits(**limits)
    if callable(default):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class DataConfig:
    shards: list[str] = config_field(list, "shard folders or URLs", resume_safe=True, is_path=True)
    splits: list[str] = config_field(lambda: ["train"], "splits to train on (empty = all)")
    backend: str = config_field(
        "auto",
        "auto (dali with a GPU, otherwise opencv), opencv or dali",
        resume_safe=True,
        choices=("auto", "opencv", "dali"),
    )
    decode_threads: int = config_field(
        0, "decoding threads per process (0 = cores / local processes)", resume_safe=True, min=0
    )
    prefetch_batches: int = config_field(2, "prefetched batches per process", resume_safe=True, min=1)
    canonical_streams: int = config_field(
        64, "canonical streams (uses the greatest common divisor with the global batch)", min=1
    )
    shuffle_window: int = config_field(16384, "shuffle window in samples of a stream", min=1)
    max_corrupt_fraction: float = config_field(
        0.001,
        "maximum fraction of corrupt samples before the run stops (0 = none allowed, otherwise at least 10 samples)",
        resume_safe=True,
        min=0,
        max=1,
    )
    cache_dir: str = config_field(
        "",
        "cache folder for shards from URLs, on a local disk (empty = ~/.cache/simfle/shards)",
        resume_safe=True,
        is_path=True,
    )
    cache_gb: float = config_field(
        50.0, "maximum size of the cache folder in GB, for all processes of a machine", resume_safe=True, above=0
    )
    resampled: bool = config_field(
        False, "stream tars without an index or a cache, such as data.shards=['https://host/{000..099}.tar']"
    )
    pair: str = config_field(
        "image",
        "source of view 2: image (the image of view 1), or clip (another frame of its clip, if its metadata name one)",
        choices=("image", "clip"),
    )
    pair_window: float = config_field(
        0.0, "maximum distance of the two frames of data.pair=clip in frames (0 = the whole clip)", min=0
    )


@dataclass(frozen=True)
class ViewsConfig:
    size: int = config_field(224, "side of the two augmented views in pixels", min=1)
    face_size: int = config_field(
        112, "side of the unaugmented face in pixels", min=1, rule="a multiple of `model.facemae.patch_size`"
    )
    scale: list[float] = config_field(
        lambda: [0.08, 1.0], "range of the crop's fraction of the image area", length=2, ascending=True, above=0, max=1
    )
    ratio: list[float] = config_field(
        lambda: [3 / 4, 4 / 3], "range of the crop's aspect ratio (width / height)", length=2, ascending=True, above=0
    )
    flip_prob: float = config_field(0.5, "probability of a horizontal flip", min=0, max=1)
    color_jitter_prob: float = config_field(0.8, "probability of color jitter", min=0, max=1)
    brightness: float = config_field(0.8, "brightness factor drawn from [1 - b, 1 + b]", min=0)
    contrast: float = config_field(0.8, "contrast factor drawn from [1 - c, 1 + c]", min=0)
    saturation: float = config_field(0.8, "saturation factor drawn from [1 - s, 1 + s]", min=0)
    hue: float = config_field(0.2, "hue shift drawn from [-h, h] turns", min=0, max=0.5)
    grayscale_prob: float = config_field(0.2, "probability of grayscale", min=0, max=1)
    blur_sigma: list[float] = config_field(
        lambda: [0.1, 2.0],
        "range of the Gaussian blur's sigma in pixels; always applied",
        length=2,
        ascending=True,
        above=0,
    )


@dataclass(frozen=True)
class FaceMAEConfig:
    enabled: bool = config_field(True, "enable the FaceMAE branch (false = BYOL with SimFLE's heads)")
    patch_size: int = config_field(16, "patch side in pixels (method mae takes its encoder from model.backbone)", min=1)
    embed_dim: int = config_field(768, "encoder width", min=1, rule="a multiple of its heads and of 4")
    depth: int = config_field(12, "encoder blocks", min=1)
    num_heads: int = config_field(12, "encoder attention heads", min=1)
    decoder_embed_dim: int = config_field(512, "decoder width", min=1, rule="a multiple of its heads and of 4")
    decoder_depth: int = config_field(8, "decoder blocks", min=1)
    decoder_num_heads: int = config_field(16, "decoder attention heads", min=1)
    mask_ratio: float = config_field(
        0.75, "fraction of masked patches", rule="leaves at least one patch visible and one masked"
    )
    cross_attention: bool = config_field(
        False, "let the decoder attend to both views' feature maps, so that the reconstruction loss trains the backbone"
    )
    masking: str = config_field(
        "semantic",
        "semantic (by the backbone's channels) or random, at the same cost; mae: random",
        choices=("semantic", "random"),
    )


@dataclass(frozen=True)
class ContrastiveConfig:
    temperature: float = config_field(0.2, "temperature of SimCLR, MoCo, MoCo v3 and SwAV", above=0)
    queue_size: int = config_field(65536, "queue size: keys of earlier batches that MoCo keeps as negatives", min=1)
    shuffle_bn_splits: int = config_field(
        4, "parts of a shuffled micro-batch in MoCo's key encoder, each with separate BatchNorm statistics", min=1
    )
    prototypes: int = config_field(3000, "number of SwAV's prototypes", min=1)
    # exp(score / epsilon) overflows below 0.025
    sinkhorn_epsilon: float = config_field(
        0.05, "epsilon (entropy weight) of SwAV's and FRA's Sinkhorn-Knopp", min=0.025
    )
    sinkhorn_iterations: int = config_field(3, "iterations of SwAV's and FRA's Sinkhorn-Knopp", min=1)


@dataclass(frozen=True)
class VICRegConfig:
    invariance: float = config_field(25.0, "weight of VICReg's invariance loss")
    variance: float = config_field(25.0, "weight of VICReg's variance loss")
    covariance: float = config_field(1.0, "weight of VICReg's covariance loss")


@dataclass(frozen=True)
class DINOConfig:
    prototypes: int = config_field(65536, "number of DINO's prototypes, the outputs of its head", min=1)
    student_temperature: float = config_field(0.1, "temperature of DINO's student", above=0)
    teacher_temperature: float = config_field(0.04, "temperature of DINO's teacher after the warm-up", above=0)
    warmup_teacher_temperature: float = config_field(
        0.04, "temperature of DINO's teacher at the start of the warm-up", above=0
    )
    warmup_fraction: float = config_field(
        0.0, "fraction of the run over which the teacher's temperature changes linearly (0 = no warm-up)", min=0, max=1
    )
    center_momentum: float = config_field(0.9, "EMA momentum of the center of the teacher's outputs", min=0, max=1)
    frozen_fraction: float = config_field(
        0.0, "fraction of the run, from its start, in which the prototypes receive no gradient (0 = none)", min=0, max=1
    )


@dataclass(frozen=True)
class CAREConfig:
    embed_dim: int = config_field(512, "width of CARE's transformer", min=1, rule="a multiple of its heads and of 4")
    depth: int = config_field(4, "attention blocks of CARE's transformer", min=1)
    num_heads: int = config_field(8, "attention heads of CARE's transformer", min=1)
    attention_weight: float = config_field(100.0, "weight of CARE's attention loss (the paper's lambda)", min=0)


@dataclass(frozen=True)
class FRAConfig:
    regions: int = config_field(8, "number of FRA's facial regions", min=2)
    embed_dim: int = config_field(256, "width of FRA's mask embeddings", min=1, rule="a multiple of its heads and of 4")
    num_heads: int = config_field(8, "attention heads of FRA's queries", min=1)
    mask_temperature: float = config_field(0.1, "temperature of FRA's masks, a softmax over regions", above=0)
    temperature: float = config_field(0.1, "temperature of the assignments in FRA's relation loss", above=0)
    region_weight: float = config_field(1.0, "weight of FRA's consistency loss of regions", min=0)
    relation_weight: float = config_field(1.0, "weight of FRA's relation loss", min=0)


@dataclass(frozen=True)
class ModelConfig:
    method: str = config_field(
        "simfle",
        "simfle, byol, simsiam, simclr, moco, mocov3, swav, vicreg, mae, dino, care or fra",
        choices=METHODS,
    )
    backbone: str = config_field(
        "resnet50", "timm model with a feature map, or a ViT (method mae: a plain ViT)", rule="a name that timm knows"
    )
    init: str = config_field(
        "",
        "weights to start from: a run folder, a backbone.safetensors, a checkpoint of tensors (.pth, .ckpt), timm:NAME "
        "or torchvision:NAME@FILE (empty = random, from train.seed)",
        is_path=True,
    )
    output_stride: int = config_field(
        0,
        "output stride of a CNN: 8, 16, or 0 (the network's, 32); a smaller stride keeps more detail of small faces",
        rule="0, 8, 16 or 32, as the network allows",
    )
    freeze_patch_embed: bool = config_field(
        False, "keep a ViT's patch projection as it starts, random or from model.init (MoCo v3)"
    )
    head_hidden_dim: int = config_field(4096, "hidden width of the MLP heads", min=1)
    head_out_dim: int = config_field(256, "output width of the MLP heads", min=1)
    predictor_hidden_dim: int = config_field(512, "hidden width of SimSiam's predictor", min=1)
    ema_momentum: float = config_field(0.99, "EMA momentum of the target network", min=0, max=1)
    ema_schedule: str = config_field(
        "constant", "constant, or cosine from model.ema_momentum to 1 over the run", choices=("constant", "cosine")
    )
    decorrelation_weight: float = config_field(
        0.0, "weight of a loss that keeps dimensions of the projections uncorrelated (not in the papers)", min=0
    )
    mask_groups: int = config_field(
        32, "channel groups of the semantic masking", min=1, rule="divides the backbone's channels"
    )
    grouping_init: str = config_field(
        "repaired",
        "repaired (groups separate) or reference (the paper's initialization: groups collapse)",
        choices=("repaired", "reference"),
    )
    distillation: str = config_field(
        "reference",
        "reference (the paper's, which constant heads minimize) or predict (each view predicts FaceMAE's mean token, "
        "standardized; no gradient to FaceMAE)",
        choices=("reference", "predict"),
    )
    distillation_weight: float = config_field(0.3, "weight of the distillation loss")
    grouping_weight: float = config_field(0.03, "weight of the grouping loss")
    distillation_temperature: float = config_field(4.0, "temperature of the distillation loss", above=0)
    facemae: FaceMAEConfig = config_field(FaceMAEConfig, "the masked autoencoder")
    contrastive: ContrastiveConfig = config_field(
        ContrastiveConfig, "settings of the methods with negatives or prototypes"
    )
    vicreg: VICRegConfig = config_field(VICRegConfig, "weights of VICReg's losses")
    dino: DINOConfig = config_field(DINOConfig, "settings of DINO")
    care: CAREConfig = config_field(CAREConfig, "settings of CARE")
    fra: FRAConfig = config_field(FRAConfig, "settings of FRA")
    activation_checkpointing: bool = config_field(
        False, "activation checkpointing: less memory, one more forward pass, the same results", resume_safe=True
    )
    compile: str = config_field(
        "false",
        "torch.compile for backbones and FaceMAE: true, graphs (with CUDA graphs) or auto (true on a GPU at ZeRO "
        "stages 0 to 2); takes minutes at the start; unmeasured on a GPU; not at ZeRO stage 3",
        resume_safe=True,
        choices=("false", "true", "graphs", "auto"),
    )
    mean: list[float] = config_field(
        lambda: [0.5795, 0.4522, 0.3957], "channel means of normalization, in [0, 1]", length=3
    )
    std: list[float] = config_field(
        lambda: [0.2769, 0.2473, 0.2412], "channel deviations of normalization, in [0, 1]", length=3, above=0
    )


@dataclass(frozen=True)
class OptimConfig:
    name: str = config_field(
        "sgd", "sgd, adamw or lars (lars needs train.zero_stage=0)", choices=("sgd", "adamw", "lars")
    )
    lr: float = config_field(
        0.05, "learning rate for a global batch of 256; scaled linearly with the global batch", min=0
    )
    momentum: float = config_field(0.9, "momentum of sgd and lars", min=0, below=1)
    betas: list[float] = config_field(lambda: [0.9, 0.95], "betas of adamw", length=2, min=0, below=1)
    weight_decay: float = config_field(
        1e-4, "weight decay, applied to every parameter unless decay_norms is false", min=0
    )
    decay_norms: bool = config_field(True, "apply weight decay to norms, biases and tokens as well")
    predictor_lr_scale: float = config_field(
        1.0, "learning rate factor of the predictor (BYOL, SimFLE, SimSiam, MoCo v3)", min=0
    )
    trust_coefficient: float = config_field(0.001, "trust coefficient of lars", min=0)
    warmup_steps: int = config_field(0, "linear warm-up in steps, before the cosine", min=0)
    max_grad_norm: float = config_field(0.0, "maximum gradient norm (0 = no clipping)", min=0)


@dataclass(frozen=True)
class TrainConfig:
    run_dir: str = config_field("runs/simfle", "run folder", resume_safe=True, is_path=True, nonempty=True)
    seed: int = config_field(0, "seed of initialization, sample order, views and groups", min=0, max=2**32 - 1)
    epochs: float = config_field(100.0, "length of the run in epochs, if steps is 0")
    steps: int = config_field(0, "length of the run in optimizer steps (0 = from epochs)", min=0)
    extend: bool = config_field(
        False,
        "train an existing run longer: allow a greater train.steps or train.epochs; the schedules use the new length",
        resume_safe=True,
    )
    global_batch: int = config_field(
        256, "samples per optimizer step, over all processes", min=1, rule="divisible by the number of processes"
    )
    micro_batch: int = config_field(
        0,
        "samples per forward pass of one process (0 = global batch / processes; auto = the maximum that fits into GPU "
        "memory, found by trial; the global batch is unchanged)",
        resume_safe=True,
        aliases={"auto": -1},
        rule="auto, 0, or at least 2 and a divisor of global batch / processes",
    )
    zero_stage: int = config_field(
        -1,
        "DeepSpeed ZeRO stage, 0 to 3 (auto = 0 if parameters, gradients and optimizer fit eight times into the "
        "memory of a process, otherwise 2)",
        resume_safe=True,
        aliases={"auto": -1},
        choices=(-1, 0, 1, 2, 3),
    )
    precision: str = config_field(
        "bf16", "bf16 (autocast; parameters, BatchNorm, EMA and optimizer stay fp32) or fp32", choices=("bf16", "fp32")
    )
    sync_batchnorm: bool = config_field(False, "synchronize BatchNorm and grouping statistics across processes")
    device: str = config_field("auto", "auto, cpu or cuda", resume_safe=True, choices=("auto", "cpu", "cuda"))
    hang_timeout: float = config_field(
        600.0,
        "seconds without progress before a hanging run exits and reports the processes it waits for (0 = never)",
        resume_safe=True,
        min=0,
    )
    deterministic: bool = config_field(
        False,
        "use deterministic but slower GPU kernels: a resumed run then has the losses of an uninterrupted run (always "
        "so on a CPU)",
        resume_safe=True,
    )
    stop_after_step: int = config_field(
        0, "save and exit after this step, schedule unchanged (0 = run to the end)", resume_safe=True, min=0
    )
    log_every: int = config_field(10, "steps between log lines", resume_safe=True, min=1)
    loggers: list[str] = config_field(
        list,
        "services that get the metrics, besides metrics.jsonl and TensorBoard: wandb (Weights & Biases), mlflow",
        resume_safe=True,
        choices=("wandb", "mlflow"),
        distinct=True,
    )
    log_images_every: int = config_field(
        500, "steps between images of masks and reconstructions (0 = none)", resume_safe=True, min=0
    )
    checkpoint_every: int = config_field(500, "steps between checkpoints", resume_safe=True, min=1)
    keep_checkpoints: int = config_field(2, "number of complete checkpoints to keep", resume_safe=True, min=1)
    checkpoint_write_mbps: float = config_field(
        0.0, "maximum background write rate of checkpoints in MB/s (0 = no limit)", resume_safe=True, min=0
    )
    log_sample_ids: bool = config_field(
        False, "write ids and checksums of all consumed samples to RUN/samples", resume_safe=True
    )
    profile: bool = config_field(
        False, "trace some steps to RUN/profile, for https://ui.perfetto.dev", resume_safe=True
    )
    profile_steps: list[int] = config_field(
        lambda: [3, 5],
        "first and last traced step, counted from this start",
        resume_safe=True,
        length=2,
        ascending=True,
        min=1,
        rule="at most 20 steps",
    )
    profile_ranks: list[int] = config_field(
        lambda: [0], "ranks of the traced processes", resume_safe=True, nonempty=True, min=0
    )


@dataclass(frozen=True)
class MonitorConfig:
    shards: list[str] = config_field(
        list, "folders of labeled shards for probes during training", resume_safe=True, is_path=True
    )
    probe_every: int = config_field(0, "steps between probes, kNN and linear (0 = none)", resume_safe=True, min=0)
    fit_split: str = config_field("train", "split for fitting the probes", resume_safe=True)
    val_split: str = config_field("val", "split for measuring the probes", resume_safe=True)
    fit_samples: int = config_field(
        5000, "number of images for fitting the probes, sampled once", resume_safe=True, min=100
    )
    max_seconds: float = config_field(
        120.0,
        "maximum seconds that training waits for a probe before the probe is aborted",
        resume_safe=True,
        min=1,
        rule="at most half of `train.hang_timeout`",
    )


@dataclass(frozen=True)
class PretrainConfig:
    """Configuration of a pretraining run, filled from `configs/pretrain/*.yaml` and key=value arguments."""

    data: DataConfig = config_field(DataConfig, "samples")
    views: ViewsConfig = config_field(ViewsConfig, "augmentation")
    model: ModelConfig = config_field(ModelConfig, "method and networks")
    optim: OptimConfig = config_field(OptimConfig, "optimizer and schedule")
    train: TrainConfig = config_field(TrainConfig, "training loop")
    monitor: MonitorConfig = config_field(MonitorConfig, "probes of the features during training")


def load(schema: type[T], file: Path | None, overrides: Sequence[str] = ()) -> T:
    """Build a frozen `schema` from its defaults, a YAML file and `key=value` overrides, in this order.

    Raises:
        UserError: If the file is missing or not valid YAML, a key is unknown (the message suggests the nearest known
            key), or a value has the wrong type.
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
            file = find_config(file)
            layers.append((str(file), OmegaConf.load(io.StringIO(texts_as_written(schema, read_yaml(file))))))
    except FileNotFoundError:
        raise UserError(_missing(file)) from None
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, TypeError, RecursionError, OSError) as error:
        raise UserError(f"config: cannot read {file}: {error}. Fix: correct the file or its permissions.") from None
    layers.append(("command line", parse_overrides(schema, overrides)))
    merged = OmegaConf.structured(schema)
    for place, layer in layers:
        if not OmegaConf.is_dict(layer):
            raise UserError(f"config: {place}: a list or a single value. Fix: write keys with values.")
        check_keys(schema, layer, place)
        normalize_values(schema, layer)
        try:
            merged = OmegaConf.merge(merged, layer)
        except OmegaConfBaseException as error:
            raise UserError(f"config: {place}: {describe_type_error(schema, layer, error)}") from None
    try:
        return cast(T, OmegaConf.to_object(merged))
    except OmegaConfBaseException as error:  # unresolved or circular reference
        raise UserError(f"config: {str(error).splitlines()[0]} ({error.full_key})") from None


def load_yaml(file: Path) -> dict[str, Any]:
    """Read a YAML file without a schema, such as the configuration of a run that another version of simfle wrote.

    Raises:
        UserError: If the file is missing, cannot be read, is not valid YAML, or has values other than text, numbers,
            lists and keys.
    """
    import yaml

    try:
        found = yaml.safe_load(read_yaml(file))
        json.dumps(found)  # refuses dates, sets and circular structures
    except FileNotFoundError:
        raise UserError(f"config: {file} does not exist. Fix: check the path.") from None
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, LookupError, RecursionError, OSError) as error:
        raise UserError(f"config: {file} is corrupt: {error!r}. Fix: restore it.") from None
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise UserError(f"config: {file} is corrupt: no keys. Fix: restore it.")
    return found


def find_config(file: Path) -> Path:
    """Return `file`, or the bundled config of the same name if `file` is missing and its path begins with configs/."""
    if file.exists() or not file.parts or file.parts[0] != "configs":
        return file
    ours = CONFIGS.joinpath(*file.parts[1:])
    if ours.is_file():
        log.warning("config: %s not found; using the bundled config %s", file, ours)
        return ours
    return file


def _missing(file: Path | None) -> str:
    """Return the message for a missing configuration file, with the most similar bundled one."""
    ours = [str(Path("configs") / path.relative_to(CONFIGS)) for path in sorted(CONFIGS.rglob("*.yaml"))]
    near = difflib.get_close_matches(str(file), ours, n=1, cutoff=0.6)
    return f"config: {file} does not exist; " + (f"did you mean {near[0]}?" if near else f"see {CONFIGS}")


def run_identity(config: Any) -> dict[str, Any]:
    """Return the values that identify a run: every leaf that is not `resume_safe`; paths are absolute."""
    known = {name: field.metadata for name, field in fields(type(config))}
    values = flatten(dataclasses.asdict(config))
    kept = {key: value for key, value in values.items() if not known.get(key, {}).get("resume_safe")}
    paths = [key for key, value in kept.items() if isinstance(value, str) and known.get(key, {}).get("is_path")]
    return kept | {key: absolute_source(kept[key]) for key in paths}


def config_digest(config: Any) -> str:
    """Return 16 hexadecimal digits that identify the values of a config that are not resume_safe."""
    return digest(run_identity(config))


def field_help(schema: Any) -> dict[str, str]:
    """Return the help text of every leaf field, by dotted name."""
    return {name: str(field.metadata.get("help", "")) for name, field in fields(schema)}
