"""Refuse invalid configuration values that no later code refuses, before anything heavy is imported."""

import math
import os
from dataclasses import asdict
from pathlib import Path

from simfle.config.parsing import flatten
from simfle.config.schema import PretrainConfig, TrainConfig
from simfle.errors import UserError

OPTIMIZERS = ("sgd", "adamw", "lars")  # those of simfle.optim, which imports torch
DEVICES = ("auto", "cpu", "cuda")
MINIMA = {
    0: (
        *(
            "train.log_images_every",
            "train.stop_after_step",
            "train.hang_timeout",
            "train.steps",
            "data.decode_threads",
        ),
        *("optim.lr", "optim.weight_decay", "optim.warmup_steps", "optim.max_grad_norm"),
        *("optim.predictor_lr_scale", "optim.trust_coefficient", "monitor.probe_every"),
    ),
    1: (
        *("data.prefetch_batches", "data.canonical_streams"),
        *("train.log_every", "train.checkpoint_every", "train.keep_checkpoints", "model.facemae.patch_size"),
        *("model.head_hidden_dim", "model.head_out_dim", "model.predictor_hidden_dim", "monitor.max_seconds"),
        *(f"model.facemae.{part}{name}" for part in ("", "decoder_") for name in ("embed_dim", "depth", "num_heads")),
    ),
    100: ("monitor.fit_samples",),
}
MAX_PROFILED_STEPS = 20  # steps: a trace of ResNet-50 and FaceMAE takes some megabytes per step


def check(config: PretrainConfig) -> None:
    """Refuse values that no later code refuses.

    Raises:
        UserError: field, value and allowed values.
    """
    train = config.train
    check_numbers(config)
    if not train.run_dir:
        raise UserError("train.run_dir=: empty. Fix: name a folder for the run, such as train.run_dir=runs/mine.")
    if train.device not in DEVICES:
        raise UserError(f"train.device={train.device!r}: unknown. Fix: use auto, cpu or cuda.")
    if train.checkpoint_write_mbps < 0:
        raise UserError(f"train.checkpoint_write_mbps={train.checkpoint_write_mbps:g}: must be MB/s, or 0 for no limit")
    if train.zero_stage not in (-1, 0, 1, 2, 3):
        raise UserError(f"train.zero_stage={train.zero_stage}: must be auto, 0, 1, 2 or 3")
    if config.model.compile and train.zero_stage == 3:
        raise UserError(
            "model.compile=true with train.zero_stage=3: ZeRO replaces parameters at runtime. Fix: train.zero_stage=2."
        )
    if train.precision not in ("bf16", "fp32"):
        raise UserError(f"train.precision={train.precision!r}: unknown. Fix: use bf16 or fp32.")
    if config.data.resampled and not train.steps:
        raise UserError("data.resampled=true: a stream has no epochs. Fix: set train.steps.")
    if config.data.pair not in ("image", "clip"):
        raise UserError(f"data.pair={config.data.pair!r}: unknown. Fix: use image or clip.")
    if not config.data.pair_window >= 0:
        raise UserError(f"data.pair_window={config.data.pair_window}: must be at least 0")
    if not 0 <= config.data.max_corrupt_fraction <= 1:
        raise UserError(f"data.max_corrupt_fraction={config.data.max_corrupt_fraction}: must be a fraction from 0 to 1")
    if not config.data.shards:
        raise UserError("data.shards=[]: empty. Fix: name a shard folder, such as data.shards=[shards/faces].")
    check_places("data.shards", config.data.shards)
    check_monitor(config)
    if train.profile:
        check_profile(train)
    check_optimizer(config)


def check_places(field: str, places: list[str]) -> None:
    """Refuse shards that are named twice, whose samples would count twice. Raises UserError."""
    seen: dict[str, str] = {}
    for place in places:
        real = place.rstrip("/") if "://" in place else os.path.realpath(place)
        if real in seen:
            both = place if place == seen[real] else f"{seen[real]} and {place} are the same folder, which"
            raise UserError(f"{field}: {both} is named twice, and each sample would count twice. Fix: name it once")
        seen[real] = place


