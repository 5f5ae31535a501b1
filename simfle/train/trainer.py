"""The training loop and the ways in which it ends."""

import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist

from shards.redact import to_json
from simfle.batch import Batch
from simfle.config.schema import PretrainConfig
from simfle.data.dataset import ShardCorpus
from simfle.data.loader import Loader, RankSlice
from simfle.data.sampler import Sampler
from simfle.data.storage.resampled import ResampledStream
from simfle.errors import CollectiveError, RunStopped, UserError
from simfle.models.layers.sync_batchnorm import convert_sync_batchnorm
from simfle.optim import STATES, build_optimizer, lr_at_step, parameter_groups, set_lr
from simfle.runtime.distributed import BatchLayout, World, init_deepspeed, intra_op_threads
from simfle.runtime.signals import StopSignal
from simfle.runtime.zero_stage import wait_for_partitions
from simfle.train import auto_batch, run_dir, shard_record
from simfle.train.checkpointing import checkpoint, manager, state_dict, stop_budget
from simfle.train.shard_watch import ShardWatch
from simfle.train.step_status import StepReduction, StepStatus
from simfle.train.telemetry import profiler, reconstructions
from simfle.train.telemetry.corrupt_log import CorruptSampleLog
from simfle.train.telemetry.feature_telemetry import FeatureTelemetry, Measures
from simfle.train.telemetry.metrics import MetricLogger, SampleLog
from simfle.train.telemetry.monitor import Monitor
from simfle.train.telemetry.profiler import phase
from simfle.train.telemetry.progress import ProgressReporter
from simfle.train.watchdog import Watchdog

log = logging.getLogger(__name__)
# All of these belong to the identity of a run.
NONFINITE_HINT = "Fix: start a new train.run_dir with a lower optim.lr, optim.max_grad_norm=1 or train.precision=fp32"


