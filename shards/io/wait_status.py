"""Record what each thread waits for, to report why a process makes no progress."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

_now: dict[int, tuple[object, float]] = {}  # thread -> what it waits for, start time


@contextmanager
def waiting_for(what: object) -> Iterator[None]:
    """Record that this thread waits for `what` until the block ends; `what` is formatted only on request."""
    thread = threading.get_ident()
    before = _now.get(thread)
    _now[thread] = what, time.monotonic()
    try:
        yield
    finally:
        if before is None:
            del _now[thread]
        else:
            _now[thread] = before


def current_wait(thread: int | None) -> str:
    """Return the resource for which a thread waits, and the seconds so far, or "" if the thread does not wait."""
    found = _now.get(thread or 0)
    if found is None:
        return ""
    what, since = found
    return f"{what} (for {time.monotonic() - since:.0f} s)"
