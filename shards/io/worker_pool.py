"""Map a function over items in several processes; a crash, a full disk or Ctrl-C stops all of them cleanly.

Each process is connected by pipes only. Python's own pools share semaphores, which are files in /dev/shm and remain
there if all processes are killed together (a control group, a container out of memory). They also rerun the user's
script in each process, so that a script without `if __name__ == "__main__"` fails.
"""

import gc
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from multiprocessing.connection import Connection, Pipe, wait
from typing import Any, Generic, TypeVar

from shards.errors import UserError
from shards.io.open_files import raise_limit

FILES_PER_PROCESS = 3  # open files here for each process, of which one is closed once the process has started
EXIT_TIMEOUT = 2.0  # seconds for a process to stop
PROGRAM = """
import sys
sys.path[:] = filter(None, sys.path)  # not the current folder, regardless of its content
from multiprocessing.connection import Connection
parent = Connection(int(sys.argv[1]))
try:
    sys.path[:] = parent.recv()
except EOFError:  # the parent stopped before it had started all workers
    sys.exit()
from shards.io.worker_pool import worker_main
worker_main(parent)
"""

Item = TypeVar("Item")
Answer = TypeVar("Answer")

_here = threading.local()  # `tell`: the implementation of `report_progress` in this thread


def parallel_map(
    function: Callable[[Item], Answer],
    items: Sequence[Item],
    processes: int,
    on_progress: Callable[[Any], None] | None = None,
) -> Iterator[Answer]:
    """Yield `function` of each item, in order, computed by several processes, or by this one if 1 suffices.

    Processes are started fresh, and arguments and results are pickled.

    Args:
        function: function of an item, picklable.
        items: the items.
        processes: number of processes.
        on_progress: called in this process with each value that `function` passes to `report_progress`.

    Raises:
        UserError: If `function` raised a UserError, or a process died.
        RuntimeError: If `function` raised another error in a process; the message contains its traceback.
    """
    processes = min(processes, len(items))
    if processes <= 1:
        for item in items:
            _here.tell = on_progress
            yield function(item)
        return
    queue = enumerate(items)
    done: dict[int, Answer] = {}
    taken = 0
    with _started(function, processes) as workers:
        idle, busy = list(workers), {}
        while taken < len(items):
            for number, item in islice(queue, len(idle)):
                worker = idle.pop()
                busy[worker] = number
                _send(worker, item)
            ready: list[Any] = wait(busy)
            for worker in ready:
                answer = _receive(worker)
                if isinstance(answer, _Done):
                    done[busy.pop(worker)] = answer.value
                    idle.append(worker)
                elif on_progress:
                    on_progress(answer)
            while taken in done:
                yield done.pop(taken)
                taken += 1


def report_progress(value: Any) -> None:
    """Pass a value from `function` to the `on_progress` of `parallel_map`.

    Raises:
        UserError: If the parent has stopped.
    """
    if _here.tell:
        _here.tell(value)


@dataclass(frozen=True)
class _Done(Generic[Answer]):
    value: Answer


@dataclass(frozen=True)
class _Failed:
    error: UserError | None
    words: str


def _send(worker: "Connection[Any, Any]", item: object) -> None:
    try:
        worker.send(item)
    except OSError:
        raise _died() from None


def _receive(worker: "Connection[Any, Any]") -> Any:
    try:
        answer = worker.recv()
    except (EOFError, OSError):
        raise _died() from None
    if isinstance(answer, _Failed):
        raise answer.error or RuntimeError(f"in a worker process:\n{answer.words}")
    return answer


def _died() -> UserError:
    return UserError(
        "a worker process died (killed, out of memory, or a decoder crash); finished work is kept. "
        "Fix: rerun the command, with fewer --workers if memory ran out."
    )


@contextmanager
def _started(function: Callable[[Any], Any], processes: int) -> "Iterator[list[Connection[Any, Any]]]":
    children: list[subprocess.Popen[bytes]] = []
    pipes: list[Connection[Any, Any]] = []
    raise_limit(FILES_PER_PROCESS * processes)
    try:
        with _interrupts_ignored():  # workers ignore Ctrl-C: the parent handles it
            for _ in range(processes):
                ours, theirs = Pipe()
                pipes.append(ours)
                with theirs:  # closed here, so that a crash closes the pipe
                    words = [sys.executable, "-c", PROGRAM, str(theirs.fileno())]
                    children.append(subprocess.Popen(words, stdin=subprocess.PIPE, pass_fds=[theirs.fileno()]))
        for pipe in pipes:
            _send(pipe, sys.path)
            _send(pipe, function)
        yield pipes
    finally:
        for pipe in pipes:
            pipe.close()
        _end(children)


def _end(children: "Iterable[subprocess.Popen[bytes]]") -> None:
    """Wait for processes to exit; kill processes that hang, for example in a network file system."""
    last = time.monotonic() + EXIT_TIMEOUT
    for child in children:
        try:
            child.wait(max(0.0, last - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.kill()
            with suppress(subprocess.TimeoutExpired):
                child.wait(EXIT_TIMEOUT)
        if child.stdin:
            child.stdin.close()


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set signal handlers
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def worker_main(parent: "Connection[Any, Any]") -> None:
    """Run a worker, which exits with its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_follow_parent, daemon=True).start()
    _here.tell = partial(_report_progress, parent)
    try:
        function = parent.recv()
        gc.freeze()  # loaded modules are never garbage: scanning them took 6 % of the time
        while True:
            parent.send(_answer(function, parent.recv()))
    except (EOFError, OSError):  # the parent closed the pipe
        return


def _report_progress(parent: "Connection[Any, Any]", value: object) -> None:
    try:
        parent.send(value)
    except OSError:  # the parent has closed the pipe
        raise UserError("stopped") from None


def _answer(function: Callable[[Any], Any], item: object) -> object:
    try:
        return _Done(function(item))
    except UserError as error:
        return _Failed(error, "")
    except Exception:  # noqa: BLE001 - the parent raises it
        return _Failed(None, traceback.format_exc())


def _follow_parent() -> None:
    os.read(0, 1)  # blocks until the parent exits
    os._exit(1)
