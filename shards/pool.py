"""Shards on several processes: each takes the next one; a death, a full disk or Ctrl-C ends all of them cleanly."""

import gc
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from multiprocessing.process import BaseProcess
from typing import Any

from shards.errors import UserError
from shards.plan import Shard
from shards.work import Job, write_shard

AHEAD = 2  # shards handed out per worker
PATIENCE = 2.0  # seconds for a worker to leave its shard
POLL = 0.2  # seconds between two looks at the counter

_job: Job
_counter: Any
_stop: Any


def run_shards(job: Job, shards: Sequence[Shard], workers: int, advance: Callable[[int], None]) -> None:
    """Write `shards` on `workers` processes (1: in this one). `advance` is called with the entries done so far.

    Raises:
        UserError: what a worker raised, or that one died.
    """
    workers = min(workers, len(shards))
    if workers <= 1:
        done = 0
        for shard in shards:

            def step(entries: int) -> None:
                nonlocal done
                done += entries
                advance(done)

            write_shard(job, shard, step)
        return
    context = multiprocessing.get_context("spawn")
    counter, stop = context.Value("q", 0), context.Event()
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(workers, context, _start, (job, counter, stop))
    try:
        # Read without the lock: a worker that is killed may hold it for ever.
        _feed(pool, shards, workers, lambda: advance(counter.get_obj().value))
    except BrokenProcessPool:
        raise UserError(
            "a worker process died (killed, out of memory, or a decoder crashed); what is finished is kept: "
            "run the same command again, with fewer --workers if memory was short"
        ) from None
    finally:
        stop.set()
        # With wait=True, or the pool's own thread writes to a closed pipe when Python ends; beside us, for workers that
        # hang are stopped only by _end.
        leaving = threading.Thread(target=pool.shutdown, kwargs={"wait": True, "cancel_futures": True})
        leaving.start()
        _end([child for child in multiprocessing.active_children() if child not in others])
        leaving.join(PATIENCE)


def _feed(pool: ProcessPoolExecutor, shards: Sequence[Shard], workers: int, look: Callable[[], None]) -> None:
    queue = iter(shards)
    with _interrupts_ignored():  # here the processes start; they keep ignoring Ctrl-C, which is the parent's to handle
        pending = {pool.submit(_run, shard) for shard in islice(queue, AHEAD * workers)}
    while pending:
        done, pending = wait(pending, timeout=POLL, return_when=FIRST_EXCEPTION)
        for future in done:
            future.result()
        look()
        pending |= {pool.submit(_run, shard) for shard in islice(queue, AHEAD * workers - len(pending))}


def _end(children: Iterable[BaseProcess]) -> None:
    """Let the workers leave; those that hang, for instance in a network file system, are stopped."""
    last = time.monotonic() + PATIENCE
    for child in children:
        child.join(max(0.0, last - time.monotonic()))
        if child.is_alive():
            child.terminate()


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # only that one may change what signals do
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _start(job: Job, counter: Any, stop: Any) -> None:
    """Set up a worker, which does not outlive its parent."""
    global _job, _counter, _stop
    _job, _counter, _stop = job, counter, stop
    gc.freeze()  # nothing that is loaded by now will ever be garbage: 6 % of the time went into looking
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _run(shard: Shard) -> None:
    write_shard(_job, shard, _advance)


def _advance(entries: int) -> None:
    if _stop.is_set():
        raise UserError("stopped")
    with _counter.get_lock():
        _counter.value += entries
