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
from simfle.config import PretrainConfig
from simfle.data.loader import Loader, Share
from simfle.data.order import Order
from simfle.data.reader import Corpus
from simfle.data.streaming import Stream
from simfle.errors import AgreedError, RunStopped, UserError
from simfle.models.statistics import share_statistics
from simfle.optim import STATES, build_optimizer, learning_rate, parameter_groups, set_rate
from simfle.runtime import BatchPlan, World, arithmetic_threads, start_engine
from simfle.stopping import StopFlag
from simfle.train import checkpoint, fitting, folder, lead, pictures, profile, saving, state, unchanged
from simfle.train.damage import Damage
from simfle.train.lookout import Lookout
from simfle.train.metrics import Metrics, SampleRecord
from simfle.train.monitor import Monitor
from simfle.train.profile import phase
from simfle.train.progress import Announcer
from simfle.train.telemetry import Measures, Telemetry
from simfle.train.verdict import Ballot, Verdict
from simfle.train.watchdog import Watchdog
from simfle.zero import wait_for_partitions

log = logging.getLogger(__name__)
# All of these belong to the identity of a run.
ADVICE = "Fix: start a new train.run with a lower optim.lr, optim.clip=1 or train.precision=fp32"


class Run:
    """The state of one start of a run, ready to train."""

    def __init__(
        self,
        config: PretrainConfig,
        world: World,
        plan: BatchPlan,
        corpus: Corpus | Stream,
        order: Order | Stream,
        model: Any,
        ends: ExitStack,
        watchdog: Watchdog,
    ) -> None:
        self.watchdog = watchdog
        self.lead: lead.Lead | None = None
        self.config, self.world, self.plan, self.corpus, self.order = config, world, plan, corpus, order
        self.folder = Path(config.train.run)
        self.steps = config.train.steps or int(config.train.epochs * order.steps_per_epoch)
        if self.steps < 1:
            raise UserError(
                f"train.epochs={config.train.epochs}: less than one step. Fix: raise train.epochs, or set train.steps."
            )
        self.model = model
        torch.set_num_threads(arithmetic_threads(world.local_size))
        resumed = saving.resume(self.folder, model, corpus, world)
        if isinstance(corpus, Corpus):
            unchanged.check(self.folder, corpus, world, resumed=resumed is not None)
        self.step = resumed.progress.step if resumed else 0
        self.model.to(world.device).train()
        if config.train.sync_statistics:
            share_statistics(self.model, world.device)
        optimizer = build_optimizer(parameter_groups(state.trained(self.model), config.optim), config.optim)
        self.engine = start_engine(self.model, optimizer, plan, config.train, config.optim)
        self.optimizer = optimizer
        keys = STATES[config.optim.name]
        state.load_optimizer(self.engine, keys, resumed.optim if resumed else {}, self.step)
        self.buffers = list(state.saved_buffers(self.model).values())
        self.before = [buffer.clone() for buffer in self.buffers]  # as they were before the step under way
        share = Share(world.rank, world.size, world.local_size, plan.accumulation)
        images = self.model.images
        self.loader = Loader(corpus, order, config.views, config.data, share, world.device, images)
        ends.enter_context(closing(self.loader))
        watchdog.awaited = self.loader.awaited
        self.saver = saving.Saver(self.engine, config, corpus, world, watchdog.claim)
        self.monitor = Monitor(config, world, self.steps, self.probing)
        self.telemetry = Telemetry(self.folder, self.model, world, self.step)
        self.samples = SampleRecord(self.folder, world.rank) if config.train.record_samples else None
        self.metrics = Metrics(self.folder, self.step) if world.is_main else None
        self.profile = profile.opened(self.folder, config.train, world)
        for each in (self.samples, self.metrics, self.profile):
            if each is not None:
                ends.callback(each.close)
        tried = None if config.data.streaming else self.is_sound
        self.damage = Damage(self.folder, config.data.max_damaged, self.step, world, tried)
        if reason := self.damage.too_much(self.seen()):
            raise AgreedError(reason, said_here=world.is_main)
        self.lookout = Lookout(corpus) if world.is_main else None
        self.announcer = ends.enter_context(Announcer(self.steps, self.step, enabled=world.is_main))

    def train(self, stop: StopFlag) -> None:
        """Train to the last step or to a stop; the last state is always saved."""
        signalled = False
        limit = min(self.steps, self.config.train.stop_after or self.steps)
        self.announcer.start(self)
        self.monitor.begin(self.step, self.engine)
        if self.world.is_main:
            plan = {"global_batch": self.plan.global_batch, "steps_per_epoch": self.order.steps_per_epoch}
            device = fitting.device_name(self.world.device)
            place = {"processes": self.world.size, "device": device, "micro_batch": self.plan.micro_batch}
            folder.describe(self.folder, {"steps": self.steps, **place, **plan})
        with closing(self.loader.batches(self.step)) as batches:
            while self.step < limit:
                changed = self.lookout is not None and bool(self.lookout.reason)
                verdict = self.one_step(batches, changed or stop.signal is not None)
                if verdict.damaged and (reason := self.damage.too_much(self.seen())):
                    self.save()
                    self.end_together(f"stopped after step {self.step}, which is saved: {reason}")
                if verdict.stop:
                    self.end_if_shards_changed()
                    signalled = True
                    break
                if self.step % self.config.train.checkpoint_every == 0 and self.step < limit:
                    self.save()
                    if self.lookout is not None:
                        self.lookout.look()
        self.save()
        self.saver.wait()
        if self.lookout is not None and (reason := self.lookout.last()):
            log.warning("%s", reason)
        self.watchdog.reached(self.step, "end")
        if self.step < self.steps:
            other = "a signal to another process" if signalled else "train.stop_after"
            why = stop.signal.name if stop.signal is not None else other
            words = f"stopped on {why} after step {self.step} of {self.steps}; saved, rerun to resume"
            raise RunStopped(words, by_signal=signalled)

    def one_step(self, batches: Iterator[Batch], stop: bool) -> Verdict:
        """Run one optimizer step: micro-batches forward and backward, reduction of the status, update, EMA, metrics."""
        began, waited = time.perf_counter(), self.loader.waited
        number = self.step + 1
        self.watchdog.reached(number, "step")
        state.copy_tensors(self.before, self.buffers)
        rate = learning_rate(self.step, self.steps, self.plan.global_batch, self.config.optim)
        set_rate(self.optimizer, rate)
        pictured = self._is_due(self.config.train.images_every, number)
        self.model.keep_picture = pictured and self.world.is_main
        measured = number == 1 or self._is_due(self.config.train.log_every, number)
        self.telemetry.begin(measured)
        total: dict[str, torch.Tensor] = {}
        for micro in range(self.plan.accumulation):
            self.watchdog.reached(number, "waiting for data")
            with phase("data"):
                batch = next(batches)
            self.watchdog.reached(number, "step")
            if self.samples is not None:
                self.samples.add(number, micro, batch)
            with phase("forward"):
                losses = self.engine(batch)
                total = {name: total.get(name, 0) + value.detach() for name, value in losses.items()}
            last = micro == self.plan.accumulation - 1
            if last:
                damaged = self.loader.damaged(self.step)
                ballot = Ballot(total, self.plan.accumulation, stop, len(damaged))
            with phase("backward"):
                self.engine.backward(losses["total"])
            if last:
                with phase("vote"):
                    verdict = ballot.read()
                if not verdict.finite:
                    self.end_on_bad_step(number, "loss", verdict)
            with phase("optimizer"):
                self.engine.step()
        if self.engine.skipped_steps:  # if it knows the gradient norm, DeepSpeed skips non-finite steps
            self.end_on_bad_step(number, "gradient", verdict)
        self.move_target(number)
        self.step = number
        with phase("report"):
            measures = self.telemetry.measure(number) if measured else {}
            seconds = time.perf_counter() - began
            measures |= self.probe(number, verdict)
            self.report(verdict, rate, seconds, self.loader.waited - waited, measures)
        if pictured:
            self.save_picture()
        if verdict.damaged:
            self.damage.add(damaged)
        if self.profile is not None:
            self.profile.step()
        return verdict

    def move_target(self, number: int) -> None:
        """The EMA, and what else of the method follows the optimizer's step."""
        with phase("ema"):
            self.model.after_step(number / self.steps)
            wait_for_partitions(self.engine)

    def probe(self, number: int, verdict: Verdict) -> Measures:
        """Measure the backbone on labeled shards if a measurement is due and no stop is pending."""
        if verdict.stop or not self.monitor.due(number):
            return {}
        found = self.monitor.measure(self.engine)
        return {"monitor": found} if found else {}

    def is_sound(self, number: int) -> bool:
        """Whether a sample that was found corrupt before can be decoded now."""
        self.watchdog.reached(self.step, "trying damaged samples again")
        return self.loader.is_sound(number)

    def probing(self) -> None:
        """Mark progress of the monitor for the watchdog."""
        self.watchdog.reached(self.step, "probe")

    def seen(self) -> int:
        """Return the maximum number of samples seen at least once so far."""
        consumed = self.step * self.plan.global_batch
        return min(consumed, self.order.samples) if self.order.samples else consumed

    def report(self, verdict: Verdict, rate: float, seconds: float, waited: float, measures: Measures) -> None:
        """Print the progress of every step; log metrics of every `log_every`-th step and of each probe."""
        speed = self.plan.global_batch / seconds
        if self.lead is not None:
            self.lead.step(seconds)
        self.announcer.advance(self.step, verdict.losses["total"], speed, seconds, waited, measures)
        due = self._is_due(self.config.train.log_every, self.step) or "monitor" in measures
        if self.metrics is None or not due:
            return
        values = {
            "epoch": self.step / self.order.steps_per_epoch,
            "samples": self.step * self.plan.global_batch,
            "lr": rate,
            "losses": verdict.losses,
            "images_per_second": speed,
            "data_wait": waited / seconds,
            "processes": self.world.size,
            **measures,
        }
        if self.world.device.type == "cuda":  # peak memory of tensors on the main process's GPU, bytes
            values["gpu_memory"] = torch.cuda.max_memory_allocated(self.world.device)
        self.metrics.log(self.step, values)

    def save_picture(self) -> None:
        """Save an image of FaceMAE's input and output in the forward pass of this step."""
        picture = getattr(self.model, "picture", None)
        self.model.keep_picture = False
        if self.metrics is None or picture is None:
            return
        image = pictures.draw(picture, self.model.mean, self.model.std)
        pictures.save(self.folder / "images" / f"step-{self.step:08d}.png", image)
        self.metrics.picture("facemae", image, self.step)
        self.model.picture = None

    def end_if_shards_changed(self) -> None:
        """Save and stop if the main process has found changed shards. Collective."""
        reason = [self.lookout.reason if self.lookout is not None else ""]
        dist.broadcast_object_list(reason, src=0)
        if reason[0]:
            self.save()
            self.end_together(f"stopped after step {self.step}, which is saved: {reason[0]}")

    def rehearse_stop(self, limit: float) -> None:
        """Measure whether saving fits between a stop signal and the end of the job, `limit` seconds later.

        Raises:
            UserError: the main process cannot write a checkpoint, or lacks disk space.
        """
        self.watchdog.reached(self.step, "rehearsal")
        self.lead = self.saver.rehearse(limit)

    def save(self) -> None:
        """Copy the state to the main process's memory and write it in a thread; stop if it is not finite."""
        self.watchdog.reached(self.step, "checkpoint")
        if not state.is_finite(self.model, self.world.device):
            self.end_together(f"after step {self.step} a parameter is not finite; {self.poisoned()}. {ADVICE}")
        self.saver.save(self.step)

    def poisoned(self) -> str:
        """Describe the last good checkpoint after the gradient of a finite loss has corrupted the state."""
        self.saver.wait()
        left = checkpoint.complete(self.folder)
        newest = f"the newest checkpoint is {left[0].name}" if left else "there is no checkpoint"
        return f"this state is not saved, {newest}"

    def end_on_bad_step(self, number: int, what: str, verdict: Verdict) -> NoReturn:
        """Save the state before this step if it is finite, report the step, its samples and its losses, and stop."""
        state.copy_tensors(self.buffers, self.before)  # the bad forward pass has updated them
        kept = f"the state after step {self.step} is saved"
        if state.is_finite(self.model, self.world.device):
            self.save()
        else:
            kept = f"a parameter was already not finite after step {self.step}; {self.poisoned()}"
        ids = self.order.batch(self.step)[0]
        file = self.folder / "nonfinite.json"
        if self.world.is_main:
            keys = [self.corpus.key(*place) for place in zip(*self.corpus.locate(ids), strict=True)]
            facts = {"step": number, "losses": verdict.losses, "ids": ids.tolist(), "keys": keys}
            file.write_text(to_json(facts, indent=1))
        bad = ", ".join(f"{name}={value}" for name, value in verdict.losses.items())
        self.end_together(
            f"step {number}: a {what} is not finite ({bad}), samples {ids[:4].tolist()}... of {len(ids)}, all in "
            f"{file}; {kept}. {ADVICE}"
        )

    def end_together(self, why: str) -> NoReturn:
        """Exit after the main process has written everything: a launcher ends the others when the first one exits."""
        self.saver.wait()
        dist.barrier()
        raise AgreedError(why, said_here=self.world.is_main)

    def _is_due(self, every: int, step: int) -> bool:
        return every > 0 and (step % every == 0 or step == self.steps)
