"""Cost of a checkpoint: the copy that blocks training, and the write in the background."""

import itertools
from contextlib import closing
from typing import Any

from simfle.bench.train import COPY, WRITE, take
from simfle.bench.turns import Turns
from simfle.train.run import Run

ALONE, BESIDE = "steps", "steps beside writing"


def measure(run: Run, steps: int, rounds: int) -> tuple[dict[str, Turns], dict[str, Any]]:
    """Time rounds of `steps` steps on one batch, a copy, an undisturbed write, and steps during a write.

    One round before them warms up. Also returns bytes, MB/s, and the fraction of a run at its interval for which
    training
    is blocked.
    """
    found = {
        ALONE: Turns(f"{steps} steps on one batch in memory"),
        COPY: Turns("copy of the state from the engine, which blocks training"),
        WRITE: Turns("written by its thread while training waits: fsync and hash included, no rate limit"),
        BESIDE: Turns(f"{steps} steps during a write; CPU time of both"),
    }
    with closing(run.loader.batches(run.step)) as batches:
        first = next(batches)
    for number in range(rounds + 1):
        turns = found if number else {name: Turns("") for name in found}
        turns[ALONE].add(lambda: take(run, itertools.repeat(first), steps))
        turns[COPY].add(run.saver.copy)
        run.save()
        run.saver.wait()
        turns[WRITE].seconds.append(run.saver.writer.seconds)
        turns[WRITE].cpu.append(run.saver.writer.cpu)
        take(run, itertools.repeat(first), 1)  # a first step, otherwise there is nothing to write
        run.save()
        turns[BESIDE].add(lambda: take(run, itertools.repeat(first), steps))
        run.saver.wait()
    written, interval = run.saver.writer.bytes, run.config.train.checkpoint_every
    step = found[ALONE].median / steps
    facts = {
        "bytes": written,
        "MB/s": written / 1e6 / found[WRITE].median,
        "interval": interval,
        "held_up": found[COPY].median / (interval * step),
        "held_up_cpu": found[COPY].cpu_median * steps / (interval * found[ALONE].cpu_median),
    }
    return found, facts
