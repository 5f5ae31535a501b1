"""Measure at the start of a run whether a stop fits between its signal and the end of the job."""

import logging
import shutil
import time
from pathlib import Path

from simfle.errors import UserError
from simfle.train.checkpointing import checkpoint
from simfle.train.checkpointing.state_dict import State

log = logging.getLogger(__name__)


class StopBudget:
    """Time for a stop: up to one step, then saving. `limit`: available seconds; `saving`: measured seconds."""

    def __init__(self, limit: float, saving: float) -> None:
        self.limit, self.saving = limit, saving
        self._steps = 0

    def step(self, seconds: float) -> None:
        """Record the duration of a step; report at the second step, because the first warms up."""
        self._steps += 1
        if self._steps != 2:
            return
        needed = seconds + self.saving
        text = f"stopping takes about {needed:.1f} s (a step {seconds:.1f} s, saving {self.saving:.1f} s)"
        if needed > self.limit / 2:
            log.warning(
                "%s, but the stop signal arrives only %g s before the end of the job. Fix: set --signal-seconds %d or "
                "more; otherwise the steps since the last checkpoint may be repeated",
                *(text, self.limit, round(3 * needed)),
            )
        else:
            log.info("%s; the stop signal arrives %g s before the end of the job", text, self.limit)


def measure_stop(run: Path, model: State, optim: State, keep: int) -> float:
    """Write a checkpoint, delete it, and return the seconds that the write took.

    Raises:
        UserError: If the checkpoint cannot be written, or there is no space for `keep` checkpoints.
    """
    folder = run / "checkpoints" / ".rehearsal.partial"
    began = time.perf_counter()
    try:
        bytes_written = sum(each["bytes"] for each in checkpoint.write_files(folder, model, optim).values())
        seconds = time.perf_counter() - began
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise UserError(
            f"train.run_dir={run}: cannot write a checkpoint: {error.strerror}. Fix: check this disk's space and state."
        ) from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    missing = keep + 1 - len(checkpoint.complete_checkpoints(run))
    if free < missing * bytes_written:
        raise UserError(
            f"train.run_dir={run}: {free / 1e9:.1f} GB free, but {missing} more checkpoints of "
            f"{bytes_written / 1e9:.2f} GB are needed (train.keep_checkpoints={keep}). Fix: free disk space, or "
            "lower train.keep_checkpoints."
        )
    return seconds
