"""Limits for every reader and input: time, memory, writes elsewhere, starting programs, unpickling."""

import faulthandler
import re
import resource
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

SECONDS = 5  # CPU time per case
HANG = 120  # wall-clock seconds per case, after which the process ends with a traceback
MEMORY = 256 << 20  # bytes per case in addition to the process's memory before it
ADDRESSES = 8 << 30  # additional bytes of address space above which allocations fail

NEVER = re.compile(
    r"subprocess\.Popen|os\.(system|exec|posix_spawn|fork|spawn)|socket\.(connect|getaddrinfo|bind)|pickle\.find"
)
CHANGES = re.compile(
    r"os\.(mkdir|rename|remove|rmdir|symlink|link|truncate|chmod|chown)|shutil\.(rmtree|move|copyfile)"
)
WRITING = 0o3 | 0o100 | 0o1000 | 0o2000  # O_WRONLY or O_RDWR, O_CREAT, O_TRUNC, O_APPEND


class Violation(BaseException):
    """A reader did something forbidden."""


class Hog(Violation):
    """It used too much memory, or the kernel returned pages taken from the process before."""


_folder: Path | None = None  # during a case, the only writable folder
_seen: list[str] = []


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _folder is None:
        return
    paths: tuple[Any, ...] = ()
    if NEVER.match(event):
        _seen.append(f"{event} {arguments!r:.200}")
    elif event == "open":
        path, mode, flags = arguments
        writes = any(letter in mode for letter in "wax+") if isinstance(mode, str) else (flags or 0) & WRITING
        paths = (path,) if writes else ()
    elif CHANGES.match(event):
        paths = arguments
    for path in paths:
        if isinstance(path, (str, bytes, Path)) and not _allowed(path):
            _seen.append(f"{event} {path!r}")


def _allowed(path: str | bytes | Path) -> bool:
    text = path.decode(errors="surrogateescape") if isinstance(path, bytes) else str(path)
    return text == "/dev/null" or _folder is None or Path(text).resolve().is_relative_to(_folder)


def _too_slow(number: int, frame: FrameType | None) -> None:
    raise Violation(f"more than {SECONDS} s")


@contextmanager
def watched() -> Iterator[None]:
    """Allow cases in this block. Later imports count as memory of the case that triggers them."""
    global _installed  # noqa: PLW0603 - an audit hook cannot be removed
    if not _installed:
        sys.addaudithook(_audit)
        _installed = True
    before = signal.signal(signal.SIGPROF, _too_slow)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_status("VmSize") + ADDRESSES, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGPROF, before)


_installed = False


@contextmanager
def case(folder: Path) -> Iterator[None]:
    """Run one case, which may only write to `folder`.

    Raises:
        Violation: it did something forbidden.
    """
    global _folder  # noqa: PLW0603 - the audit hook takes no arguments
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    before = _status("VmRSS")
    _seen.clear()
    faulthandler.dump_traceback_later(HANG, exit=True)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    _folder = folder.resolve()
    tempfile.tempdir, elsewhere = str(_folder), tempfile.tempdir
    try:
        yield
    finally:
        _folder, tempfile.tempdir = None, elsewhere
        signal.setitimer(signal.ITIMER_PROF, 0)
        faulthandler.cancel_dump_traceback_later()
    taken = _status("VmHWM") - before
    if taken > MEMORY:
        raise Hog(f"{taken >> 20} MiB of memory")
    if _seen:
        raise Violation("; ".join(_seen))


def _status(field: str) -> int:
    """Return bytes from /proc/self/status."""
    text = Path("/proc/self/status").read_text()
    return int(text.partition(f"{field}:")[2].split()[0]) << 10
