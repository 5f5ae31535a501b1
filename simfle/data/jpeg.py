"""What must be known of an image before it is decoded: its size, from its header.

JPEG: the frame header (ITU-T T.81, annex B); PNG: IHDR (W3C PNG, 11.2.1); WebP: the first chunk (RFC 9649). Our shards
hold JPEGs; tars that others wrote hold the others too.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_SOI = 0xD8
MOST_PIXELS = 1 << 27  # of an image that is decoded in a run: 400 MB; the builder's own limit is lower
_LONGEST = 30  # bytes that the headers of the other formats take
# Start-of-frame markers of all coding processes; C4, C8 and CC, which lie among them, are tables.
_FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
_BARE = frozenset({0x01, *range(0xD0, 0xD9)})  # markers without a segment behind them


def size(data: NDArray[np.uint8]) -> tuple[int, int] | None:
    """(height, width) in pixels of the image `data` [bytes] uint8; None where it is none or has no whole header."""
    end = len(data)
    if end < 4 or data[0] != 0xFF or data[1] != _SOI:
        return _size_of_other(data[:_LONGEST].tobytes())
    at = 2
    while at + 9 <= end:
        if data[at] != 0xFF:
            return None
        marker = int(data[at + 1])
        if marker in _FRAMES:
            _, h1, h0, w1, w0 = data[at + 4 : at + 9].tolist()
            height, width = h1 << 8 | h0, w1 << 8 | w0
            return (height, width) if height and width else None
        if marker == 0xFF:  # a fill byte
            at += 1
        elif marker in _BARE:
            at += 2
        else:
            at += 2 + (int(data[at + 2]) << 8 | int(data[at + 3]))
    return None


def _size_of_other(head: bytes) -> tuple[int, int] | None:
    """(height, width) of a PNG or WebP from its first bytes."""
    width = height = 0
    if len(head) == _LONGEST:
        chunk = head[12:16]
        if head.startswith(b"\x89PNG\r\n\x1a\n") and chunk == b"IHDR":
            width, height = int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")
        elif head.startswith(b"RIFF") and head[8:12] == b"WEBP":
            if chunk == b"VP8X":
                width, height = (int.from_bytes(head[at : at + 3], "little") + 1 for at in (24, 27))
            elif chunk == b"VP8L" and head[20] == 0x2F:
                bits = int.from_bytes(head[21:25], "little")
                width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
            elif chunk == b"VP8 " and head[23:26] == b"\x9d\x01\x2a":
                width, height = (int.from_bytes(head[at : at + 2], "little") & 0x3FFF for at in (26, 28))
    return (height, width) if height and width else None


def sizes(images: Sequence[NDArray[np.uint8]]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Heights and widths [n, 2] of n images, and which of them [n] have one, not too large; others count as 1 x 1."""
    found = [size(image) for image in images]
    found = [pair if pair and pair[0] * pair[1] <= MOST_PIXELS else None for pair in found]
    return np.array([pair or (1, 1) for pair in found], dtype=np.int64), np.array([pair is not None for pair in found])
