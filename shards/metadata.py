"""What a JPEG says beside its picture, taken out without touching the picture: places, names, thumbnails, comments.

A camera writes where and when a photo was taken, by whom, and a second small picture that no crop ever reaches. None
of it is needed to learn from a face. What is left decodes to exactly the same pixels.
"""

import re

START = b"\xff\xd8"
SCAN, END, COMMENT = 0xDA, 0xD9, 0xFE
APPLICATION = range(0xE0, 0xF0)
JFIF, JFIF_SIZE = b"JFIF\0", 18  # with its marker and length, without the thumbnail that it may hold
# What decides how the numbers become colours; all other application segments are about something else.
KEPT = {0xE2: b"ICC_PROFILE\0", 0xEE: b"Adobe"}
# In the coded picture 0xff is followed by a zero or by a restart marker; by fill bytes before any other marker.
MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")


def strip(data: bytes) -> bytes | None:
    """The JPEG without metadata and without what lies behind its end; `data` itself where there is nothing to take out.

    Kept are the picture with its tables, JFIF without thumbnail, the colour profile and Adobe's colour transform.
    None: the file is not built as JPEGs are, so that nothing can be said about what is in it.
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
    """The marker at `place` and where it ends; any number of fill bytes may come before it."""
    if data[place : place + 1] != b"\xff":
        return None
    while data[place + 1 : place + 2] == b"\xff":
        place += 1
    return (data[place + 1], place + 2) if place + 1 < len(data) else None


def _kept(marker: int, segment: bytes) -> bytes:
    """What stays of a segment, which begins with its marker."""
    if marker == 0xE0 and segment[4:].startswith(JFIF):
        if len(segment) <= JFIF_SIZE:
            return segment
        return segment[:2] + (JFIF_SIZE - 2).to_bytes(2, "big") + segment[4 : JFIF_SIZE - 2] + b"\0\0"
    if marker == COMMENT or marker in APPLICATION:
        wanted = KEPT.get(marker)
        return segment if wanted and segment[4:].startswith(wanted) else b""
    return segment
