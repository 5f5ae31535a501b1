"""Start several processes of one run on this machine, one per GPU or sharing its cores."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from simfle.errors import UserError
from simfle.runtime.entrypoint import LAUNCHER
from simfle.runtime.logs import say
from simfle.runtime.ports import free_port
from simfle.runtime.signals import STOP_SIGNALS

GRACE = 30.0  # seconds for the other processes to report errors after one has failed
COLORS = (
    "FORCE_COLOR",
    "CLICOLOR_FORCE",
    "TTY_COMPATIBLE",
    "TTY_INTERACTIVE",
)  # variables that make rich assume a terminal
# The program uses this process's module paths, because `python -m simfle` would search the current folder first, which
# may contain a random.py or another simfle.
PROGRAM = """
import sys
sys.path[:] = filter(None, sys.path)
import json
sys.path[:] = json.loads(sys.argv.pop(1))
sys.argv[0] = "simfle"
from simfle.commands.main import script
script()
"""
LAST_WORDS = 2000  # maximum characters printed from a failed process's output


def launch(words: Sequence[str], processes: int, *, relay: bool = False) -> int:
    """Run `simfle pretrain WORDS` in several processes; return the exit code of the first one that failed, or 0.

    The main process writes to this terminal, or with `relay` to sys.stderr, which a notebook displays. For the other
    processes, only the last lines of a failed process are printed. Stop signals are forwarded to all processes: the run
    saves a checkpoint and ends, and the same call resumes it.

    Raises:
        UserError: If the number of processes is invalid, or this process is itself one of several.
        KeyboardInterrupt: With `relay`, on Ctrl-C before there was a state to save.
    """
    if processes < 1:
        raise UserError(f"processes={processes}: must be at least 1. Fix: raise it.")
    if "WORLD_SIZE" in os.environ:
        raise UserError(
            "processes={processes}: a launcher already started this process as one of several. Fix: remove processes."
        )
    with ExitStack() as ends:
        files = [ends.enter_context(tempfile.TemporaryFile("w+")) for _ in range(processes - 1)]
        shared = {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes, "MASTER_PORT": free_port()}
        running: list[subprocess.Popen[bytes]] = []
        with _handed_on(running) as signals:  # before the first process starts, so that no process is left running
            for rank in range(processes):
                process = subprocess.Popen(
                    [sys.executable, "-c", PROGRAM, json.dumps(sys.path), "pretrain", *words],
                    env=_environment(rank, processes, shared, plain=relay),
                    stdout=None if rank == 0 else files[rank - 1],
                    stderr=files[rank - 1] if rank else subprocess.PIPE if relay else None,
                    start_new_session=True,  # the terminal's Ctrl-C reaches only this process, which forwards it once
                )
                running.append(process)
            if relay:
                threading.Thread(target=_relay, args=(running[0],), daemon=True).start()
            first = _wait(running)
        if relay and first >= 0 and signal.SIGINT in signals:
            raise KeyboardInterrupt
        if first > 0:
            files[first - 1].seek(0)
            if words := files[first - 1].read()[-LAST_WORDS:].strip():  # if empty, the main process reports the reason
                say(f"process {first}:\n{words}")
        return 0 if first < 0 else running[first].returncode


def _environment(rank: int, processes: int, shared: dict[str, int], plain: bool) -> dict[str, str]:
    """Return the environment of the processes. `plain` disables colors: a notebook claims to support them, but relayed
    output arrives line by line."""
    threads = max(1, len(os.sched_getaffinity(0)) // processes)
    own: dict[str, Any] = {"RANK": rank, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", **shared}
    own[LAUNCHER] = os.getpid()
    own.setdefault("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", threads))
    kept = {name: value for name, value in os.environ.items() if not (plain and name in COLORS)}
    return kept | {name: str(value) for name, value in own.items()}


def _relay(process: "subprocess.Popen[bytes]") -> None:
    for line in process.stderr or ():
        sys.stderr.write(line.decode(errors="replace"))


def _wait(running: "list[subprocess.Popen[bytes]]") -> int:
    """Wait for all processes; return the rank of the first that failed, or -1. A failure stops all other processes."""
    first, deadline = -1, float("inf")
    while any(process.poll() is None for process in running):
        failed = [rank for rank, process in enumerate(running) if process.poll()]
        if failed and first < 0:
            first, deadline = failed[0], time.monotonic() + GRACE
        if time.monotonic() > deadline:
            for process in running:
                process.kill()
        time.sleep(0.1)
    return next((rank for rank, process in enumerate(running) if process.returncode), -1) if first < 0 else first


@contextmanager
def _handed_on(running: "list[subprocess.Popen[bytes]]") -> Iterator[list[int]]:
    """Forward stop signals to all processes and yield the received ones. Outside of the main thread, do nothing."""
    came: list[int] = []

    def hand_on(number: int, _: object) -> None:
        came.append(number)
        for process in running:
            process.send_signal(number)

    before = {}
    try:
        for name in STOP_SIGNALS:
            if name != signal.SIGHUP or signal.getsignal(name) != signal.SIG_IGN:  # nohup
                before[name] = signal.signal(name, hand_on)
    except ValueError:
        before = {}
    try:
        yield came
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
        for process in running:
            if process.poll() is None:
                process.kill()
