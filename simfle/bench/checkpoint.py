"""What a checkpoint costs: the copy that training waits for, the writing beside it."""

import itertools
from contextlib import closing
from typing import Any

from simfle.bench.train import COPY, WRITE, take
from simfle.bench.turns import Turns
from simfle.train.run import Run

ALONE, BESIDE = "steps", "steps beside writing"


def measure(run: Run, steps: int, rounds: int) -> tuple[dict[str, Turns], dict[str, Any]]:
    """Rounds of `steps` steps on one batch, a copy, a checkpoint that nothing disturbs, and steps beside one.

    One round before them warms up. The second value: bytes, MB/s, and the share of a run at its interval that training
    is held up.
    """
    found = {
        ALONE: Turns(f"{steps} steps on one batch in memory"),
        COPY: Turns("the state copied out of the engine: what training waits for"),
        WRITE: Turns("written by its thread while training waits: fsync and hash included, no limit of bandwidth"),
        BESIDE: Turns(f"{steps} steps while one is written; CPU is that of both"),
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
        take(run, itertools.repeat(first), 1)  # a step of its own, else there is nothing to write
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
