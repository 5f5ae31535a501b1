"""Configuration: dataclasses -> YAML -> key=value, strict, never mutated.

The dataclasses below are the schema. Each field carries its help, and `free=True` where two values of it give the same
run (speed, logging, number of processes): all other fields together are the run's identity, and a run folder refuses to
go on with another one.
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
CONFIGS = (Path(__file__).parent / "configs").resolve()  # of the checkout, by a link; in a wheel, copies of them


def option(
    default: Any, text: str, *, free: bool = False, words: dict[str, Any] | None = None, path: bool = False
) -> Any:
    """A dataclass field with its help text; `free` fields may change between two starts of the same run.

    words: names that may be written for some of its values, such as auto for -1. path: it holds paths, where ~ is home.
    """
    metadata = {"help": text, "free": free, "words": words or {}, "path": path}
    if callable(default):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class DataConfig:
    shards: list[str] = option(list, "folders of shards, or their URLs", free=True, path=True)
    splits: list[str] = option(lambda: ["train"], "splits to train on; empty: all of them")
    backend: str = option("auto", "auto (dali with a GPU, else opencv), opencv or dali", free=True)
    threads: int = option(0, "decoding threads per process; 0: the cores divided by the local processes", free=True)
    prefetch: int = option(2, "batches made ready ahead, per process", free=True)
    streams: int = option(64, "canonical streams; the greatest common divisor with the global batch is used")
    window: int = option(16384, "samples of a stream that are shuffled among each other")
    max_damaged: float = option(
        0.001,
        "share of the samples seen that may be damaged before the run stops; 0: none, else at least 10",
        free=True,
    )
    cache: str = option(
        "", "folder for shards from URLs, on a local disk; empty: ~/.cache/simfle/shards", free=True, path=True
    )
    cache_gb: float = option(50.0, "most gigabytes in that folder, for all processes of a machine", free=True)
    streaming: bool = option(
        False, "stream tars that can be neither indexed nor cached: data.shards=['https://host/{000..099}.tar']"
    )


@dataclass(frozen=True)
class ViewsConfig:
    size: int = option(224, "side of the two augmented views, pixels")
    face_size: int = option(112, "side of the un-augmented face, pixels")
    scale: list[float] = option(lambda: [0.08, 1.0], "range of the crop's share of the image area")
    ratio: list[float] = option(lambda: [3 / 4, 4 / 3], "range of the crop's width/height")
    flip: float = option(0.5, "probability of a horizontal flip")
    jitter: float = option(0.8, "probability of colour jitter")
    brightness: float = option(0.8, "brightness factor drawn from [1 - b, 1 + b]")
    contrast: float = option(0.8, "contrast factor drawn from [1 - c, 1 + c]")
    saturation: float = option(0.8, "saturation factor drawn from [1 - s, 1 + s]")
    hue: float = option(0.2, "hue shift drawn from [-h, h] turns")
    greyscale: float = option(0.2, "probability of greyscale")
    sigma: list[float] = option(lambda: [0.1, 2.0], "range of the Gaussian blur's sigma, pixels; always applied")


@dataclass(frozen=True)
class FaceMAEConfig:
    enabled: bool = option(True, "false: SimFLE without its second branch, which is BYOL with SimFLE's heads")
    patch: int = option(16, "patch side, pixels; MAE takes its encoder from model.backbone instead")
    width: int = option(768, "encoder width")
    depth: int = option(12, "encoder blocks")
    heads: int = option(12, "encoder attention heads")
    decoder_width: int = option(512, "decoder width")
    decoder_depth: int = option(8, "decoder blocks")
    decoder_heads: int = option(16, "decoder attention heads")
    mask_ratio: float = option(0.75, "share of the patches that is masked")
    attend: bool = option(
        False, "the decoder attends to the feature maps of both views, so that the reconstruction moves the backbone"
    )
    masking: str = option("semantic", "semantic (by the backbone's channels) or random, at the same cost; MAE: random")


@dataclass(frozen=True)
class ContrastConfig:
    temperature: float = option(0.2, "temperature of SimCLR, MoCo and SwAV")
    queue: int = option(65536, "keys of earlier batches that MoCo keeps as negatives")
    splits: int = option(
        4, "parts in which MoCo's key encoder sees a shuffled micro-batch, each with its own BatchNorm"
    )
    prototypes: int = option(3000, "prototypes of SwAV")
    epsilon: float = option(0.05, "entropy weight of SwAV's Sinkhorn-Knopp")
    sinkhorn: int = option(3, "iterations of SwAV's Sinkhorn-Knopp")


@dataclass(frozen=True)
class VICRegConfig:
    invariance: float = option(25.0, "weight of the distance of both views' projections (VICReg)")
    variance: float = option(25.0, "weight of the deviation that each dimension lacks to 1 (VICReg)")
    covariance: float = option(1.0, "weight of the covariance of different dimensions (VICReg)")


@dataclass(frozen=True)
class ModelConfig:
    method: str = option("simfle", "simfle, byol, simsiam, simclr, moco, swav, vicreg or mae")
    backbone: str = option("resnet50", "a timm model with a feature map; for mae a timm ViT")
    output_stride: int = option(
        0, "stride of the feature map: 8, 16, or 0 for the network's own (32); less keeps more places of a small face"
    )
    hidden: int = option(4096, "hidden width of the MLP heads")
    projection: int = option(256, "output width of the MLP heads")
    bottleneck: int = option(512, "hidden width of SimSiam's predictor")
    momentum: float = option(0.99, "EMA momentum of the target network")
    momentum_schedule: str = option("constant", "constant, or cosine from model.momentum at the start to 1 at the end")
    groups: int = option(32, "channel groups of the semantic masking")
    grouping: str = option(
        "repaired", "repaired (groups part) or reference (the paper's initialisation, which does not)"
    )
    distillation: str = option(
        "reference",
        "reference (the paper's, which constant heads minimise) or predict (each view predicts FaceMAE's mean token, "
        "standardized; no gradient to FaceMAE)",
    )
    alpha: float = option(0.3, "weight of the distillation loss")
    beta: float = option(0.03, "weight of the grouping loss")
    temperature: float = option(4.0, "temperature of the distillation loss")
    facemae: FaceMAEConfig = option(FaceMAEConfig, "the masked autoencoder")
    contrast: ContrastConfig = option(ContrastConfig, "what the methods with negatives or prototypes add")
    vicreg: VICRegConfig = option(VICRegConfig, "weights of VICReg's losses")
    recompute: bool = option(
        False, "activation checkpointing: less memory for the time of one forward more, the same results", free=True
    )
    compile: bool = option(
        False,
        "torch.compile for backbones and FaceMAE: minutes at the start, then faster; not at ZeRO stage 3",
        free=True,
    )
    mean: list[float] = option(lambda: [0.5795, 0.4522, 0.3957], "channel means of the normalisation, of 1.0")
    std: list[float] = option(lambda: [0.2769, 0.2473, 0.2412], "channel standard deviations, of 1.0")


@dataclass(frozen=True)
class OptimConfig:
    name: str = option("sgd", "sgd, adamw or lars (which needs train.zero_stage=0)")
    lr: float = option(0.05, "learning rate for a global batch of 256; scaled linearly with the global batch")
    momentum: float = option(0.9, "momentum of sgd and lars")
    betas: list[float] = option(lambda: [0.9, 0.95], "betas of adamw")
    weight_decay: float = option(1e-4, "weight decay, on every parameter unless decay_norms is false")
    decay_norms: bool = option(True, "weight decay on norms, biases and tokens, too")
    predictor_rate: float = option(1.0, "factor of the learning rate of the predictor (BYOL, SimFLE, SimSiam)")
    trust: float = option(0.001, "trust coefficient of lars")
    warmup_steps: int = option(0, "steps of linear warm-up before the cosine")
    clip: float = option(0.0, "largest gradient norm; 0: no clipping")


@dataclass(frozen=True)
class TrainConfig:
    run: str = option("runs/simfle", "the run's folder", free=True, path=True)
    seed: int = option(0, "seed of initialisation, order, views and groups")
    epochs: float = option(100.0, "length of the run in epochs; used when steps is 0")
    steps: int = option(0, "length of the run in optimizer steps; 0: from epochs")
    global_batch: int = option(256, "samples per optimizer step, over all processes")
    micro_batch: int = option(
        0,
        "samples per forward of one process; 0: global batch / processes; auto: the most that fit into the GPU's "
        "memory, found by trying, the global batch unchanged",
        free=True,
        words={"auto": -1},
    )
    zero_stage: int = option(
        -1,
        "DeepSpeed ZeRO stage, 0 to 3; auto: 0 where parameters, gradients and optimizer fit eight times into the "
        "memory of a process, else 2",
        free=True,
        words={"auto": -1},
    )
    precision: str = option("bf16", "bf16 (autocast; parameters, BatchNorm, EMA and optimizer stay fp32) or fp32")
    sync_statistics: bool = option(False, "share BatchNorm and grouping statistics among the processes")
    device: str = option("auto", "auto, cpu or cuda", free=True)
    timeout: float = option(
        600.0,
        "seconds without progress after which a hanging run ends itself and names whom it waits for; 0: never",
        free=True,
    )
    deterministic: bool = option(
        False,
        "kernels that give the same bits each time on a GPU, slower: a run that goes on has the losses of one that "
        "never stopped; on a CPU they do anyway",
        free=True,
    )
    stop_after: int = option(0, "save and leave after this step, the schedule unchanged; 0: run to the end", free=True)
    log_every: int = option(10, "steps between lines of metrics", free=True)
    images_every: int = option(500, "steps between pictures of masks and reconstructions; 0: none", free=True)
    checkpoint_every: int = option(500, "steps between checkpoints", free=True)
    keep: int = option(2, "complete checkpoints kept", free=True)
    checkpoint_bandwidth: float = option(
        0.0, "most MB/s that are written in the background, beside training; 0: no limit", free=True
    )
    record_samples: bool = option(False, "write ids and checksums of all samples consumed to RUN/samples", free=True)
    profile: bool = option(False, "trace some steps into RUN/profile, for https://ui.perfetto.dev", free=True)
    profile_steps: list[int] = option(lambda: [3, 5], "first and last step traced, counted from this start", free=True)
    profile_ranks: list[int] = option(lambda: [0], "processes that are traced, by number", free=True)


@dataclass(frozen=True)
class MonitorConfig:
    shards: list[str] = option(
        list, "folders of labelled shards on which a run is probed as it trains", free=True, path=True
    )
    every: int = option(0, "steps between probes (kNN and linear); 0: none", free=True)
    fit_split: str = option("train", "split that the probes are fitted on", free=True)
    val_split: str = option("val", "split that they are measured on", free=True)
    samples: int = option(5000, "images that the probes are fitted on, drawn once", free=True)
    seconds: float = option(120.0, "most seconds that training waits for a probe; it is given up then", free=True)


@dataclass(frozen=True)
class PretrainConfig:
    """Everything that a pretraining run is told. `configs/pretrain/*.yaml` and key=value arguments fill it."""

    data: DataConfig = option(DataConfig, "where samples come from")
    views: ViewsConfig = option(ViewsConfig, "how they are augmented")
    model: ModelConfig = option(ModelConfig, "the method and its networks")
    optim: OptimConfig = option(OptimConfig, "the optimizer and its schedule")
    train: TrainConfig = option(TrainConfig, "the run")
    monitor: MonitorConfig = option(MonitorConfig, "probes of the features while it trains")


def load(schema: type[T], file: Path | None, overrides: Sequence[str] = ()) -> T:
    """Build a frozen `schema` from its defaults, a YAML file and `key=value` overrides, in this order.

    Raises:
        UserError: file missing or not YAML, unknown key (the nearest known one is offered), wrong type.
    """
    # OmegaConf and PyYAML are imported here: `--help` must not wait for them.
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    for text in overrides:
        if "=" not in text:
            raise UserError(f"config: {text!r} is not key=value, for example train.seed=1")
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
            raise UserError(f"config: {place} holds a list or a bare value, not keys")
        check_keys(schema, layer, place)
        complete(schema, layer)
        try:
            merged = OmegaConf.merge(merged, layer)
        except OmegaConfBaseException as error:
            raise UserError(f"config: {place}: {unfit(schema, layer, error)}") from None
    try:
        return cast(T, OmegaConf.to_object(merged))
    except OmegaConfBaseException as error:  # a reference to nothing, or to itself
        raise UserError(f"config: {str(error).splitlines()[0]} ({error.full_key})") from None


def read_plain(file: Path) -> dict[str, Any]:
    """What a YAML file holds, by no schema: the configuration of a run, perhaps of another version of this program.

    Raises:
        UserError: missing; no YAML, or more than text, numbers, lists and keys; see `load` for what else is refused.
    """
    import yaml

    try:
        found = yaml.safe_load(read_yaml(file))
        json.dumps(found)  # no dates, no sets, nothing that holds itself
    except FileNotFoundError:
        raise UserError(f"config: {file} does not exist") from None
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, LookupError, RecursionError, OSError) as error:
        raise UserError(f"config: {file} is damaged: {error!r}") from None
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise UserError(f"config: {file} is damaged: it holds no keys")
    return found


def packaged(file: Path) -> Path:
    """`file`; where it is not there and called configs/..., the one of this name that came with this program."""
    if file.exists() or not file.parts or file.parts[0] != "configs":
        return file
    ours = CONFIGS.joinpath(*file.parts[1:])
    if ours.is_file():
        log.warning("config: %s is not here; taking the one that came with simfle, %s", file, ours)
        return ours
    return file


def _missing(file: Path | None) -> str:
    """What to say of a configuration that is not there: the nearest of ours."""
    ours = [str(Path("configs") / path.relative_to(CONFIGS)) for path in sorted(CONFIGS.rglob("*.yaml"))]
    near = difflib.get_close_matches(str(file), ours, n=1, cutoff=0.6)
    return f"config: {file} does not exist; " + (f"did you mean {near[0]}?" if near else f"ours are in {CONFIGS}")


def identity(config: Any) -> dict[str, Any]:
    """The values that make this run this run: every leaf that is not marked free."""
    free = {name for name, field in fields(type(config)) if field.metadata.get("free")}
    return {key: value for key, value in flatten(dataclasses.asdict(config)).items() if key not in free}


def digest(config: Any) -> str:
    """16 hexadecimal digits that name the identity of a config."""
    text = json.dumps(identity(config), sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def helps(schema: Any) -> dict[str, str]:
    """Help text of every leaf field, by dotted name."""
    return {name: str(field.metadata.get("help", "")) for name, field in fields(schema)}
