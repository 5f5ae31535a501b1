"""Messages for failures of a build that no image causes: disks, locks, limits."""

import sqlite3
from pathlib import Path

from shards.io.open_files import TOO_MANY, describe_limit

RERUN = "Fix: resolve this and rerun the command."


def describe_failure(error: OSError | sqlite3.Error, staging: Path) -> str:
    """Return what failed and how to fix it. staging: folder of the build, which holds the plan, an SQLite file."""
    if isinstance(error, OSError):
        where = f" ({error.filename})" if error.filename else ""
        return describe_limit() if error.errno in TOO_MANY else f"{error.strerror or error}{where}. {RERUN}"
    text = str(error)
    if "lock" in text or "disk I/O" in text:
        return (
            f"{text}: the file system of {staging} fails, or lacks what SQLite needs (NFS, Lustre, FUSE). "
            "Fix: build on a local disk, then copy the shards."
        )
    if "unable to open" in text:
        return (
            f"{text}: too many open files, or a folder that cannot be written: {staging}, or the one for temporary "
            "files. Fix: run ulimit -n 4096, or set SQLITE_TMPDIR to a writable folder, then rerun the command."
        )
    if "full" in text:
        return (
            f"{text}: the disk of {staging}, or the one for temporary files. "
            "Fix: free space, or set SQLITE_TMPDIR to a folder with space, then rerun the command."
        )
    return f"{text}. {RERUN}"