def check_optimizer(config: PretrainConfig) -> None:
    """Refuse an unknown optimizer, or one that cannot work on ZeRO's flattened parameters. Raises UserError."""
    stage = config.train.zero_stage
    if config.optim.name not in OPTIMIZERS:
        raise UserError(f"optim.name={config.optim.name!r}: unknown. Fix: use one of {', '.join(OPTIMIZERS)}.")
    if config.optim.name == "lars" and stage > 0:
        raise UserError(
            f"train.zero_stage={stage}: ZeRO flattens parameters, and optim.name=lars needs the norm of each layer. "
            "Fix: set train.zero_stage=0."
        )


def check_monitor(config: PretrainConfig) -> None:
    """Refuse probes without shards, and probes that outlast the other processes' timeout. Raises UserError."""
    monitor, train = config.monitor, config.train
    if not monitor.probe_every:
        return
    if not monitor.shards:
        raise UserError("monitor.shards=[]: empty. Fix: name labeled shards, or set monitor.probe_every=0.")
    check_places("monitor.shards", monitor.shards)
    if train.hang_timeout and 2 * monitor.max_seconds > train.hang_timeout:
        raise UserError(
            f"monitor.max_seconds={monitor.max_seconds:g}: other processes wait for a probe, and exit after "
            f"train.hang_timeout={train.hang_timeout:g}. Fix: set "
            f"monitor.max_seconds={train.hang_timeout / 2:g} or less."
        )


def preflight(config: PretrainConfig, *, network: bool) -> None:
    """Refuse what a start would refuse, on a machine that may lack GPUs: views, backend, network, run folder.

    The caller checks data and batch. network: build the network, without memory for its parameters.

    Raises:
        UserError: as raised by the functions that a start calls.
    """
    import torch

    from simfle.data.loader import choose_backend
    from simfle.data.views import check as check_views
    from simfle.train.run_dir import check_same_config

    check(config)
    check_views(config.views)
    choose_backend(config.data.backend, torch.device("cpu"))
    if network:
        from simfle.models.registry import build_method

        with torch.device("meta"):
            build_method(config.model, config.views)
    check_same_config(Path(config.train.run_dir), config)


def check_numbers(config: PretrainConfig) -> None:
    """Refuse numbers out of range, NaN included. Raises UserError."""
    values = flatten(asdict(config))
    for name, value in values.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{name}={value}: must be a finite number")
    for least, names in MINIMA.items():
        for name in names:
            if not values[name] >= least:
                raise UserError(f"{name}={values[name]}: must be at least {least}")
    model, optim = config.model, config.optim
    if not model.distillation_temperature > 0:
        raise UserError(f"model.distillation_temperature={model.distillation_temperature}: must be above 0")
    if len(model.mean) != 3 or not all(map(math.isfinite, model.mean)):
        raise UserError(f"model.mean={model.mean}: must be three numbers, for red, green and blue")
    if len(model.std) != 3 or not all(0 < each < math.inf for each in model.std):
        raise UserError(f"model.std={model.std}: must be three numbers above 0, for red, green and blue")
    if not 0 <= optim.momentum < 1:
        raise UserError(f"optim.momentum={optim.momentum}: must be at least 0 and below 1")
    if len(optim.betas) != 2 or not all(0 <= each < 1 for each in optim.betas):
        raise UserError(f"optim.betas={optim.betas}: must be two numbers, each at least 0 and below 1")


def check_profile(train: TrainConfig) -> None:
    """Refuse invalid steps, or too many for one trace. Raises UserError."""
    steps = train.profile_steps
    if len(steps) != 2 or not 1 <= steps[0] <= steps[1] < steps[0] + MAX_PROFILED_STEPS:
        raise UserError(
            f"train.profile_steps={steps}: must be the first and the last step to trace, counted from this start, at "
            f"most {MAX_PROFILED_STEPS} steps, such as [3,5]"
        )
    if not train.profile_ranks or min(train.profile_ranks) < 0:
        raise UserError(f"train.profile_ranks={train.profile_ranks}: must be ranks of processes, such as [0]")
