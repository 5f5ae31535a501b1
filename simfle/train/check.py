"""Refusing values of a configuration that no later code refuses, before anything heavy is imported."""

from simfle.config import PretrainConfig, TrainConfig
from simfle.errors import UserError

OPTIMIZERS = ("sgd", "adamw")  # of simfle.optim, which imports torch
MOST_PROFILED = 20  # steps: a trace of ResNet-50 and FaceMAE takes some megabytes each


def check(config: PretrainConfig) -> None:
    """Refuse values that no later code refuses.

    Raises:
        UserError: field, value found, values possible.
    """
    train = config.train
    for name, least in (("log_every", 1), ("checkpoint_every", 1), ("keep", 1), ("images_every", 0), ("stop_after", 0)):
        if getattr(train, name) < least:
            raise UserError(f"train.{name}={getattr(train, name)}; it must be at least {least}")
    if train.checkpoint_bandwidth < 0:
        raise UserError(f"train.checkpoint_bandwidth={train.checkpoint_bandwidth:g}; give MB/s, or 0 for no limit")
    if train.zero_stage not in (0, 1, 2, 3):
        raise UserError(f"train.zero_stage={train.zero_stage}; ZeRO has stages 0, 1, 2 and 3")
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
    if train.profile:
        check_profile(train)
    if config.optim.name not in OPTIMIZERS:
        raise UserError(f"optim.name is {config.optim.name!r}; known are {' and '.join(OPTIMIZERS)}")


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
