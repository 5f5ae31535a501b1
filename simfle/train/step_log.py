"""Write progress, metrics, features, probes, images, sample ids and a profile of a run's steps."""

import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from simfle.batch import Batch
from simfle.config.schema import DataConfig, PretrainConfig
from simfle.data.loader import has_dali, threads_per_process
from simfle.data.training_data import TrainingData
from simfle.runtime.distributed import BatchLayout, World
from simfle.train.engine import TrainEngine
from simfle.train.step_status import StepStatus
from simfle.train.telemetry import profiler, reconstructions
from simfle.train.telemetry.bottleneck import ThroughputFacts
from simfle.train.telemetry.collapse_monitor import FeatureTelemetry, Measures
from simfle.train.telemetry.loggers import RunLoggers
from simfle.train.telemetry.metrics import MetricLogger, SampleLog, flatten_metrics
from simfle.train.telemetry.probe_monitor import Monitor
from simfle.train.telemetry.progress import ProgressReporter
from simfle.train.watchdog import Watchdog


@dataclass(frozen=True)
class StepTime:
    """Durations of a step in seconds: the total, and the wait for data."""

    seconds: float
    data_wait: float


class StepLog:
    """Report the steps of a run. Only the main process prints and writes, except sample ids and profiles."""

    def __init__(
        self, config: PretrainConfig, world: World, data: TrainingData, engine: TrainEngine, watchdog: Watchdog
    ) -> None:
        run = Path(config.train.run_dir)
        self._train, self._world, self._data, self._engine, self._run = config.train, world, data, engine, run
        self._closing = ExitStack()
        self._monitor = Monitor(config, world, engine.steps, lambda: watchdog.mark_phase("probe"))
        self._features = FeatureTelemetry(run, engine.model, world, engine.step)
        self._samples = SampleLog(run, world.rank) if config.train.log_sample_ids else None
        self._metrics = MetricLogger(run, engine.step) if world.is_main else None
        self._profiler = profiler.open_profiler(run, config.train, world)
        self._loggers: RunLoggers | None = None
        if world.is_main and config.train.loggers and engine.step < engine.steps:
            self._loggers = RunLoggers(config)
            self._closing.callback(self._close_loggers, self._loggers)  # registered first, closed last: it may wait
        for each in (self._samples, self._metrics, self._profiler):
            if each is not None:
                self._closing.callback(each.close)
        self._progress = self._closing.enter_context(ProgressReporter(engine.steps, engine.step, enabled=world.is_main))
        if config.model.init:
            self._progress.baseline = "at the start"

    def begin_run(self, plan: str, facts: ThroughputFacts) -> None:
        """Print the plan, and measure the random network if probes are configured. Collective."""
        self._progress.start(plan, facts)
        self._monitor.begin(self._engine.step, self._engine.deepspeed)

    def begin_step(self) -> None:
        """Decide which outputs the next step records."""
        number = self._engine.step + 1
        image = self._is_due(self._train.log_images_every, number) and self._world.is_main
        self._engine.model.capture_reconstruction = image
        self._features.begin(number == 1 or self._is_due(self._train.log_every, number))

    def add_batch(self, micro: int, batch: Batch) -> None:
        """Record the sample ids of a micro-batch of the next step, if configured."""
        if self._samples is not None:
            self._samples.add(self._engine.step + 1, micro, batch)

    def end_step(self, status: StepStatus, rate: float, began: float, data_wait: float) -> StepTime:
        """Report a finished step. Collective.

        Args:
            status: reduced status of the step.
            rate: learning rate.
            began: start of the step, from `time.perf_counter`.
            data_wait: seconds spent waiting for data.
        """
        step = self._engine.step
        recorded = step == 1 or self._is_due(self._train.log_every, step)
        measures = self._features.measure(step) if recorded else {}
        duration = StepTime(time.perf_counter() - began, data_wait)
        measures |= self._probe(step, status)
        speed = self._train.global_batch / duration.seconds
        self._progress.advance(step, status.losses, speed, duration.seconds, data_wait, measures)
        if self._metrics is not None and (self._is_due(self._train.log_every, step) or "monitor" in measures):
            self._log_metrics(self._metrics, step, status, rate, duration, measures)
        if self._is_due(self._train.log_images_every, step):
            self._save_image(step)
        if self._profiler is not None:
            self._profiler.step()
        return duration

    def close(self) -> None:
        """Close files, and end the progress bar."""
        self._closing.close()

    def _close_loggers(self, loggers: RunLoggers) -> None:
        loggers.close(complete=self._engine.step >= self._engine.steps)

    def _probe(self, step: int, status: StepStatus) -> Measures:
        """Measure the backbone on labeled shards if a measurement is due and no stop is pending."""
        if status.stop or not self._monitor.due(step):
            return {}
        found = self._monitor.measure(self._engine.deepspeed)
        return {"monitor": found} if found else {}

    def _log_metrics(
        self,
        metrics: MetricLogger,
        step: int,
        status: StepStatus,
        rate: float,
        duration: StepTime,
        measures: Measures,
    ) -> None:
        values: dict[str, Any] = {
            "epoch": step / self._data.steps_per_epoch,
            "samples": step * self._train.global_batch,
            "lr": rate,
            "losses": status.losses,
            "images_per_second": self._train.global_batch / duration.seconds,
            "data_wait": duration.data_wait / duration.seconds,
            "processes": self._world.world_size,
            **measures,
        }
        if self._world.device.type == "cuda":  # peak bytes of tensors on the main process's GPU
            values["gpu_memory"] = torch.cuda.max_memory_allocated(self._world.device)
        metrics.log(step, values)
        if self._loggers is not None:
            self._loggers.log(step, flatten_metrics(values))

    def _save_image(self, step: int) -> None:
        """Save an image of FaceMAE's input and output in the forward pass of this step."""
        model = self._engine.model
        found, model.capture_reconstruction, model.reconstruction = model.reconstruction, False, None
        if self._metrics is None or found is None:
            return
        image = reconstructions.draw_reconstruction(found, model.mean, model.std)
        reconstructions.save_image(self._run / "images" / f"step-{step:08d}.png", image)
        self._metrics.log_image("facemae", image, step)

    def _is_due(self, every: int, step: int) -> bool:
        return every > 0 and (step % every == 0 or step == self._engine.steps)


