"""Read images inside larger files in a worker process (see shards.entry.LazyBytes)."""

from pathlib import Path

from shards.io.atomic import open_regular


def read_range(file: Path, offset: int, size: int) -> bytes:
    """Read `size` bytes from `offset`.

    Raises:
        ImageRejected: If the file ends early.
        OSError: If the file cannot be read at all, a failure that no image causes.
    """
    from shards.imaging.codec import MAX_BYTES, ImageRejected

    if size > MAX_BYTES:
        raise ImageRejected("too_large", "more than 1 GiB")
    if not 0 <= offset < 1 << 63:  # the directory is corrupt
        raise ImageRejected("truncated", f"{file.name} has no byte {offset}")
    with open_regular(file, "rb", buffering=0) as data:
        data.seek(offset)
        found = data.read(size)
    if len(found) < size:
        raise ImageRejected("truncated", f"{file.name} is {size - len(found)} bytes too short")
    return found
