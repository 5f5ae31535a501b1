"""Training loop, and its normal and early ends.

`open_trainer` of simfle/train/pretrain.py builds the components; the `Trainer` owns and closes them.
"""

import logging
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import torch
import torch.distributed as dist

from shards.redact import to_json
from simfle.batch import Batch
from simfle.config.schema import PretrainConfig
from simfle.data.loader import Loader
from simfle.data.training_data import TrainingData
from simfle.errors import CollectiveError, RunStopped
from simfle.runtime.collective import main_process_value
from simfle.runtime.distributed import BatchLayout, World
from simfle.runtime.signals import StopSignal
from simfle.train import auto_batch, run_dir
from simfle.train.checkpointing import checkpoint
from simfle.train.checkpointing.manager import CheckpointManager
from simfle.train.engine import TrainEngine
from simfle.train.shard_watch import ShardWatch
from simfle.train.step_log import StepLog, plan_text, throughput_facts
from simfle.train.step_status import StepReduction, StepStatus
from simfle.train.telemetry.corrupt_log import CorruptSampleLog
from simfle.train.telemetry.profiler import phase
from simfle.train.watchdog import Watchdog

log = logging.getLogger(__name__)
# All of these belong to the identity of a run.
NONFINITE_HINT = "Fix: start a new train.run_dir with a lower optim.lr, optim.max_grad_norm=1 or train.precision=fp32"


