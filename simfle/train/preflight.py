"""Check pretraining configurations before any heavy import."""

from pathlib import Path

from simfle.config.schema import MonitorConfig, OptimConfig, PretrainConfig, TrainConfig
from simfle.config.unused_fields import unused_fields
from simfle.config.validate import check_distinct_places, validate
from simfle.errors import UserError
from simfle.train.telemetry.loggers import check_installed

MAX_PROFILED_STEPS = 20  # maximum steps of a trace, which takes some megabytes per step of ResNet-50 and FaceMAE


def check(config: PretrainConfig) -> None:
    """Raise UserError for values that are out of range or do not fit each other.

    Raises:
        UserError: If a field is invalid. The error names the field, its value and the accepted values.
    """
    validate(config, unused=unused_fields(config))
    data, train = config.data, config.train
    if config.model.compile in ("true", "graphs") and train.zero_stage == 3:
        raise UserError(
            f"model.compile={config.model.compile} with train.zero_stage=3: ZeRO replaces parameters. Fix: set "
            "train.zero_stage=2."
        )
    if data.resampled and not train.steps:
        raise UserError("data.resampled=true: a stream has no epochs. Fix: set train.steps.")
    if not data.shards:
        raise UserError("data.shards=[]: empty. Fix: name a shard folder, such as data.shards=[shards/faces].")
    check_distinct_places("data.shards", data.shards)
    check_monitor(config.monitor, train)
    if train.profile:
        check_profile(train)
    check_optimizer(config.optim, train)
    check_installed(train.loggers)


def check_optimizer(optim: OptimConfig, train: TrainConfig) -> None:
    """Raise UserError for an optimizer that cannot use ZeRO's flattened parameters."""
    if optim.name == "lars" and train.zero_stage > 0:
        raise UserError(
            f"train.zero_stage={train.zero_stage}: ZeRO flattens parameters, and optim.name=lars needs the norm of "
            "each layer. Fix: set train.zero_stage=0."
        )


def check_monitor(monitor: MonitorConfig, train: TrainConfig) -> None:
    """Raise UserError for probes without shards, or probes that outlast the other processes' timeout."""
    if not monitor.probe_every:
        return
    if not monitor.shards:
        raise UserError("monitor.shards=[]: empty. Fix: name labeled shards, or set monitor.probe_every=0.")
    check_distinct_places("monitor.shards", monitor.shards)
    if train.hang_timeout and 2 * monitor.max_seconds > train.hang_timeout:
        raise UserError(
            f"monitor.max_seconds={monitor.max_seconds:g}: other processes wait for a probe, and exit after "
            f"train.hang_timeout={train.hang_timeout:g}. Fix: set "
            f"monitor.max_seconds={train.hang_timeout / 2:g} or less."
        )


def preflight(config: PretrainConfig, *, network: bool) -> None:
    """Run the checks of a start on a machine that may lack GPUs: values, backend, network, run folder.

    The caller checks data and batch. network: whether to build the network, without memory for its parameters.

    Raises:
        UserError: As raised by the functions that a start calls.
    """
    import torch

    from simfle.data.loader import choose_backend
    from simfle.train.checkpointing.checkpoint import complete_checkpoints
    from simfle.train.init_source import check_place
    from simfle.train.run_dir import check_same_config

    check(config)
    choose_backend(config.data.backend, torch.device("cpu"))
    if network:
        from simfle.models.registry import build_method

        with torch.device("meta"):
            build_method(config.model, config.views)
    run = Path(config.train.run_dir)
    check_same_config(run, config)
    if config.model.init and not complete_checkpoints(run):  # a resumed run does not read these weights
        check_place(config.model.init)


def check_profile(train: TrainConfig) -> None:
    """Raise UserError for too many steps in one trace."""
    first, last = train.profile_steps
    if last - first >= MAX_PROFILED_STEPS:
        raise UserError(
            f"train.profile_steps={train.profile_steps}: a trace has at most {MAX_PROFILED_STEPS} steps. "
            f"Fix: set train.profile_steps=[{first},{first + MAX_PROFILED_STEPS - 1}]."
        )
