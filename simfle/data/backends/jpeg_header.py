"""Read the size of an image from its header before it is decoded, and decode valid images.

The size is in the frame header of a JPEG (ITU-T T.81, annex B), in IHDR of a PNG (W3C PNG, 11.2.1; chunks: 5.3) and in
the first chunk of a WebP (RFC 9649). Shards of `simfle shards build` hold JPEGs; external tars may hold PNG and WebP.
"""

import re
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from shards.imaging.jpeg_limits import MAX_SCANS, MAX_SEGMENTS, MOST_CHUNKS, MOST_FILL, PNG_START, rejection

_SOI, _SOS = 0xD8, 0xDA
_FILL = re.compile(rb"\xff+")
MAX_PIXELS = 1 << 27  # maximum pixels of a decoded image, which takes 400 MB; the builder's limit is lower
_MAX_PIXELS_PER_BYTE = 512  # pixels: a block of 8 x 8 takes at least one bit with Huffman codes (T.81, F.1.2, G.1.2)
_HUFFMAN = frozenset({0xC0, 0xC1, 0xC2})
_DECODE = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION  # shards hold upright images
_LONGEST = 30  # maximum header bytes of the other formats
# Start-of-frame markers of all coding processes; C4, C8 and CC in between are tables.
_FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
_BARE = frozenset({0x01, *range(0xD0, 0xD9)})  # markers without a segment


def size(data: NDArray[np.uint8]) -> tuple[int, int] | None:
    """Return (height, width) in pixels of the image `data` [bytes] uint8.

    Returns None if `data` is not an image, has a truncated header, declares more pixels than its bytes can hold
    (decoders allocate the declared size), or is a JPEG with more scans than `shards.imaging.jpeg_limits` allows.
    """
    end = len(data)
    if end < 4 or data[0] != 0xFF or data[1] != _SOI:
        if data[: len(PNG_START)].tobytes() == PNG_START and not _has_all_chunks(data):
            return None
        return _size_of_other(data[:_LONGEST].tobytes())
    # Count scans only if there can be too many: each begins with these two bytes.
    marks = np.count_nonzero((data[:-1] == 0xFF) & (data[1:] == _SOS))
    cheap = marks <= MAX_SCANS and end <= MOST_FILL
    return _size_of_jpeg(data) if cheap or rejection(data.tobytes()) is None else None


def _size_of_jpeg(data: NDArray[np.uint8]) -> tuple[int, int] | None:
    """Return (height, width) from the frame header."""
    at, end = 2, len(data)
    for _ in range(MAX_SEGMENTS):
        fill = _FILL.match(data, at)  # type: ignore[call-overload] # any bytes-like object is searched
        at = fill.end() - 1 if fill else end  # any number of fill bytes may precede a marker
        if at + 9 > end:
            return None
        marker = int(data[at + 1])
        if marker in _FRAMES:
            _, h1, h0, w1, w0 = data[at + 4 : at + 9].tolist()
            height, width = h1 << 8 | h0, w1 << 8 | w0
            held = marker not in _HUFFMAN or height * width <= _MAX_PIXELS_PER_BYTE * end
            return (height, width) if height and width and held else None
        if marker in _BARE:
            at += 2
        else:
            at += 2 + (int(data[at + 2]) << 8 | int(data[at + 3]))
    return None


def _has_all_chunks(png: NDArray[np.uint8]) -> bool:
    """Return whether every chunk of a PNG, including its last one, lies within its bytes."""
    at = len(PNG_START)
    for _ in range(MOST_CHUNKS):
        if at + 12 > len(png):  # length, name, content, checksum
            return False
        name = png[at + 4 : at + 8].tobytes()
        at += 12 + int.from_bytes(png[at : at + 4].tobytes(), "big")
        if name == b"IEND":
            return at <= len(png)
    return False


def _size_of_other(head: bytes) -> tuple[int, int] | None:
    """Return (height, width) of a PNG or WebP from its first bytes."""
    width = height = 0
    if len(head) == _LONGEST:
        chunk = head[12:16]
        if head.startswith(PNG_START) and chunk == b"IHDR":
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
    """Return heights and widths [n, 2] of n images, and a mask [n] of the usable ones.

    An image that is invalid or has too many pixels gets size 1 x 1.
    """
    found = [size(image) for image in images]
    found = [pair if pair and pair[0] * pair[1] <= MAX_PIXELS else None for pair in found]
    return np.array([pair or (1, 1) for pair in found], dtype=np.int64), np.array([pair is not None for pair in found])


def decode(image: NDArray[np.uint8]) -> NDArray[np.uint8] | None:
    """Decode an untrusted image [bytes] to RGB [H, W, 3], or None if it is corrupt or too large."""
    _, (good,) = sizes([image])
    return decode_strict(image) if good else None


def decode_strict(image: NDArray[np.uint8]) -> NDArray[np.uint8] | None:
    """Decode an image whose size `sizes` has validated, or None if OpenCV cannot decode it."""
    try:
        return cv2.imdecode(image, _DECODE)  # type: ignore[return-value]
    except cv2.error:
        return None
