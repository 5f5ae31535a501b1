"""What each thread waits for at this moment, so that a process that does not get on can say why."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

_now: dict[int, tuple[object, float]] = {}  # thread -> what it waits for, and since when


@contextmanager
def waiting(what: object) -> Iterator[None]:
    """Note that this thread waits for `what` until the end of the block; its text is made when somebody asks."""
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


def awaited(thread: int | None) -> str:
    """What a thread waits for, and for how long it has; "" where it does not wait."""
    found = _now.get(thread or 0)
    if found is None:
        return ""
    what, since = found
    return f"{what} (for {time.monotonic() - since:.0f} s)"