class Trainer:
    """The state of one start of a run, ready to train."""

    def __init__(
        self,
        config: PretrainConfig,
        world: World,
        layout: BatchLayout,
        corpus: ShardCorpus | ResampledStream,
        sampler: Sampler | ResampledStream,
        model: Any,
        ends: ExitStack,
        watchdog: Watchdog,
    ) -> None:
        self.watchdog = watchdog
        self.stop_budget: stop_budget.StopBudget | None = None
        self.config, self.world, self.layout, self.corpus, self.sampler = config, world, layout, corpus, sampler
        self.run_dir = Path(config.train.run_dir)
        self.steps = config.train.steps or int(config.train.epochs * sampler.steps_per_epoch)
        if self.steps < 1:
            raise UserError(
                f"train.epochs={config.train.epochs}: less than one step. Fix: raise train.epochs, or set train.steps."
            )
        self.model = model
        torch.set_num_threads(intra_op_threads(world.local_world_size))
        resumed = manager.resume(self.run_dir, model, corpus, world)
        if isinstance(corpus, ShardCorpus):
            shard_record.check_shards_unchanged(self.run_dir, corpus, world, resumed=resumed is not None)
        self.step = resumed.progress.step if resumed else 0
        self.model.to(world.device).train()
        if config.train.sync_batchnorm:
            convert_sync_batchnorm(self.model, world.device)
        optimizer = build_optimizer(
            parameter_groups(state_dict.trainable_parameters(self.model), config.optim), config.optim
        )
        self.engine = init_deepspeed(self.model, optimizer, layout, config.train, config.optim)
        self.optimizer = optimizer
        keys = STATES[config.optim.name]
        state_dict.load_optimizer(self.engine, keys, resumed.optim if resumed else {}, self.step)
        self.buffers = list(state_dict.persistent_buffers(self.model).values())
        self.before = [buffer.clone() for buffer in self.buffers]  # as they were before the step under way
        share = RankSlice(world.rank, world.world_size, world.local_world_size, layout.grad_accum_steps)
        images = self.model.images
        self.loader = Loader(corpus, sampler, config.views, config.data, share, world.device, images)
        ends.enter_context(closing(self.loader))
        watchdog.waiting_for = self.loader.waiting_for
        self.checkpoints = manager.CheckpointManager(self.engine, config, corpus, world, watchdog.run_lock)
        self.monitor = Monitor(config, world, self.steps, self.probe_progress)
        self.telemetry = FeatureTelemetry(self.run_dir, self.model, world, self.step)
        self.sample_log = SampleLog(self.run_dir, world.rank) if config.train.log_sample_ids else None
        self.metrics = MetricLogger(self.run_dir, self.step) if world.is_main else None
        self.profiler = profiler.open_profiler(self.run_dir, config.train, world)
        for each in (self.sample_log, self.metrics, self.profiler):
            if each is not None:
                ends.callback(each.close)
        tried = None if config.data.resampled else self.is_decodable
        self.corrupt_log = CorruptSampleLog(self.run_dir, config.data.max_corrupt_fraction, self.step, world, tried)
        if reason := self.corrupt_log.limit_exceeded(self.samples_seen()):
            raise CollectiveError(reason, is_reporter=world.is_main)
        self.shard_watch = ShardWatch(corpus) if world.is_main else None
        self.progress = ends.enter_context(ProgressReporter(self.steps, self.step, enabled=world.is_main))

    def train(self, stop: StopSignal) -> None:
        """Train to the last step or to a stop; the last state is always saved."""
        signalled = False
        limit = min(self.steps, self.config.train.stop_after_step or self.steps)
        self.progress.start(self)
        self.monitor.begin(self.step, self.engine)
        if self.world.is_main:
            plan = {"global_batch": self.layout.global_batch, "steps_per_epoch": self.sampler.steps_per_epoch}
            device = auto_batch.device_name(self.world.device)
            place = {"processes": self.world.world_size, "device": device, "micro_batch": self.layout.micro_batch}
            run_dir.write_run_json(self.run_dir, {"steps": self.steps, **place, **plan})
        with closing(self.loader.batches(self.step)) as batches:
            while self.step < limit:
                changed = self.shard_watch is not None and bool(self.shard_watch.reason)
                verdict = self.train_step(batches, changed or stop.signal is not None)
                if verdict.corrupt and (reason := self.corrupt_log.limit_exceeded(self.samples_seen())):
                    self.save()
                    self.abort_together(f"stopped after step {self.step}, which is saved: {reason}")
                if verdict.stop:
                    self.end_if_shards_changed()
                    signalled = True
                    break
                if self.step % self.config.train.checkpoint_every == 0 and self.step < limit:
                    self.save()
                    if self.shard_watch is not None:
                        self.shard_watch.check()
        self.save()
        self.checkpoints.wait()
        if self.shard_watch is not None and (reason := self.shard_watch.final_check()):
            log.warning("%s", reason)
        self.watchdog.mark_progress(self.step, "end")
        if self.step < self.steps:
            other = "a signal to another process" if signalled else "train.stop_after_step"
            why = stop.signal.name if stop.signal is not None else other
            words = f"stopped on {why} after step {self.step} of {self.steps}; saved, rerun to resume"
            raise RunStopped(words, by_signal=signalled)

    def train_step(self, batches: Iterator[Batch], stop: bool) -> StepStatus:
        """Run one optimizer step: micro-batches forward and backward, reduction of the status, update, EMA, metrics."""
        began, waited = time.perf_counter(), self.loader.data_wait_seconds
        number = self.step + 1
        self.watchdog.mark_progress(number, "step")
        state_dict.copy_tensors(self.before, self.buffers)
        rate = lr_at_step(self.step, self.steps, self.layout.global_batch, self.config.optim)
        set_lr(self.optimizer, rate)
        pictured = self._is_due(self.config.train.log_images_every, number)
        self.model.capture_reconstruction = pictured and self.world.is_main
        measured = number == 1 or self._is_due(self.config.train.log_every, number)
        self.telemetry.begin(measured)
        total: dict[str, torch.Tensor] = {}
        for micro in range(self.layout.grad_accum_steps):
            self.watchdog.mark_progress(number, "waiting for data")
            with phase("data"):
                batch = next(batches)
            self.watchdog.mark_progress(number, "step")
            if self.sample_log is not None:
                self.sample_log.add(number, micro, batch)
            with phase("forward"):
                losses = self.engine(batch)
                total = {name: total.get(name, 0) + value.detach() for name, value in losses.items()}
            last = micro == self.layout.grad_accum_steps - 1
            if last:
                damaged = self.loader.corrupt_samples(self.step)
                ballot = StepReduction(total, self.layout.grad_accum_steps, stop, len(damaged))
            with phase("backward"):
                self.engine.backward(losses["total"])
            if last:
                with phase("reduce"):
                    verdict = ballot.read()
                if not verdict.finite:
                    self.abort_nonfinite_step(number, "loss", verdict)
            with phase("optimizer"):
                self.engine.step()
        if self.engine.skipped_steps:  # if it knows the gradient norm, DeepSpeed skips non-finite steps
            self.abort_nonfinite_step(number, "gradient", verdict)
        self.move_target(number)
        self.step = number
        with phase("report"):
            measures = self.telemetry.measure(number) if measured else {}
            seconds = time.perf_counter() - began
            measures |= self.probe(number, verdict)
            self.log_step(verdict, rate, seconds, self.loader.data_wait_seconds - waited, measures)
        if pictured:
            self.save_picture()
        if verdict.corrupt:
            self.corrupt_log.add(damaged)
        if self.profiler is not None:
            self.profiler.step()
        return verdict

    def move_target(self, number: int) -> None:
        """The EMA, and what else of the method follows the optimizer's step."""
        with phase("ema"):
            self.model.on_step_end(number / self.steps)
            wait_for_partitions(self.engine)

    def probe(self, number: int, verdict: StepStatus) -> Measures:
        """Measure the backbone on labeled shards if a measurement is due and no stop is pending."""
        if verdict.stop or not self.monitor.due(number):
            return {}
        found = self.monitor.measure(self.engine)
        return {"monitor": found} if found else {}

    def is_decodable(self, number: int) -> bool:
        """Whether a sample that was found corrupt before can be decoded now."""
        self.watchdog.mark_progress(self.step, "trying damaged samples again")
        return self.loader.is_decodable(number)

    def probe_progress(self) -> None:
        """Mark progress of the monitor for the watchdog."""
        self.watchdog.mark_progress(self.step, "probe")

    def samples_seen(self) -> int:
        """Return the maximum number of samples seen at least once so far."""
        consumed = self.step * self.layout.global_batch
        return min(consumed, self.sampler.samples) if self.sampler.samples else consumed

    def log_step(self, verdict: StepStatus, rate: float, seconds: float, waited: float, measures: Measures) -> None:
        """Print the progress of every step; log metrics of every `log_every`-th step and of each probe."""
        speed = self.layout.global_batch / seconds
        if self.stop_budget is not None:
            self.stop_budget.step(seconds)
        self.progress.advance(self.step, verdict.losses["total"], speed, seconds, waited, measures)
        due = self._is_due(self.config.train.log_every, self.step) or "monitor" in measures
        if self.metrics is None or not due:
            return
        values = {
            "epoch": self.step / self.sampler.steps_per_epoch,
            "samples": self.step * self.layout.global_batch,
            "lr": rate,
            "losses": verdict.losses,
            "images_per_second": speed,
            "data_wait": waited / seconds,
            "processes": self.world.world_size,
            **measures,
        }
        if self.world.device.type == "cuda":  # peak memory of tensors on the main process's GPU, bytes
            values["gpu_memory"] = torch.cuda.max_memory_allocated(self.world.device)
        self.metrics.log(self.step, values)

    def save_picture(self) -> None:
        """Save an image of FaceMAE's input and output in the forward pass of this step."""
        picture = getattr(self.model, "reconstruction", None)
        self.model.capture_reconstruction = False
        if self.metrics is None or picture is None:
            return
        image = reconstructions.draw_reconstruction(picture, self.model.mean, self.model.std)
        reconstructions.save_image(self.run_dir / "images" / f"step-{self.step:08d}.png", image)
        self.metrics.log_image("facemae", image, self.step)
        self.model.reconstruction = None

    def end_if_shards_changed(self) -> None:
        """Save and stop if the main process has found changed shards. Collective."""
        reason = [self.shard_watch.reason if self.shard_watch is not None else ""]
        dist.broadcast_object_list(reason, src=0)
        if reason[0]:
            self.save()
            self.abort_together(f"stopped after step {self.step}, which is saved: {reason[0]}")

    def measure_stop_time(self, limit: float) -> None:
        """Measure whether saving fits between a stop signal and the end of the job, `limit` seconds later.

        Raises:
            UserError: the main process cannot write a checkpoint, or lacks disk space.
        """
        self.watchdog.mark_progress(self.step, "rehearsal")
        self.stop_budget = self.checkpoints.measure_stop(limit)

    def save(self) -> None:
        """Copy the state to the main process's memory and write it in a thread; stop if it is not finite."""
        self.watchdog.mark_progress(self.step, "checkpoint")
        if not state_dict.is_finite(self.model, self.world.device):
            self.abort_together(
                f"after step {self.step} a parameter is not finite; {self._last_good_checkpoint()}. {NONFINITE_HINT}"
            )
        self.checkpoints.save(self.step)

    def _last_good_checkpoint(self) -> str:
        """Describe the last good checkpoint after the gradient of a finite loss has corrupted the state."""
        self.checkpoints.wait()
        left = checkpoint.complete_checkpoints(self.run_dir)
        newest = f"the newest checkpoint is {left[0].name}" if left else "there is no checkpoint"
        return f"this state is not saved, {newest}"

    def abort_nonfinite_step(self, number: int, what: str, verdict: StepStatus) -> NoReturn:
        """Save the state before this step if it is finite, report the step, its samples and its losses, and stop."""
        state_dict.copy_tensors(self.buffers, self.before)  # the bad forward pass has updated them
        kept = f"the state after step {self.step} is saved"
        if state_dict.is_finite(self.model, self.world.device):
            self.save()
        else:
            kept = f"a parameter was already not finite after step {self.step}; {self._last_good_checkpoint()}"
        ids = self.sampler.batch_ids(self.step)[0]
        file = self.run_dir / "nonfinite.json"
        if self.world.is_main:
            keys = [self.corpus.key(*place) for place in zip(*self.corpus.locate(ids), strict=True)]
            facts = {"step": number, "losses": verdict.losses, "ids": ids.tolist(), "keys": keys}
            file.write_text(to_json(facts, indent=1))
        bad = ", ".join(f"{name}={value}" for name, value in verdict.losses.items())
        self.abort_together(
            f"step {number}: a {what} is not finite ({bad}), samples {ids[:4].tolist()}... of {len(ids)}, all in "
            f"{file}; {kept}. {NONFINITE_HINT}"
        )

    def abort_together(self, why: str) -> NoReturn:
        """Exit after the main process has written everything: a launcher ends the others when the first one exits."""
        self.checkpoints.wait()
        dist.barrier()
        raise CollectiveError(why, is_reporter=self.world.is_main)

    def _is_due(self, every: int, step: int) -> bool:
        return every > 0 and (step % every == 0 or step == self.steps)