def plan_text(
    config: PretrainConfig, world: World, layout: BatchLayout, data: TrainingData, engine: TrainEngine, backend: str
) -> str:
    """Describe a run before its first step in two lines: data, batch, learning rate, processes and run folder.

    Further lines report weights from model.init and an extension.
    """
    peak = config.optim.lr * layout.global_batch / 256
    start = f"resuming after step {engine.step}" if engine.step else "from the start"
    if engine.step >= engine.steps:
        start += ", the last; a greater train.steps with train.extend=true trains longer"
    text = (
        f"{config.model.method} with {config.model.backbone} on {data.description}, {engine.steps} steps; {start}\n"
        f"global batch {layout.global_batch} = {world.world_size} processes x {layout.grad_accum_steps} accumulation "
        f"steps x {layout.micro_batch} samples; peak learning rate {peak:g}; ZeRO stage {engine.zero_stage}, "
        f"{config.train.precision}, {world.device.type}, {backend}; run folder {Path(config.train.run_dir)}"
    )
    warmup = config.optim.warmup_steps
    notes = [f"optim.warmup_steps={warmup}: not shorter than the run, so the peak is not reached"]
    return "\n".join([text, *notes * (0 < engine.steps <= warmup), *engine.start.notes])


def throughput_facts(data: DataConfig, precision: str, world: World, backend: str, *, remote: bool) -> ThroughputFacts:
    """Return the inputs of the advice on a run's speed. remote: shards come from a URL."""
    return ThroughputFacts(
        device=world.device.type,
        backend=backend,
        threads=threads_per_process(data.decode_threads, world.local_world_size),
        cores=threads_per_process(0, world.local_world_size),
        precision=precision,
        remote=remote or data.resampled,
        dali=has_dali(),
    )
