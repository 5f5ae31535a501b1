"""Start many real processes quickly: a parent that has imported everything forks one for each start.

Each child is a separate process and session with its own signals, limits and exit code, and runs a complete command
line of ours. Importing torch and DeepSpeed takes seconds, a fork milliseconds.
"""

import atexit
import gc
import json
import os
import pkgutil  # noqa: F401 - runpy imports it in each child, and imports can swallow a KeyboardInterrupt
import resource
import runpy
import signal
import subprocess
import sys
import threading
import time
import traceback
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from distributed.launch import ROOT, environment

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
FILE_EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree")  # Python's audit events


@dataclass(frozen=True)
class At:
    """The moment at which a child kills itself: just before its `nth` file event whose arguments contain `path`.

    event: one of FILE_EVENTS (empty = any); back: instead of killing, set its clock (time.time) back by these seconds.
    """

    path: str
    event: str = ""
    nth: int = 1
    back: float = 0.0


@dataclass(frozen=True)
class Order:
    """A start for the parent: a script with arguments, with output to the file `log`.

    largest: maximum file size in bytes, as on a full disk (0 = no limit). deadly: exceeding it kills the child in the
    middle of the write. environment: variables added to the parent's, such as the rank of one of several processes.
    """

    words: list[str]
    log: str
    at: At | None = None
    largest: int = 0
    deadly: bool = False
    environment: dict[str, str] = field(default_factory=dict)


class Child:
    """A process started by a nursery."""

    def __init__(self, nursery: "ForkServer", pid: int, log: Path) -> None:
        self.nursery, self.pid, self.log = nursery, pid, log
        self.code: int | None = None

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal; None while it runs."""
        if self.code is None:
            self.code = self.nursery.ask({"poll": self.pid})["code"]
        return self.code

    def wait(self, seconds: float = 120) -> int:
        end = time.monotonic() + seconds
        while (code := self.poll()) is None:
            assert time.monotonic() < end, f"process {self.pid} does not end:\n{self.output}"
            time.sleep(0.01)
        return code

    def send(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def limit_files(self, size: int | None) -> None:
        """Limit the size of files to `size` bytes from now on, as on a full disk; None: no limit."""
        limits = (size if size is not None else resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        resource.prlimit(self.pid, resource.RLIMIT_FSIZE, limits)

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")[-6000:]

    @property
    def last_line(self) -> str:
        return (self.output.strip().splitlines() or [""])[-1]


class ForkServer:
    """The parent process. Temporary files of its children go to `temporary`."""

    def __init__(self, temporary: Path, *modules: str) -> None:
        temporary.mkdir(parents=True, exist_ok=True)
        paths = f"{ROOT}{os.pathsep}{ROOT / 'tests'}"
        cache = str(temporary.with_name("torch-cache"))  # torch creates this folder and keeps it on purpose
        own = environment(DS_ACCELERATOR="cpu", TMPDIR=str(temporary), TORCHINDUCTOR_CACHE_DIR=cache, PYTHONPATH=paths)
        words = [sys.executable, __file__, *modules]
        pipe = subprocess.PIPE
        # In its own session, so Ctrl-C of the tests does not reach it; it and its children end when its input closes.
        self.process = subprocess.Popen(
            words, cwd=ROOT, env=own, stdin=pipe, stdout=pipe, text=True, start_new_session=True
        )
        self.children: list[Child] = []

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def start(self, words: list[str], log: Path, **how: Any) -> Child:
        """Start `words`: a script and its arguments; `how` as in Order. An existing log of that name is deleted."""
        log.unlink(missing_ok=True)  # file size limits apply to it, too
        answer = self.ask({"start": asdict(Order(words, str(log), **how))})
        self.children.append(Child(self, answer["pid"], log))
        return self.children[-1]

    def close(self) -> None:
        """Kill the remaining children and the parent."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(timeout=800)
        self.process.stdout.close()


def serve(modules: list[str]) -> None:
    """Run the parent's loop; return in each child, with sys.argv set for its script."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for module in modules:
        __import__(module)
    gc.freeze()  # a child's garbage collection would copy all of the parent's pages
    living: set[int] = set()
    for line in sys.stdin:
        question = json.loads(line)
        if "start" in question:
            order = question["start"]
            # A signal to a child during the fork would end this loop's copy in it, so signals are blocked until `live`.
            signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
            pid = os.fork()
            if pid == 0:
                become(Order(**order | {"at": At(**order["at"]) if order["at"] else None}))
                return
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
            living.add(pid)
            answer: dict[str, Any] = {"pid": pid}
        else:
            pid, status = os.waitpid(question["poll"], os.WNOHANG)
            living.discard(pid)
            answer = {"code": os.waitstatus_to_exitcode(status) if pid else None}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    for pid in living:
        os.kill(pid, signal.SIGKILL)
    os._exit(0)


def become(order: Order) -> None:
    """Configure a forked process as ordered."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell ignore it
    with Path(order.log).open("ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    with Path(os.devnull).open() as nothing:
        os.dup2(nothing.fileno(), 0)
    os.closerange(3, 256)
    if order.deadly:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    if order.largest:
        resource.setrlimit(resource.RLIMIT_FSIZE, (order.largest, order.largest))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if order.at:
        watch(order.at)
    os.environ.update(order.environment)
    sys.argv = order.words


def watch(at: At) -> None:
    seen = 0
    real = time.time

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event not in FILE_EVENTS or (at.event and event != at.event) or at.path not in str(arguments):
            return
        seen += 1
        if seen == at.nth:
            if at.back:
                time.time = lambda: real() - at.back
            else:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def live() -> int:
    """Run the script as Python does: exit reason, threads, final output; return the exit code."""
    code: object = 0
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        code = end.code
    except BaseException as error:  # noqa: BLE001 - as in the interpreter
        traceback.print_exc()
        code = 130 if isinstance(error, KeyboardInterrupt) else 1
    for thread in threading.enumerate():
        if not thread.daemon and thread is not threading.current_thread():
            thread.join()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    return code if isinstance(code, int) else int(code is not None)


if __name__ == "__main__":
    serve(sys.argv[1:])
    os._exit(live())  # tearing down the parent's modules would cost each child seconds
