"""Remove JPEG metadata (GPS position, names, thumbnails, comments) without changing the pixels.

A camera records where, when and by whom a photo was taken, and a thumbnail that cropping does not change. Training on
faces does not need this data. The stripped file decodes to exactly the same pixels.
"""

import re

START = b"\xff\xd8"
SCAN, END, COMMENT = 0xDA, 0xD9, 0xFE
APPLICATION = range(0xE0, 0xF0)
JFIF, JFIF_SIZE = b"JFIF\0", 18  # with marker and length, without the optional thumbnail
# Segments that determine colors. No other application segment affects the pixels.
KEPT = {0xE2: b"ICC_PROFILE\0", 0xEE: b"Adobe"}
# In entropy-coded data, 0xff is followed by a zero or a restart marker. Fill bytes can precede any other marker.
MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")


def strip_metadata(data: bytes) -> bytes | None:
    """Return the JPEG without metadata and trailing bytes; return `data` itself if there is nothing to remove.

    The image and its tables, JFIF without thumbnail, the ICC profile and Adobe's color transform are kept. Returns None
    if the file does not follow the JPEG structure.
    """
    if not data.startswith(START):
        return None
    parts = [START]
    place = len(START)
    while True:
        found = _marker(data, place)
        if found is None:
            return None
        marker, place = found
        if marker == END:
            parts.append(b"\xff\xd9")
            break
        end = place + int.from_bytes(data[place : place + 2], "big")
        if end < place + 2 or end > len(data):
            return None
        parts.append(_kept(marker, data[place - 2 : end]))
        place = end
        if marker == SCAN:
            after = MARKER.search(data, end)
            if after is None:
                return None
            place = after.start()
            parts.append(data[end:place])
    stripped = b"".join(parts)
    return data if len(stripped) == len(data) else stripped


def _marker(data: bytes, place: int) -> tuple[int, int] | None:
    """Return the marker at `place` and the offset after it; skip any number of fill bytes before it."""
    if data[place : place + 1] != b"\xff":
        return None
    while data[place + 1 : place + 2] == b"\xff":
        place += 1
    return (data[place + 1], place + 2) if place + 1 < len(data) else None


def _kept(marker: int, segment: bytes) -> bytes:
    """Return the part of a segment to keep; the segment begins with its marker."""
    if marker == 0xE0 and segment[4:].startswith(JFIF):
        if len(segment) <= JFIF_SIZE:
            return segment
        return segment[:2] + (JFIF_SIZE - 2).to_bytes(2, "big") + segment[4 : JFIF_SIZE - 2] + b"\0\0"
    if marker == COMMENT or marker in APPLICATION:
        wanted = KEPT.get(marker)
        return segment if wanted and segment[4:].startswith(wanted) else b""
    return segment
