"""Refusing values of a configuration that no later code refuses, before anything heavy is imported."""

import math
import os
from dataclasses import asdict
from pathlib import Path

from simfle.config import PretrainConfig, TrainConfig
from simfle.errors import UserError
from simfle.layers import flatten

OPTIMIZERS = ("sgd", "adamw", "lars")  # of simfle.optim, which imports torch
DEVICES = ("auto", "cpu", "cuda")
AT_LEAST = {
    0: (
        *("train.images_every", "train.stop_after", "train.timeout", "train.steps", "data.threads"),
        *("optim.lr", "optim.weight_decay", "optim.warmup_steps", "optim.clip"),
        *("optim.predictor_rate", "optim.trust", "monitor.every"),
    ),
    1: (
        *("data.prefetch", "data.streams"),
        *("train.log_every", "train.checkpoint_every", "train.keep", "model.facemae.patch"),
        *("model.hidden", "model.projection", "model.bottleneck", "monitor.seconds"),
        *(f"model.facemae.{part}{name}" for part in ("", "decoder_") for name in ("width", "depth", "heads")),
    ),
    100: ("monitor.samples",),
}
MOST_PROFILED = 20  # steps: a trace of ResNet-50 and FaceMAE takes some megabytes each


def check(config: PretrainConfig) -> None:
    """Refuse values that no later code refuses.

    Raises:
        UserError: field, value found, values possible.
    """
    train = config.train
    check_numbers(config)
    if not train.run:
        raise UserError("train.run is empty; name a folder for the run, e.g. train.run=runs/mine")
    if train.device not in DEVICES:
        raise UserError(f"train.device is {train.device!r}; known are auto, cpu and cuda")
    if train.checkpoint_bandwidth < 0:
        raise UserError(f"train.checkpoint_bandwidth={train.checkpoint_bandwidth:g}; give MB/s, or 0 for no limit")
    if train.zero_stage not in (-1, 0, 1, 2, 3):
        raise UserError(f"train.zero_stage={train.zero_stage}; ZeRO has stages 0, 1, 2 and 3, and auto chooses")
    if config.model.compile and train.zero_stage == 3:
        raise UserError("model.compile with train.zero_stage=3: ZeRO swaps parameters under it; take stage 2")
    if train.precision not in ("bf16", "fp32"):
        raise UserError(f"train.precision is {train.precision!r}; known are bf16 and fp32")
    if config.data.streaming and not train.steps:
        raise UserError("data.streaming: a stream has no epochs; give train.steps")
    if not 0 <= config.data.max_damaged <= 1:
        raise UserError(f"data.max_damaged={config.data.max_damaged}; it is a share, 0 to 1")
    if not config.data.shards:
        raise UserError("data.shards is empty; name at least one folder of shards, e.g. data.shards=[shards/faces]")
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
    """Refuse an optimizer that is none, or cannot work on what ZeRO makes of parameters. Raises UserError."""
    stage = config.train.zero_stage
    if config.optim.name not in OPTIMIZERS:
        raise UserError(f"optim.name is {config.optim.name!r}; known are {', '.join(OPTIMIZERS)}")
    if config.optim.name == "lars" and stage > 0:
        raise UserError(
            f"train.zero_stage={stage}: ZeRO flattens parameters, and lars needs the norm of each layer. "
            "Fix: train.zero_stage=0"
        )


def check_monitor(config: PretrainConfig) -> None:
    """Refuse probes without shards, and such as the other processes cannot wait for. Raises UserError."""
    monitor, train = config.monitor, config.train
    if not monitor.every:
        return
    if not monitor.shards:
        raise UserError("monitor.shards is empty. Fix: monitor.shards=[FOLDER], labelled ones, or monitor.every=0")
    check_places("monitor.shards", monitor.shards)
    if train.timeout and 2 * monitor.seconds > train.timeout:
        raise UserError(
            f"monitor.seconds={monitor.seconds:g}: other processes wait for a probe, and end after "
            f"train.timeout={train.timeout:g}. Fix: monitor.seconds={train.timeout / 2:g} at most"
        )


def check_ahead(config: PretrainConfig, *, network: bool) -> None:
    """Refuse what a start would refuse, from a machine that may lack its GPUs: views, backend, network, run folder.

    Data and batch are the caller's matter. network: it is built, without memory for it.

    Raises:
        UserError: see the functions that a start calls.
    """
    import torch

    from simfle.data.loader import choose_backend
    from simfle.data.views import check as check_views
    from simfle.train.folder import refuse_other

    check(config)
    check_views(config.views)
    choose_backend(config.data.backend, torch.device("cpu"))
    if network:
        from simfle.models.methods import build_method

        with torch.device("meta"):
            build_method(config.model, config.views)
    refuse_other(Path(config.train.run), config)


def check_numbers(config: PretrainConfig) -> None:
    """Refuse numbers out of their range, NaN among them. Raises UserError."""
    values = flatten(asdict(config))
    for name, value in values.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{name}={value}; it must be a finite number")
    for least, names in AT_LEAST.items():
        for name in names:
            if not values[name] >= least:
                raise UserError(f"{name}={values[name]}; it must be at least {least}")
    model, optim = config.model, config.optim
    if not model.temperature > 0:
        raise UserError(f"model.temperature={model.temperature}; it must be above 0")
    if len(model.mean) != 3 or not all(map(math.isfinite, model.mean)):
        raise UserError(f"model.mean={model.mean}; give three numbers, for red, green and blue")
    if len(model.std) != 3 or not all(0 < each < math.inf for each in model.std):
        raise UserError(f"model.std={model.std}; give three numbers above 0, for red, green and blue")
    if not 0 <= optim.momentum < 1:
        raise UserError(f"optim.momentum={optim.momentum}; it must be at least 0 and below 1")
    if len(optim.betas) != 2 or not all(0 <= each < 1 for each in optim.betas):
        raise UserError(f"optim.betas={optim.betas}; give two numbers, at least 0 and below 1")


def check_profile(train: TrainConfig) -> None:
    """Refuse steps that are none, or too many for one trace. Raises UserError."""
    steps = train.profile_steps
    if len(steps) != 2 or not 1 <= steps[0] <= steps[1] < steps[0] + MOST_PROFILED:
        raise UserError(
            f"train.profile_steps={steps}; give the first and the last step to trace, counted from this start, at most "
            f"{MOST_PROFILED} steps, e.g. [3,5]"
        )
    if not train.profile_ranks or min(train.profile_ranks) < 0:
        raise UserError(f"train.profile_ranks={train.profile_ranks}; give processes by number, e.g. [0]")
