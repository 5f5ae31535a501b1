"""Save the state of a run from the engine to its folder, and load it."""

import logging
import time
from pathlib import Path
from typing import Any

from simfle.config import schema as configs
from simfle.config.schema import PretrainConfig
from simfle.data.training_data import TrainingData
from simfle.errors import UserError
from simfle.optim import STATES
from simfle.runtime.collective import main_process_tries, main_process_value
from simfle.runtime.distributed import World
from simfle.train.checkpointing import checkpoint, state_dict, stop_budget
from simfle.train.checkpointing.state_dict import State
from simfle.train.run_lock import RunLock

log = logging.getLogger(__name__)


def resume(run: Path, model: Any, data: TrainingData, world: World) -> checkpoint.Checkpoint | None:
    """Fill the model from the newest checkpoint; all processes read the one that the main process validated."""
    newest = main_process_tries(world, lambda: checkpoint.read_newest(run))
    folder = main_process_value(newest.folder if newest is not None else None)
    if folder is None:
        return None
    newest = newest or checkpoint.read(folder)
    state_dict.load_model(model, newest.model, newest.folder.name)
    if newest.progress.corpus != data.digest():
        raise UserError(
            f"data.shards: {', '.join(map(str, data.folders))} do not contain the data that {run} was "
            "trained on. Fix: use the original shards (from any location), or another train.run_dir."
        )
    if world.is_main:  # after the checks, so that a run with other data or another model changes nothing
        checkpoint.quarantine_after(run, newest.progress.step)
    log.info("resuming %s after step %d", run, newest.progress.step)
    return newest


class CheckpointManager:
    """Copy the state to the main process's memory, which blocks training, and write it in a thread.

    blocked_seconds: seconds for which training was blocked by copies, and by waiting for the previous write.
    """

    def __init__(
        self,
        engine: Any,
        config: PretrainConfig,
        data: TrainingData,
        world: World,
        claim: RunLock | None = None,
        init: str = "",
    ) -> None:
        """Create the manager. claim: lock of the run folder. init: SHA-256 of the weights of model.init, or empty."""
        self.engine, self.config, self.world = engine, config, world
        self.run = Path(config.train.run_dir)
        self.digests = configs.config_digest(config), data.digest()
        self.identity = configs.run_identity(config)
        self.claim, self.init = claim, init
        guard = [claim.check] if claim else []
        self.writer = checkpoint.AsyncCheckpointWriter(
            self.run, config.train.keep_checkpoints, config.train.checkpoint_write_mbps, *guard
        )
        self.blocked_seconds = 0.0
        self._stop_budget: stop_budget.StopBudget | None = None

    def copy(self) -> tuple[State, State]:
        """Copy model and optimizer to the main process; other processes get {}. Collective."""
        model = state_dict.gather_model_state(self.engine, keep=self.world.is_main)
        optim = state_dict.gather_optimizer_state(self.engine, STATES[self.config.optim.name], keep=self.world.is_main)
        return model, optim

    def save(self, step: int) -> None:
        """Save the state after `step` steps. Collective.

        Raises:
            CollectiveError: If this run no longer owns the folder.
        """
        began = time.perf_counter()
        main_process_tries(self.world, lambda: self.claim.check() if self.claim else None)
        model, optim = self.copy()
        if self.world.is_main:
            samples = step * self.config.train.global_batch
            progress = checkpoint.TrainState(
                *(step, samples, *self.digests, self.config.optim.name), identity=self.identity, init=self.init
            )
            self.writer.submit(progress, model, optim)
        self.blocked_seconds += time.perf_counter() - began

    def wait(self) -> None:
        """Wait until all saved checkpoints are complete, written without a rate limit."""
        self.writer.wait()

    def count_step(self, seconds: float) -> None:
        """Record the duration of a step: a stop waits for up to one step."""
        if self._stop_budget is not None:
            self._stop_budget.step(seconds)

    def measure_stop(self, limit: float) -> None:
        """Measure whether saving fits between a stop signal and the end of the job, `limit` seconds later. Collective.

        Raises:
            UserError: If the main process cannot write a checkpoint, or lacks disk space.
        """
        began = time.perf_counter()
        model, optim = self.copy()
        gathering = time.perf_counter() - began
        writing = main_process_tries(
            self.world, lambda: stop_budget.measure_stop(self.run, model, optim, self.config.train.keep_checkpoints)
        )
        if writing is not None:
            self._stop_budget = stop_budget.StopBudget(limit, gathering + writing)
