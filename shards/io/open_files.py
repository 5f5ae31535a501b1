"""The limit of open files of this process (`ulimit -n`)."""

import errno
import resource

TOO_MANY = (errno.EMFILE, errno.ENFILE)  # of this process, of the machine
SPARE = 64  # open files of the interpreter and of libraries


def raise_limit(count: int) -> int:
    """Raise the limit so that `count` more files can be open, as far as the system permits; return the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    need = count + SPARE
    if soft == resource.RLIM_INFINITY or soft >= need:
        return need if soft == resource.RLIM_INFINITY else soft
    limit = need if hard == resource.RLIM_INFINITY else min(need, hard)
    if limit > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    return max(soft, limit)


def describe_limit() -> str:
    """Return the reason and the fix for errors in `TOO_MANY`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return (
        f"too many open files: the limit is {soft}, at most {hard}. "
        "Fix: run ulimit -n 4096, or use fewer processes (--workers), then rerun the command."
    )
