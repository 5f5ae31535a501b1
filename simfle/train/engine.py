"""Engine of a run: model, optimizer and DeepSpeed, restored from the newest checkpoint."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from simfle.batch import Batch
from simfle.config.schema import PretrainConfig
from simfle.data.training_data import TrainingData
from simfle.errors import UserError
from simfle.models.base import Losses, Method
from simfle.models.layers.sync_batchnorm import convert_sync_batchnorm
from simfle.models.registry import begin_graphs
from simfle.optim import STATES, build_optimizer, lr_at_step, parameter_groups, set_lr
from simfle.runtime.deepspeed_engine import init_deepspeed
from simfle.runtime.distributed import BatchLayout, World, intra_op_threads
from simfle.runtime.zero_stage import wait_for_partitions
from simfle.train import extend, init_weights, shard_record
from simfle.train.checkpointing import manager, state_dict


@dataclass(frozen=True)
class StartPoint:
    """Where a start of a run begins.

    step: number of finished optimizer steps. steps: length of the run. extensions: changes of that length. init:
    SHA-256 of the weights of model.init, or "". notes: lines about the start, to print.
    """

    step: int
    steps: int
    extensions: Sequence[extend.Extension]
    init: str
    notes: list[str]


class TrainEngine:
    """Forward, backward and update of a method, at any ZeRO stage.

    step: number of finished optimizer steps. start: where this start of the run began. deepspeed: DeepSpeed's engine.
    """

    def __init__(
        self,
        deepspeed: Any,
        optimizer: torch.optim.Optimizer,
        config: PretrainConfig,
        world: World,
        start: StartPoint,
    ) -> None:
        self.deepspeed, self.start, self.step = deepspeed, start, start.step
        self.model: Method = deepspeed.module
        self._config = config.model
        self._device, self._optim, self._global_batch = world.device, config.optim, config.train.global_batch
        self._optimizer = optimizer
        self._buffers = list(state_dict.persistent_buffers(self.model).values())
        self._before = [buffer.clone() for buffer in self._buffers]  # their values before the step in progress

    @property
    def steps(self) -> int:
        """Length of the run in steps."""
        return self.start.steps

    @property
    def zero_stage(self) -> int:
        """ZeRO stage, 0 to 3."""
        return int(self.deepspeed.zero_optimization_stage())

    def begin_step(self) -> float:
        """Save a copy of the buffers, set the learning rate of the next step, and return it."""
        state_dict.copy_tensors(self._before, self._buffers)
        rate = lr_at_step(self.step, self._schedule_steps(), self._global_batch, self._optim)
        set_lr(self._optimizer, rate)
        return rate

    def forward(self, batch: Batch) -> Losses:
        """Compute the losses of a micro-batch."""
        begin_graphs(self._config)
        losses: Losses = self.deepspeed(batch)
        return losses

    def backward(self, total: Tensor) -> None:
        """Accumulate the gradients of a micro-batch; DeepSpeed averages them over processes."""
        self.deepspeed.backward(total)

    def optimizer_step(self) -> None:
        """Update the parameters after the last micro-batch; do nothing after the others."""
        self.deepspeed.step()

    @property
    def has_skipped(self) -> bool:
        """Return whether DeepSpeed has skipped a step with a non-finite gradient."""
        return bool(self.deepspeed.skipped_steps)

    def end_step(self) -> None:
        """Count the step, after the EMA and the method's other actions at the end of a step."""
        self.model.on_step_end((self.step + 1) / self._schedule_steps())
        wait_for_partitions(self.deepspeed)
        self.step += 1

    def _schedule_steps(self) -> int:
        """Return the length of the run that the schedules of the step in progress use."""
        return extend.steps_at(self.step, self.steps, self.start.extensions)

    def restore_buffers(self) -> None:
        """Restore the buffers to their values before the step in progress."""
        state_dict.copy_tensors(self._buffers, self._before)

    def is_finite(self) -> bool:
        """Return whether all parameters and buffers are finite on every process. Collective."""
        return state_dict.is_finite(self.model, self._device)


def start_engine(
    config: PretrainConfig, world: World, layout: BatchLayout, data: TrainingData, model: Method
) -> TrainEngine:
    """Fill model and optimizer from the newest checkpoint, or the model from model.init, and start DeepSpeed.

    Collective.

    Raises:
        UserError: If the run has less than one step, a checkpoint is unreadable or of other data, shards have changed
            since, weights of model.init cannot be read or do not fit, or an extension is not longer.
    """
    run, train = Path(config.train.run_dir), config.train
    steps = train.steps or int(train.epochs * data.steps_per_epoch)
    if steps < 1:
        raise UserError(
            f"train.epochs={train.epochs}: less than one step. Fix: raise train.epochs, or set train.steps."
        )
    torch.set_num_threads(intra_op_threads(world.local_world_size))
    resumed = manager.resume(run, model, data, world)
    if data.corpus is not None:
        shard_record.check_shards_unchanged(run, data.corpus, world, resumed=resumed is not None)
    notes: list[str] = []
    if resumed is None:
        init = init_weights.initialize(model, config.model, run, world, notes.append)
    else:
        init = init_weights.recorded(run, resumed.progress.init)
    progress = (resumed.progress.step, extend.length_of(resumed.progress.identity)) if resumed else None
    extensions = extend.begin(run, config, (steps, data.steps_per_epoch), progress, world, notes.append)
    model.to(world.device).train()
    if train.sync_batchnorm:
        convert_sync_batchnorm(model, world.device)
    parameters = parameter_groups(state_dict.trainable_parameters(model), config.optim)
    optimizer = build_optimizer(parameters, config.optim)
    deepspeed = init_deepspeed(model, optimizer, layout, train, config.optim)
    start = StartPoint(resumed.progress.step if resumed else 0, steps, extensions, init, notes)
    engine = TrainEngine(deepspeed, optimizer, config, world, start)
    state_dict.load_optimizer(deepspeed, STATES[config.optim.name], resumed.optim if resumed else {}, start.step)
    return engine
