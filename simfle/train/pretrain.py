"""Run pretraining from a configuration to its end."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from simfle.config.schema import PretrainConfig
from simfle.data.loader import Loader, RankSlice
from simfle.data.training_data import TrainingData, open_data
from simfle.errors import CollectiveError
from simfle.models.registry import build_method
from simfle.runtime.collective import main_process_tries
from simfle.runtime.device import device_errors_as_user_errors
from simfle.runtime.distributed import BatchLayout, World, compute_batch_layout, init_distributed
from simfle.runtime.signals import StopSignal
from simfle.train import auto_batch, auto_compile, rank_consistency, run_dir
from simfle.train.checkpointing.manager import CheckpointManager
from simfle.train.engine import TrainEngine, start_engine
from simfle.train.preflight import check
from simfle.train.run_lock import JobStart, RunLock
from simfle.train.shard_watch import ShardWatch
from simfle.train.step_log import StepLog
from simfle.train.telemetry.corrupt_log import CorruptSampleLog
from simfle.train.trainer import Trainer, samples_seen
from simfle.train.watchdog import Watchdog

LESS_MEMORY = (
    "set train.micro_batch=auto, which finds the largest batch that fits, or model.activation_checkpointing=true"
)


@dataclass(frozen=True)
class JobContext:
    """Context of a cluster job; a run on one machine needs no context.

    stop: flag that may have been set before the run began.
    lock_timeout: seconds to wait for a run folder that exiting processes of an earlier start still hold.
    stop_grace_seconds: seconds between the stop signal and the end of the job (0 = unknown).
    on_hang: called with the reason just before a hanging process exits.
    start: start of a Slurm job; a later start of the same job may take over the folder.
    """

    stop: StopSignal | None = None
    lock_timeout: float = 0.0
    stop_grace_seconds: float = 0.0
    on_hang: Callable[[str], None] | None = None
    start: JobStart | None = None


def pretrain(config: PretrainConfig, context: JobContext = JobContext()) -> None:
    """Start or resume the run in `train.run_dir`, until its last step or a stop signal.

    Raises:
        UserError: If the configuration, data, checkpoint or folder is invalid, a loss is not finite, the disk is full
            or fails, or the memory is full.
        DeviceFailedError: If the GPU failed.
        RunStopped: If a signal or train.stop_after_step stopped the run early; the state is saved.
    """
    flag = nullcontext(context.stop) if context.stop is not None else StopSignal()
    with device_errors_as_user_errors(LESS_MEMORY), open_trainer(config, context) as trainer, flag as stop:
        if context.stop_grace_seconds:
            trainer.measure_stop_time(context.stop_grace_seconds)
        trainer.train(stop)


@contextmanager
def open_trainer(config: PretrainConfig, context: JobContext = JobContext()) -> Iterator[Trainer]:
    """Open a run, ready for its next step, and close its resources at the end. Raises UserError like `pretrain`."""
    check(config)
    with (
        init_distributed(config.train) as world,
        run_dir.disk_errors_as_user_errors(Path(config.train.run_dir)),
        ExitStack() as ends,
    ):
        config = auto_batch.resolve_micro_batch(auto_compile.resolve_compile(config, world.device), world)
        layout = compute_batch_layout(config.train, world.world_size)
        data = open_data(config.data, config.train.seed, layout.global_batch, world.rank)
        rank_consistency.check_ranks_match(config, data, world)
        torch.manual_seed(config.train.seed)
        model = build_method(config.model, config.views)
        # This is the first write: any of the steps above may have refused the run.
        claim = lock_run_dir_collectively(config, world, ends, context)
        place = Path(config.train.run_dir), world.rank, world.world_size, config.train.hang_timeout
        watchdog = ends.enter_context(Watchdog(*place, context.on_hang, claim))
        engine = start_engine(config, world, layout, data, model)
        with closing(build_trainer(config, world, layout, data, engine, watchdog)) as trainer:
            yield trainer


def build_trainer(
    config: PretrainConfig,
    world: World,
    layout: BatchLayout,
    data: TrainingData,
    engine: TrainEngine,
    watchdog: Watchdog,
) -> Trainer:
    """Build the other components of a trainer. Collective. Raises CollectiveError for too many corrupt samples."""
    rank_slice = RankSlice(world.rank, world.world_size, world.local_world_size, layout.grad_accum_steps)
    loader = Loader(data, config.views, config.data, rank_slice, world.device, engine.model.images)
    watchdog.watch_data(loader.waiting_for)

    def is_decodable(number: int) -> bool:
        watchdog.mark_phase("trying corrupt samples again")
        return loader.is_decodable(number)

    with ExitStack() as on_error:
        on_error.callback(loader.close)
        checkpoints = CheckpointManager(engine.deepspeed, config, data, world, watchdog.run_lock, engine.start.init)
        step_log = StepLog(config, world, data, engine, watchdog)
        on_error.callback(step_log.close)
        corrupt_log = CorruptSampleLog(
            Path(config.train.run_dir),
            config.data.max_corrupt_fraction,
            engine.step,
            world,
            is_decodable if data.corpus is not None else None,
        )
        if reason := corrupt_log.limit_exceeded(samples_seen(data, engine.step)):
            raise CollectiveError(reason, is_reporter=world.is_main)
        watched = data.corpus.stores if world.is_main and data.corpus is not None else ()
        on_error.pop_all()
    return Trainer(
        *(config, world, layout, data, engine, loader, checkpoints, step_log, corrupt_log),
        ShardWatch(watched),
        watchdog,
    )


def lock_run_dir_collectively(
    config: PretrainConfig, world: World, ends: ExitStack, context: JobContext
) -> RunLock | None:
    """Lock the folder in the main process, which receives the lock; on failure all processes exit with the reason.

    Raises:
        UserError: If the folder belongs to another run, is in use, or cannot be written.
        RunDirLockedError: If an earlier start of this job holds the folder.
    """
    run = Path(config.train.run_dir)

    def lock() -> RunLock:
        with run_dir.disk_errors_as_user_errors(run):
            held = ends.enter_context(run_dir.run_dir_lock(run, context.lock_timeout, context.start))
            run_dir.record_config(run, config)
            return held

    return main_process_tries(world, lock)
