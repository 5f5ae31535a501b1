"""Starting and ending a process that loads torch: without looking for garbage in modules, or taking them to pieces."""

import atexit
import gc
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

OWN_CORES = "SIMFLE_OWN_CORES"  # set in the environment: the cores that this process may use are shared with no other
LAUNCHER = "SIMFLE_LAUNCHER"  # the same: the process that started this one, and hands signals on to it
FLUSH_FAILED = 120  # what Python itself ends with where the last of the output cannot be written


@contextmanager
def loading() -> Iterator[None]:
    """Around heavy imports: no garbage collection meanwhile, and none of what they made afterwards.

    torch, DeepSpeed and timm make 700,000 objects, none of them garbage. The collector would go through all of them a
    dozen times while they load, and again each time it runs in training.
    """
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        atexit.register(gc.unfreeze)  # some extension modules complain of what is left of them at the end
        if running:
            gc.enable()


def own_process(main: Callable[[], None]) -> None:
    """Run `main` as all that this process does. At the end modules are not taken to pieces, which takes a second.

    Everything else is done as ever: threads are waited for, what was registered with atexit since is called, output
    is flushed, the exit code is that of `main`.
    """
    code = 1

    def leave() -> None:
        last = code
        for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
            try:
                if stream is not None:
                    stream.flush()
            except (OSError, ValueError):  # the latter: it is closed
                last = last or FLUSH_FAILED
        os._exit(last)

    atexit.register(leave)  # the first that is registered is called last
    try:
        main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        raise
