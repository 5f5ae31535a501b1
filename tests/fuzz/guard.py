"""What no reader may do with any input: take long or much memory, write elsewhere, start a program, open a pickle."""

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

SECONDS = 5  # of CPU time for one case
HANG = 120  # seconds of real time for one case, after which the process ends with a traceback
MEMORY = 256 << 20  # bytes that a case may take beyond what the process had before
ADDRESSES = 8 << 30  # bytes of address space beyond, at which allocations fail

NEVER = re.compile(
    r"subprocess\.Popen|os\.(system|exec|posix_spawn|fork|spawn)|socket\.(connect|getaddrinfo|bind)|pickle\.find"
)
CHANGES = re.compile(
    r"os\.(mkdir|rename|remove|rmdir|symlink|link|truncate|chmod|chown)|shutil\.(rmtree|move|copyfile)"
)
WRITING = 0o3 | 0o100 | 0o1000 | 0o2000  # O_WRONLY or O_RDWR, O_CREAT, O_TRUNC, O_APPEND


class Violation(BaseException):
    """A reader did what none may do."""


class Hog(Violation):
    """It took too much memory, or the kernel gave back pages that it had taken from the process before."""


_folder: Path | None = None  # while a case runs, the only folder that may be written to
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
    """Cases may run in here. Warms nothing up: what is imported later counts as memory of the case that imports it."""
    global _installed  # noqa: PLW0603 - an audit hook stays for ever
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
    """One case, which may write to `folder` alone.

    Raises:
        Violation: it did what it may not.
    """
    global _folder  # noqa: PLW0603 - the audit hook cannot be told in another way
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
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
    """Bytes, from /proc/self/status."""
    text = Path("/proc/self/status").read_text()
    return int(text.partition(f"{field}:")[2].split()[0]) << 10
