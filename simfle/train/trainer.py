"""The pretraining run: set-up, the loop over optimizer steps, and its ends."""

import itertools
import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist

from simfle import config as configs
from simfle.batch import Batch
from simfle.config import PretrainConfig
from simfle.data.loader import Loader, Share, open_data
from simfle.data.order import Order
from simfle.data.reader import Corpus
from simfle.data.streaming import Stream
from simfle.errors import AgreedError, RunStopped, UserError
from simfle.models.methods import build_method
from simfle.models.statistics import share_statistics
from simfle.optim import STATES, build_optimizer, learning_rate
from simfle.runtime import BatchPlan, StopFlag, World, plan_batch, processes, start_engine
from simfle.train import checkpoint, fitting, folder, lead, pictures, state
from simfle.train.damage import Damage
from simfle.train.metrics import Metrics, SampleRecord
from simfle.train.progress import Announcer
from simfle.train.verdict import Ballot, Verdict
from simfle.train.watchdog import Watchdog

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Surroundings:
    """What a cluster's job knows and a run on one machine need not.

    stop: a flag that was raised, or may have been, before the run began.
    patience: seconds to wait for a run folder that its former, dying processes still hold.
    lead: seconds between the stop signal and the end of the job; 0: unknown.
    before_hang: told the reason just before a hanging process ends itself.
    """

    stop: StopFlag | None = None
    patience: float = 0.0
    lead: float = 0.0
    before_hang: Callable[[str], None] | None = None


def pretrain(config: PretrainConfig, around: Surroundings = Surroundings()) -> None:
    """Start or go on with the run in `train.run`, until its last step or a stop signal.

    Raises:
        UserError: configuration, data, checkpoint or folder are not as they must be; a loss is not finite; a disk is
            full or fails.
        RunStopped: a signal or train.stop_after ended it early; all is saved.
    """
    check(config)
    with processes(config.train) as world, folder.writing(Path(config.train.run)), ExitStack() as ends:
        config = fitting.fitted(config, world)
        plan = plan_batch(config.train, world.size)
        corpus, order = open_data(config.data, config.train.seed, plan.global_batch, world.rank)
        torch.manual_seed(config.train.seed)
        model = build_method(config.model, config.views)
        # The first thing that is written: all of the above may have been refused.
        claim_folder(config, world, ends, around.patience)
        place = Path(config.train.run), world.rank, world.size, config.train.timeout
        watchdog = ends.enter_context(Watchdog(*place, around.before_hang))
        run = Run(config, world, plan, corpus, order, model, ends, watchdog)
        if around.lead:
            run.rehearse_stop(around.lead)
        with nullcontext(around.stop) if around.stop is not None else StopFlag() as stop:
            run.train(stop)


def check(config: PretrainConfig) -> None:
    """Refuse values that no later code refuses.

    Raises:
        UserError: field, value found, values possible.
    """
    train = config.train
    for name, least in (("log_every", 1), ("checkpoint_every", 1), ("keep", 1), ("images_every", 0), ("stop_after", 0)):
        if getattr(train, name) < least:
            raise UserError(f"train.{name}={getattr(train, name)}; it must be at least {least}")
    if train.zero_stage not in (0, 1, 2, 3):
        raise UserError(f"train.zero_stage={train.zero_stage}; ZeRO has stages 0, 1, 2 and 3")
    if config.model.compile and train.zero_stage == 3:
        raise UserError("model.compile with train.zero_stage=3: ZeRO swaps parameters under it; take stage 2")
    if train.precision not in ("bf16", "fp32"):
        raise UserError(f"train.precision is {train.precision!r}; known are bf16 and fp32")
    if config.optim.name not in STATES:
        raise UserError(f"optim.name is {config.optim.name!r}; known are {' and '.join(STATES)}")
    if config.data.streaming and not train.steps:
        raise UserError("data.streaming: a stream has no epochs; give train.steps")
    if not 0 <= config.data.max_damaged <= 1:
        raise UserError(f"data.max_damaged={config.data.max_damaged}; it is a share, 0 to 1")
    if not config.data.shards:
        raise UserError("data.shards is empty; name at least one folder of shards, e.g. data.shards=[shards/faces]")


def claim_folder(config: PretrainConfig, world: World, ends: ExitStack, patience: float) -> None:
    """The main process holds the folder for all; if it cannot, all processes end with its reason."""
    reason: list[str | None] = [None]
    if world.is_main:
        try:
            with folder.writing(Path(config.train.run)):
                ends.enter_context(folder.claimed(Path(config.train.run), patience))
                folder.settle_config(Path(config.train.run), config)
        except UserError as error:
            reason = [str(error)]
    dist.broadcast_object_list(reason, src=0)
    if reason[0] is not None:
        raise AgreedError(reason[0], said_here=world.is_main)


