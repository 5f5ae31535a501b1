"""Images that lie inside larger files: how a worker process reads one (see shards.entry.Recipe)."""

from pathlib import Path

from shards.files import open_regular


def read(file: Path, offset: int, size: int) -> bytes:
    """`size` bytes from `offset` on.

    Raises:
        Unusable: the file ends before that; OSError: it cannot be read at all, which is no image's fault.
    """
    from shards.encode import MAX_BYTES, Unusable

    if size > MAX_BYTES:
        raise Unusable("too_large", "more than 1 GiB")
    if not 0 <= offset < 1 << 63:  # of a damaged directory
        raise Unusable("truncated", f"{file.name} has no byte {offset}")
    with open_regular(file, "rb", buffering=0) as data:
        data.seek(offset)
        found = data.read(size)
    if len(found) < size:
        raise Unusable("truncated", f"{file.name} ends {size - len(found)} bytes too early")
    return found
