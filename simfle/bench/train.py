"""Time training with data, the same steps on a batch in memory, and checkpoints."""

import itertools
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

import torch

from simfle.batch import Batch
from simfle.bench.runs import Measurement
from simfle.train.trainer import Trainer

DATA, FREE, COPY, WRITE = "with data", "loader-free", "copy", "write"


@dataclass(frozen=True)
class Shares:
    """Fractions of the time of steps with data: waiting for data, and blocked by checkpoints at the configured
    interval."""

    data: float
    checkpoints: float
    bytes: int


def measure(run: Trainer, steps: int, rounds: int) -> tuple[dict[str, Measurement], Shares]:
    """Time rounds of `steps` steps with data and as many without data; write a checkpoint after each.

    One warm-up round runs first. Before the clock of a repetition with data starts, the batches prefetched in the
    meantime are consumed.
    """
    found = {
        DATA: Measurement(f"{steps} steps of the trainer with its loader"),
        FREE: Measurement(f"{steps} steps of the trainer on one batch in memory"),
        COPY: Measurement("copy of a checkpoint's state from the engine, which blocks training"),
        WRITE: Measurement("write of a checkpoint by its thread, with fsync and hash"),
    }
    waited = 0.0
    written = 0
    for number in range(rounds + 1):
        warm = found if number else {name: Measurement("") for name in found}
        with closing(run.loader.batches(run.step)) as batches:
            first = next(batches)
            take(run, itertools.chain([first], batches), run.loader.prefetch + 1)
            before = run.loader.data_wait_seconds
            warm[DATA].add(lambda batches=batches: take(run, batches, steps))  # type: ignore[misc]
            waited += (run.loader.data_wait_seconds - before) if number else 0.0
        # The loader has ended, because it would otherwise fill its queue during the other repetitions.
        warm[FREE].add(lambda first=first: take(run, itertools.repeat(first), steps))  # type: ignore[misc]
        warm[COPY].add(run.checkpoints.copy)
        run.save()
        run.checkpoints.wait()
        warm[WRITE].seconds.append(run.checkpoints.writer.seconds)
        warm[WRITE].cpu.append(run.checkpoints.writer.cpu)
        written = run.checkpoints.writer.bytes
    step = found[DATA].median / steps
    held = found[COPY].median / (run.config.train.checkpoint_every * step)
    return found, Shares(waited / sum(found[DATA].seconds), held, written)


def take(run: Trainer, batches: Iterator[Batch], steps: int) -> None:
    """Run `steps` steps; return after GPU synchronization."""
    for _ in range(steps):
        run.train_step(batches, stop=False)
    if run.world.device.type == "cuda":
        torch.cuda.synchronize(run.world.device)