class Run:
    """Everything that one start of a run holds, ready to train."""

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
            raise UserError(f"train.epochs={config.train.epochs} is less than one step; give more, or train.steps")
        self.keys = STATES[config.optim.name]
        self.model = model
        torch.set_num_threads(max(1, torch.get_num_threads() // world.local_size))
        resumed = self._resume()
        self.step = resumed.progress.step if resumed else 0
        self.model.to(world.device).train()
        if config.train.sync_statistics:
            share_statistics(self.model, world.device)
        trained = [parameter for _, parameter in state.trained(self.model)]
        optimizer = build_optimizer(trained, config.optim)
        self.engine = start_engine(self.model, optimizer, plan, config.train, config.optim)
        self.optimizer = optimizer
        state.load_optimizer(self.engine, self.keys, resumed.optim if resumed else {}, self.step)
        self.buffers = list(state.saved_buffers(self.model).values())
        share = Share(world.rank, world.size, world.local_size, plan.accumulation)
        images = self.model.images
        self.loader = Loader(corpus, order, config.views, config.data, share, world.device, images)
        ends.enter_context(closing(self.loader))
        self.writer = checkpoint.Writer(self.folder, config.train.keep)
        self.samples = SampleRecord(self.folder, world.rank) if config.train.record_samples else None
        self.metrics = Metrics(self.folder, self.step) if world.is_main else None
        for each in (self.samples, self.metrics):
            if each is not None:
                ends.callback(each.close)
        self.damage = Damage(self.folder, config.data.max_damaged, self.step, world)
        if reason := self.damage.too_much(self.seen()):
            raise AgreedError(reason, said_here=world.is_main)
        self.announcer = ends.enter_context(Announcer(self.steps, self.step, enabled=world.is_main))

    def _resume(self) -> checkpoint.Checkpoint | None:
        """Fill the model from the newest checkpoint; all processes read the one that the main process found whole."""
        found: list[Any] = [None, None]
        newest = None
        if self.world.is_main:
            try:
                newest = checkpoint.read_newest(self.folder)
                if newest is not None:
                    found[0] = newest.folder
            except UserError as error:
                found[1] = str(error)
        dist.broadcast_object_list(found, src=0)
        if found[1] is not None:
            raise AgreedError(found[1], said_here=self.world.is_main)
        if found[0] is None:
            return None
        newest = newest or checkpoint.read(found[0])
        state.load_model(self.model, newest.model, newest.folder.name)
        if newest.progress.corpus != self.corpus.digest():
            raise UserError(
                f"data.shards: {', '.join(map(str, self.corpus.folders))} hold other data than {self.folder} has been "
                "trained on; give the same shards (they may have moved), or another train.run"
            )
        if self.world.is_main:  # only now: a run with other data or another model changes nothing
            checkpoint.set_aside_after(self.folder, newest.progress.step)
        log.info("resuming %s after step %d", self.folder, newest.progress.step)
        return newest

    def train(self, stop: StopFlag) -> None:
        """Step after step to the end; the last state is always saved."""
        signalled = False
        limit = min(self.steps, self.config.train.stop_after or self.steps)
        self.announcer.start(self)
        if self.world.is_main:
            plan = {"global_batch": self.plan.global_batch, "steps_per_epoch": self.order.steps_per_epoch}
            folder.describe(self.folder, {"steps": self.steps, "processes": self.world.size, **plan})
        with closing(self.loader.batches(self.step)) as batches:
            while self.step < limit:
                verdict = self.one_step(batches, stop.signal is not None)
                if verdict.damaged and (reason := self.damage.too_much(self.seen())):
                    self.save()
                    self.end_together(f"stopped after step {self.step}, which is saved: {reason}")
                if verdict.stop:
                    signalled = True
                    break
                if self.step % self.config.train.checkpoint_every == 0 and self.step < limit:
                    self.save()
        self.save()
        self.writer.wait()
        self.watchdog.reached(self.step, "end")
        if self.step < self.steps:
            other = "a signal to another process" if signalled else "train.stop_after"
            why = stop.signal.name if stop.signal is not None else other
            words = f"stopped on {why} after step {self.step} of {self.steps}; saved, start again to go on"
            raise RunStopped(words, by_signal=signalled)

    def one_step(self, batches: Iterator[Batch], stop: bool) -> Verdict:
        """One optimizer step: micro-batches forward and backward, the vote, the update, the EMA, the metrics."""
        began, waited = time.perf_counter(), self.loader.waited
        number = self.step + 1
        self.watchdog.reached(number, "step")
        before = [buffer.clone() for buffer in self.buffers]
        rate = learning_rate(self.step, self.steps, self.plan.global_batch, self.config.optim)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        pictured = self._is_due(self.config.train.images_every, number)
        self.model.keep_picture = pictured and self.world.is_main
        total: dict[str, torch.Tensor] = {}
        for micro, batch in enumerate(itertools.islice(batches, self.plan.accumulation)):
            if self.samples is not None:
                self.samples.add(number, micro, batch)
            losses = self.engine(batch)
            total = {name: total.get(name, 0) + value.detach() for name, value in losses.items()}
            last = micro == self.plan.accumulation - 1
            if last:
                damaged = self.loader.damaged(self.step)
                ballot = Ballot(total, self.plan.accumulation, stop, len(damaged))
            self.engine.backward(losses["total"])
            if last:
                verdict = ballot.read()
                if not verdict.finite:
                    self.end_on_bad_loss(number, verdict, before)
            self.engine.step()
        self.model.after_step(number / self.steps)
        self.step = number
        self.report(verdict, rate, time.perf_counter() - began, self.loader.waited - waited)
        if pictured:
            self.save_picture()
        if verdict.damaged:
            self.damage.add(damaged)
        return verdict

    def seen(self) -> int:
        """Samples seen at least once so far, at most."""
        consumed = self.step * self.plan.global_batch
        return min(consumed, self.order.samples) if self.order.samples else consumed

    def report(self, verdict: Verdict, rate: float, seconds: float, waited: float) -> None:
        """The progress line of every step, and the metrics of every `log_every`-th."""
        speed = self.plan.global_batch / seconds
        if self.lead is not None:
            self.lead.step(seconds)
        self.announcer.advance(self.step, verdict.losses["total"], speed, waited / seconds)
        if self.metrics is None or not self._is_due(self.config.train.log_every, self.step):
            return
        values = {
            "epoch": self.step / self.order.steps_per_epoch,
            "samples": self.step * self.plan.global_batch,
            "lr": rate,
            "losses": verdict.losses,
            "images_per_second": speed,
            "data_wait": waited / seconds,
            "processes": self.world.size,
        }
        if self.world.device.type == "cuda":  # the most that tensors took on the main process's GPU, bytes
            values["gpu_memory"] = torch.cuda.max_memory_allocated(self.world.device)
        self.metrics.log(self.step, values)

    def save_picture(self) -> None:
        """What FaceMAE saw and made in this step's own forward pass."""
        picture = getattr(self.model, "picture", None)
        self.model.keep_picture = False
        if self.metrics is None or picture is None:
            return
        image = pictures.draw(picture, self.model.mean, self.model.std)
        pictures.save(self.folder / "images" / f"step-{self.step:08d}.png", image)
        self.metrics.picture("facemae", image, self.step)
        self.model.picture = None

    def rehearse_stop(self, limit: float) -> None:
        """Measure whether saving fits between a stop signal and the end of the job, `limit` seconds later.

        Raises:
            UserError: the main process cannot write a checkpoint, or has no room for it.
        """
        self.watchdog.reached(self.step, "rehearsal")
        began = time.perf_counter()
        model = state.model_state(self.engine, keep=self.world.is_main)
        optim = state.optimizer_state(self.engine, self.keys, keep=self.world.is_main)
        gathering = time.perf_counter() - began
        reason: list[str | None] = [None]
        if self.world.is_main:
            try:
                writing = lead.rehearse(self.folder, model, optim, self.config.train.keep)
                self.lead = lead.Lead(limit, gathering + writing)
            except UserError as error:
                reason = [str(error)]
        dist.broadcast_object_list(reason, src=0)
        if reason[0] is not None:
            raise AgreedError(reason[0], said_here=self.world.is_main)

    def save(self) -> None:
        """Copy the state to the main process's memory and let its thread write it."""
        self.watchdog.reached(self.step, "checkpoint")
        model = state.model_state(self.engine, keep=self.world.is_main)
        optim = state.optimizer_state(self.engine, self.keys, keep=self.world.is_main)
        if self.world.is_main:
            samples = self.step * self.plan.global_batch
            digests = configs.digest(self.config), self.corpus.digest()
            progress = checkpoint.Progress(self.step, samples, *digests, self.config.optim.name)
            self.writer.submit(progress, model, optim)

    def end_on_bad_loss(self, number: int, verdict: Verdict, before: list[torch.Tensor]) -> NoReturn:
        """Save the state before this step, name the step, its samples and its losses, and stop."""
        for buffer, value in zip(self.buffers, before, strict=True):
            buffer.copy_(value)  # the bad forward has been through BatchNorm's statistics
        self.save()
        ids = self.order.batch(self.step)[0]
        file = self.folder / "nonfinite.json"
        if self.world.is_main:
            keys = [self.corpus.key(*place) for place in zip(*self.corpus.locate(ids), strict=True)]
            facts = {"step": number, "losses": verdict.losses, "ids": ids.tolist(), "keys": keys}
            file.write_text(json.dumps(facts, indent=1))
        bad = ", ".join(f"{name}={value}" for name, value in verdict.losses.items())
        self.end_together(
            f"step {number}: a loss is not finite ({bad}), samples {ids[:4].tolist()}... of {len(ids)}, all in {file}; "
            f"the state after step {self.step} is saved. A lower optim.lr, optim.clip or train.precision=fp32 may help"
        )

    def end_together(self, why: str) -> NoReturn:
        """Leave once the main process has written all: a launcher ends those that are left when the first leaves."""
        self.writer.wait()
        dist.barrier()
        raise AgreedError(why, said_here=self.world.is_main)

    def _is_due(self, every: int, step: int) -> bool:
        return every > 0 and (step % every == 0 or step == self.steps)
