"""Small files that cost their reader much time or memory, made from nothing."""

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
    """A sound progressive JPEG [side, side] grey with so many scans (ITU-T T.81, annex G), each empty but the first.

    A decoder visits all blocks of the image once a scan.
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
    """Each segment of a JPEG up to its end, a scan with its coded picture."""
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
    """The coded picture of a scan in which `blocks` blocks hold nothing."""
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
    """So many zeros."""

    size: int


SPARE = 640 << 20  # of address space beyond: each thread's first allocation reserves 64 MiB that it may never touch


@contextmanager
def limited(memory: int) -> Iterator[None]:
    """Let what is done in here take `memory` bytes at most: the peak is measured, and soon above allocations fail."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_status("VmSize") + memory + SPARE, hard))
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _status("VmRSS")
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    taken = _status("VmHWM") - before
    assert taken <= memory, f"{taken >> 20} MiB were taken, {memory >> 20} are allowed"


def _status(field: str) -> int:
    """Bytes, from /proc/self/status."""
    text = Path("/proc/self/status").read_text()
    return int(text.partition(f"{field}:")[2].split()[0]) << 10