@dataclass(frozen=True)
class Trainer:
    """One start of a run, ready for its next step: its components, and the loop over them.

    Every method is collective: all processes call it, and all end together.
    """

    config: PretrainConfig
    world: World
    layout: BatchLayout
    data: TrainingData
    engine: TrainEngine
    loader: Loader
    checkpoints: CheckpointManager
    step_log: StepLog
    corrupt_log: CorruptSampleLog
    shard_watch: ShardWatch
    watchdog: Watchdog

    @property
    def run_dir(self) -> Path:
        """Run folder."""
        return Path(self.config.train.run_dir)

    @property
    def step(self) -> int:
        """Number of finished steps."""
        return self.engine.step

    def close(self) -> None:
        """Close files, and stop threads and downloads."""
        self.step_log.close()
        self.loader.close()

    def train(self, stop: StopSignal) -> None:
        """Train to the last step or to a stop; the last state is always saved.

        Raises:
            RunStopped: If a signal or train.stop_after_step stopped the run early.
            CollectiveError: If a loss is not finite, too many samples are corrupt, or shards have changed.
        """
        self._begin()
        signaled = False
        limit = min(self.engine.steps, self.config.train.stop_after_step or self.engine.steps)
        with closing(self.loader.batches(self.step)) as batches:
            while self.step < limit and not signaled:
                status = self.train_step(batches, bool(self.shard_watch.reason) or stop.signal is not None)
                signaled = self.after_step(status, limit)
        self.save()
        self.checkpoints.wait()
        if reason := self.shard_watch.final_check():
            log.warning("%s", reason)
        self.watchdog.mark_progress(self.step, "end")
        if self.step < self.engine.steps:
            other = "a signal to another process" if signaled else "train.stop_after_step"
            why = stop.signal.name if stop.signal is not None else other
            words = f"stopped on {why} after step {self.step} of {self.engine.steps}; saved, rerun to resume"
            raise RunStopped(words, by_signal=signaled)

    def train_step(self, batches: Iterator[Batch], stop: bool) -> StepStatus:
        """Run one optimizer step. stop: whether this process wants to stop after it."""
        began, waited = time.perf_counter(), self.loader.data_wait_seconds
        self.watchdog.mark_progress(self.step + 1, "step")
        self.step_log.begin_step()
        rate = self.engine.begin_step()
        status = self.forward_backward(batches, stop)
        self.update(status)
        with phase("report"):
            duration = self.step_log.end_step(status, rate, began, self.loader.data_wait_seconds - waited)
        self.checkpoints.count_step(duration.seconds)
        if status.corrupt:
            self.corrupt_log.add(self.loader.corrupt_samples(self.step - 1))
        return status

    def forward_backward(self, batches: Iterator[Batch], stop: bool) -> StepStatus:
        """Run all micro-batches forward and backward, and reduce the status of the step; abort on a bad loss.

        DeepSpeed's step function must be called after each micro-batch; for the last one, `update` calls it.
        """
        total: dict[str, torch.Tensor] = {}
        last = self.layout.grad_accum_steps - 1
        for micro in range(last + 1):
            losses = self._forward(batches, micro)
            total = {name: total.get(name, 0) + value.detach() for name, value in losses.items()}
            if micro == last:
                corrupt = self.loader.count_corrupt(self.step)
                reduction = StepReduction(total, last + 1, stop, corrupt)
            with phase("backward"):
                self.engine.backward(losses["total"])
            if micro < last:
                with phase("optimizer"):
                    self.engine.optimizer_step()
        with phase("reduce"):
            status = reduction.read()
        if not status.finite:
            self._abort_nonfinite_step("loss", status)
        return status

    def update(self, status: StepStatus) -> None:
        """Update parameters and the EMA; abort on a bad gradient."""
        with phase("optimizer"):
            self.engine.optimizer_step()
        if self.engine.has_skipped:  # if it knows the gradient norm, DeepSpeed skips non-finite steps
            self._abort_nonfinite_step("gradient", status)
        with phase("ema"):
            self.engine.end_step()

    def after_step(self, status: StepStatus, limit: int) -> bool:
        """Save if a checkpoint is due; return whether to stop. limit: last step of this start."""
        if status.corrupt and (reason := self.corrupt_log.limit_exceeded(samples_seen(self.data, self.step))):
            self.save()
            self._abort_together(f"stopped after step {self.step}, which is saved: {reason}")
        if status.stop:
            self._end_if_shards_changed()
            return True
        if self.step % self.config.train.checkpoint_every == 0 and self.step < limit:
            self.save()
            self.shard_watch.check()
        return False

    def measure_stop_time(self, limit: float) -> None:
        """Measure whether saving fits between a stop signal and the end of the job, `limit` seconds later.

        Raises:
            UserError: If the main process cannot write a checkpoint, or lacks disk space.
        """
        self.watchdog.mark_phase("rehearsal")
        self.checkpoints.measure_stop(limit)

    def save(self) -> None:
        """Copy the state to the main process's memory and write it in a thread. Stop if the state is not finite."""
        self.watchdog.mark_progress(self.step, "checkpoint")
        if not self.engine.is_finite():
            self._abort_together(
                f"after step {self.step} a parameter is not finite; {self._last_good_checkpoint()}. {NONFINITE_HINT}"
            )
        self.checkpoints.save(self.step)

    def _begin(self) -> None:
        """Print the plan, measure the random network if configured, and write RUN/run.json."""
        backend = self.loader.backend_name
        plan = plan_text(self.config, self.world, self.layout, self.data, self.engine, backend)
        settings = self.config.data, self.config.train.precision
        self.step_log.begin_run(plan, throughput_facts(*settings, self.world, backend, remote=self.data.remote))
        if self.world.is_main:
            facts = {
                "steps": self.engine.steps,
                "processes": self.world.world_size,
                "device": auto_batch.device_name(self.world.device),
                "micro_batch": self.layout.micro_batch,
                "global_batch": self.layout.global_batch,
                "steps_per_epoch": self.data.steps_per_epoch,
            }
            run_dir.write_run_json(self.run_dir, facts)

    def _forward(self, batches: Iterator[Batch], micro: int) -> dict[str, torch.Tensor]:
        """Take a micro-batch and compute its losses."""
        self.watchdog.mark_phase("waiting for data")
        with phase("data"):
            batch = next(batches)
        self.watchdog.mark_phase("step")
        self.step_log.add_batch(micro, batch)
        with phase("forward"):
            return self.engine.forward(batch)

    def _end_if_shards_changed(self) -> None:
        """Save and stop if the main process has found changed shards."""
        if reason := main_process_value(self.shard_watch.reason):
            self.save()
            self._abort_together(f"stopped after step {self.step}, which is saved: {reason}")

    def _last_good_checkpoint(self) -> str:
        """Describe the last good checkpoint after the gradient of a finite loss has corrupted the state."""
        self.checkpoints.wait()
        left = checkpoint.complete_checkpoints(self.run_dir)
        newest = f"the newest checkpoint is {left[0].name}" if left else "there is no checkpoint"
        return f"this state is not saved, {newest}"

    def _abort_nonfinite_step(self, what: str, status: StepStatus) -> NoReturn:
        """Save the state before this step if it is finite, report the step, its samples and its losses, and stop."""
        self.engine.restore_buffers()  # the bad forward pass has updated them
        kept = f"the state after step {self.step} is saved"
        if self.engine.is_finite():
            self.save()
        else:
            kept = f"a parameter was already not finite after step {self.step}; {self._last_good_checkpoint()}"
        ids = self.data.batch_ids(self.step)[0].tolist()
        file = self.run_dir / "nonfinite.json"
        if self.world.is_main:
            keys = [self.data.key(number) for number in ids]
            facts = {"step": self.step + 1, "losses": status.losses, "ids": ids, "keys": keys}
            file.write_text(to_json(facts, indent=1))
        bad = ", ".join(f"{name}={value}" for name, value in status.losses.items())
        self._abort_together(
            f"step {self.step + 1}: a {what} is not finite ({bad}), samples {ids[:4]}... of {len(ids)}, all in "
            f"{file}; {kept}. {NONFINITE_HINT}"
        )

    def _abort_together(self, why: str) -> NoReturn:
        """Exit after the main process has written its output: a launcher ends all processes when the first one
        exits."""
        self.checkpoints.wait()
        dist.barrier()
        raise CollectiveError(why, is_reporter=self.world.is_main)


def samples_seen(data: TrainingData, step: int) -> int:
    """Return the maximum number of samples seen at least once after `step` steps."""
    consumed = step * data.global_batch
    return min(consumed, data.samples) if data.samples else consumed
