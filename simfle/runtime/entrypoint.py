"""Start and exit a process that loads torch, without garbage collection of modules and without their teardown."""

import atexit
import gc
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

OWN_CORES = "SIMFLE_OWN_CORES"  # environment variable: the cores available to this process are not shared
LAUNCHER = "SIMFLE_LAUNCHER"  # environment variable: pid of the parent process, which forwards signals to this one
FLUSH_FAILED = 120  # Python's exit code if the last output cannot be written


@contextmanager
def gc_frozen_imports() -> Iterator[None]:
    """Disable garbage collection during heavy imports, and exempt the imported objects from it afterwards.

    torch, DeepSpeed and timm create 700,000 objects that are never garbage. The collector would traverse all of them a
    dozen times while they load, and again on each collection during training.
    """
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        atexit.register(gc.unfreeze)  # some extension modules complain about frozen objects at exit
        if running:
            gc.enable()


def run_as_main(main: Callable[[], None]) -> None:
    """Run `main` as the only task of this process, and skip the teardown of modules, which takes a second.

    Otherwise the exit is normal: threads are joined, atexit functions registered by `main` are called, output is
    flushed, the exit code is that of `main`.
    """
    code = 1

    def leave() -> None:
        last = code
        for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
            try:
                if stream is not None:
                    stream.flush()
            except (OSError, ValueError):  # ValueError: closed
                last = last or FLUSH_FAILED
        os._exit(last)

    atexit.register(leave)  # registered first, called last
    try:
        main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        raise
