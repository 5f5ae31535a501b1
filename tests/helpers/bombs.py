"""Generate small files that are expensive in time or memory to read."""

import io
import itertools
import re
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

_NEXT = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_SCAN = 0xDA


def jpeg_of_scans(scans: int, side: int = 64) -> bytes:
    """Make a grayscale progressive JPEG [side, side] of several scans (ITU-T T.81, annex G), empty after the first.

    A decoder visits all blocks of the image once per scan.
    """
    out = io.BytesIO()
    Image.new("L", (side, side), 120).save(out, "JPEG", progressive=True)
    segments = list(_segments(out.getvalue()))
    first = next(place for place, segment in enumerate(segments) if segment[1] == _SCAN)
    parts = [b"\xff\xd8", *segments[: first + 1], _END_OF_BAND_TABLE]
    nothing = _end_of_band((side + 7) // 8 * ((side + 7) // 8))
    every = [(band, bit) for bit in range(13, -1, -1) for band in range(1, 64)]
    for band, bit in itertools.islice(itertools.cycle(every), scans - 1):
        before = 0 if bit == 13 else bit + 1
        parts.append(bytes([0xFF, _SCAN, 0, 8, 1, 1, 0, band, band, before << 4 | bit]) + nothing)
    return b"".join([*parts, b"\xff\xd9"])


def _segments(jpeg: bytes) -> Iterator[bytes]:
    """Yield each segment of a JPEG; a scan includes its coded data."""
    place = 2
    while jpeg[place + 1] != 0xD9:
        end = place + 2 + int.from_bytes(jpeg[place + 2 : place + 4], "big")
        if jpeg[place + 1] == _SCAN:
            found = _NEXT.search(jpeg, end)
            assert found
            end = found.start()
        yield jpeg[place:end]
        place = end


# A Huffman table of AC class with the symbols EOB0 to EOB14, four bits each.
_END_OF_BAND_TABLE = b"\xff\xc4\0\x22\x10" + bytes([0, 0, 0, 15, *[0] * 12]) + bytes(r << 4 for r in range(15))


def _end_of_band(blocks: int) -> bytes:
    """Return the coded data of a scan in which `blocks` blocks are empty."""
    bits = ""
    while blocks:
        run = min(blocks.bit_length() - 1, 14)
        taken = min(blocks, (2 << run) - 1)
        bits += f"{run:04b}" + (f"{taken - (1 << run):0{run}b}" if run else "")
        blocks -= taken
    bits += "1" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")


@dataclass(frozen=True)
class Hole:
    """Return a number of zeros."""

    size: int


SPARE = 640 << 20  # additional address space: each thread's first allocation reserves 64 MiB that it may never use


@contextmanager
def limited(memory: int) -> Iterator[None]:
    """Limit the memory of the block to `memory` bytes: the peak is measured, and larger allocations fail."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_status("VmSize") + memory + SPARE, hard))
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    before = _status("VmRSS")
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    taken = _status("VmHWM") - before
    assert taken <= memory, f"{taken >> 20} MiB were taken, {memory >> 20} are allowed"


def _status(field: str) -> int:
    """Return bytes from /proc/self/status."""
    text = Path("/proc/self/status").read_text()
    return int(text.partition(f"{field}:")[2].split()[0]) << 10
