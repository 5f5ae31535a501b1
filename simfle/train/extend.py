"""Train a run longer than planned: record its lengths, and derive the schedule from the record.

RUN/extensions.jsonl has one line per extension. Learning rate and EMA momentum of a step are functions of the length
that the run had at this step, so a run that resumes before an extension repeats its steps with the old schedule.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shards.io.atomic import read_bytes, replace_text
from shards.io.jsonl import iter_valid_lines
from shards.redact import to_json
from simfle.config.schema import ModelConfig, PretrainConfig, run_identity
from simfle.config.unused_fields import unused_model_fields
from simfle.errors import UserError
from simfle.models.base import ema_momentum
from simfle.optim import lr_at_step
from simfle.runtime.collective import main_process_tries, main_process_value
from simfle.runtime.distributed import World

FILE = "extensions.jsonl"
LENGTH = ("train.steps", "train.epochs")  # the keys of a run's identity that train.extend may change
Length = dict[str, Any]


@dataclass(frozen=True)
class Extension:
    """A change of a run's length.

    step: steps done before it. old_steps, new_steps: lengths of the run in steps. old, new: values of LENGTH. old_lr,
    new_lr: learning rate of step `step` + 1 by both schedules. time: seconds since 1970.
    """

    step: int
    old_steps: int
    new_steps: int
    old: Length
    new: Length
    old_lr: float
    new_lr: float
    time: float


def length_of(identity: dict[str, Any]) -> Length:
    """Return the values of LENGTH in a run's identity."""
    return {key: identity.get(key) for key in LENGTH}


def read(run: Path) -> list[Extension]:
    """Return the extensions of a run in order; invalid lines are skipped."""
    try:
        lines = list(iter_valid_lines(read_bytes(run / FILE)))
    except OSError:
        return []
    found = []
    for line in lines:
        try:
            each = Extension(**line)
        except TypeError:
            continue
        counts = (each.step, each.old_steps, each.new_steps)
        if all(type(count) is int for count in counts) and isinstance(each.old, dict) and isinstance(each.new, dict):
            found.append(each)
    return found


def steps_at(step: int, steps: int, extensions: Sequence[Extension]) -> int:
    """Return the length of the run that the schedule of a step uses.

    Args:
        step: optimizer step, from 0.
        steps: present length of the run.
        extensions: the run's extensions in order.
    """
    length = extensions[0].old_steps if extensions else steps
    for each in extensions:
        if each.step <= step:
            length = each.new_steps
    return length


def begin(
    run: Path,
    config: PretrainConfig,
    steps: tuple[int, float],
    resumed: tuple[int, Length] | None,
    world: World,
    report: Callable[[str], None],
) -> list[Extension]:
    """Return the extensions of the run; record one more if `train.extend` asks for a greater length. Collective.

    Args:
        run: run folder.
        config: configuration of this start, whose length `simfle.train.identity_check` has accepted.
        steps: its length in steps, and the steps of an epoch of its data.
        resumed: steps done, and the length in the checkpoint's identity; None at the start of a run.
        world: the processes.
        report: called with a line to print, on the main process.

    Raises:
        CollectiveError: If the new length is not greater than the old one.
    """

    def work() -> list[Extension]:
        if resumed is None:
            (run / FILE).unlink(missing_ok=True)  # remains of a run whose checkpoints were deleted
            return []
        known = read(run)
        done, saved = resumed
        old, new = known[-1].new if known else saved, length_of(run_identity(config))
        if old == new or None in old.values():
            return known
        total, steps_per_epoch = steps
        old_steps = old["train.steps"] or int(old["train.epochs"] * steps_per_epoch)
        if total <= old_steps:
            raise UserError(
                f"train.extend=true: the run has {old_steps} steps, the new length is {total}. "
                f"Fix: set train.steps above {old_steps}."
            )
        old_lr, new_lr = (
            lr_at_step(done, length, config.train.global_batch, config.optim) for length in (old_steps, total)
        )
        made = Extension(done, old_steps, total, old, new, old_lr, new_lr, time.time())
        replace_text(run / FILE, "".join(to_json(asdict(each)) + "\n" for each in [*known, made]))
        report(describe(made, config.model))
        return [*known, made]

    return main_process_value(main_process_tries(world, work)) or []


def describe(made: Extension, model: ModelConfig) -> str:
    """Describe an extension in one line: lengths, and the values at which the schedules change."""
    text = (
        f"train.extend: {made.old_steps} -> {made.new_steps} steps; from step {made.step + 1} on the schedules follow "
        f"the new length: learning rate {made.old_lr:g} -> {made.new_lr:g}"
    )
    if model.ema_schedule == "cosine" and "model.ema_momentum" not in unused_model_fields(model):
        old, new = (ema_momentum((made.step + 1) / total, model) for total in (made.old_steps, made.new_steps))
        text += f", EMA momentum {old:g} -> {new:g}"
    return text
