"""What must be known of a JPEG before it is decoded: its size, from the frame header (ITU-T T.81, annex B)."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_SOI = 0xD8
# Start-of-frame markers of all coding processes; C4, C8 and CC, which lie among them, are tables.
_FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
_BARE = frozenset({0x01, *range(0xD0, 0xD9)})  # markers without a segment behind them


def size(data: NDArray[np.uint8]) -> tuple[int, int] | None:
    """(height, width) in pixels of the JPEG `data` [bytes] uint8; None where it is none or has no whole header."""
    end = len(data)
    if end < 4 or data[0] != 0xFF or data[1] != _SOI:
        return None
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


def sizes(images: Sequence[NDArray[np.uint8]]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Heights and widths [n, 2] of n JPEGs, and which of them [n] have a size at all; the others count as 1 x 1."""
    found = [size(image) for image in images]
    return np.array([pair or (1, 1) for pair in found], dtype=np.int64), np.array([pair is not None for pair in found])
