"""Cost of a checkpoint: the copy that blocks training, and the write in the background."""

import itertools
from contextlib import closing
from typing import Any

from simfle.bench.runs import Measurement
from simfle.bench.train import COPY, WRITE, take
from simfle.train.trainer import Trainer

ALONE, BESIDE = "steps", "steps beside writing"


def measure(run: Trainer, steps: int, rounds: int) -> tuple[dict[str, Measurement], dict[str, Any]]:
    """Time rounds: `steps` steps on one batch, a copy, an undisturbed write, and steps during a write.

    One warm-up round runs first. Also returns bytes, MB/s, and the fraction of a run for which checkpoints at its
    interval block training.
    """
    found = {
        ALONE: Measurement(f"{steps} steps on one batch in memory"),
        COPY: Measurement("copy of the state from the engine, which blocks training"),
        WRITE: Measurement("write by its thread while training waits, with fsync and hash, without a rate limit"),
        BESIDE: Measurement(f"{steps} steps during a write; CPU time of both"),
    }
    with closing(run.loader.batches(run.step)) as batches:
        first = next(batches)
    for number in range(rounds + 1):
        turns = found if number else {name: Measurement("") for name in found}
        turns[ALONE].add(lambda: take(run, itertools.repeat(first), steps))
        turns[COPY].add(run.checkpoints.copy)
        run.save()
        run.checkpoints.wait()
        turns[WRITE].seconds.append(run.checkpoints.writer.seconds)
        turns[WRITE].cpu.append(run.checkpoints.writer.cpu)
        take(run, itertools.repeat(first), 1)  # without a first step, there is nothing to write
        run.save()
        turns[BESIDE].add(lambda: take(run, itertools.repeat(first), steps))
        run.checkpoints.wait()
    written, interval = run.checkpoints.writer.bytes, run.config.train.checkpoint_every
    step = found[ALONE].median / steps
    facts = {
        "bytes": written,
        "MB/s": written / 1e6 / found[WRITE].median,
        "interval": interval,
        "held_up": found[COPY].median / (interval * step),
        "held_up_cpu": found[COPY].cpu_median * steps / (interval * found[ALONE].cpu_median),
    }
    return found, facts
