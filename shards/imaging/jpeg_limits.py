"""Detect JPEGs and PNGs that would take minutes to decode, without decoding them.

A decoder visits every block of the image once per scan, and libraries join metadata piece by piece. A scan can be
almost empty (ITU-T T.81, annex G): a file of 1 MB has room for tens of thousands. No camera writes such files.
"""

import re

from shards.imaging.jpeg_metadata import APPLICATION, COMMENT, END, MARKER, SCAN, START

MAX_SCANS = 100  # also libtiff's limit; progressive encoders write about ten
MAX_SEGMENTS = 4096  # tables, metadata and scans per file; at most 64 kB each
MOST_FILL = 1 << 20  # 0xff fill bytes before markers, read one by one by decoders; per file and per run
MOST_CHUNKS = 1 << 16  # PNG chunks below SHORT_CHUNK; encoders write chunks of 8 kB and more
SHORT_CHUNK = 256
MAX_EXIF = 64  # EXIF segments (one is normal); for each, Pillow copies all previous ones
_EXIF = b"Exif\0\0"
_SCANS = re.compile(rb"\xff\xda")
_FILL = re.compile(rb"\xff+")
_ROW = b"\xff" * MOST_FILL  # a run of fill bytes in entropy-coded data, where markers are searched
_FILLED = ("too_large", f"more than {MOST_FILL} bytes of fill")
PNG_START = b"\x89PNG\r\n\x1a\n"
# Markers that decoders know: frames and tables, APPn, COM. Anything can follow other markers.
_KNOWN = frozenset({*range(0xC0, 0xD0), *range(0xDA, 0xE0), *APPLICATION, COMMENT})
_BARE = frozenset({0x01, *range(0xD0, 0xD9)})  # markers without a segment


def rejection(data: bytes) -> tuple[str, str] | None:
    """Return why an image must not be decoded, as (reason of `entry.REJECT_REASONS`, detail), or None if it is safe."""
    if data.startswith(START):
        return _jpeg_fate(data)
    return _png_fate(data) if data.startswith(PNG_START) else None


def _png_fate(png: bytes) -> tuple[str, str] | None:
    """Check the chunks (PNG specification, section 5.3: length, type, data, checksum); return as `rejection`."""
    place, short = len(PNG_START), 0
    while place + 8 <= len(png):
        length = int.from_bytes(png[place : place + 4], "big")
        short += length < SHORT_CHUNK
        if short > MOST_CHUNKS:
            return "too_large", f"more than {MOST_CHUNKS} chunks of less than {SHORT_CHUNK} bytes"
        place += length + 12
    return None


def _jpeg_fate(jpeg: bytes) -> tuple[str, str] | None:
    if _ROW in jpeg:  # checked first: the marker search below is slow on it
        return _FILLED
    scans = segments = exif = fill = 0
    place: int | None = len(START)
    while place is not None and segments <= MAX_SEGMENTS:
        marker, start, end, filled = _segment(jpeg, place)
        fill += filled
        if marker == END:
            break
        if marker not in _KNOWN and marker not in _BARE:
            # Decoders recover in different ways: count everything that looks like a scan.
            scans = max(scans, sum(1 for _ in _SCANS.finditer(jpeg)))
            break
        segments += marker not in _BARE
        scans += marker == SCAN
        exif += jpeg.startswith(_EXIF, start)
        place = _behind(jpeg, marker, end)
    if scans > MAX_SCANS:
        return "too_many_scans", f"at least {scans} scans, and at most {MAX_SCANS} are decoded"
    if fill > MOST_FILL:
        return _FILLED
    if segments > MAX_SEGMENTS or exif > MAX_EXIF:
        what = f"{MAX_SEGMENTS} segments" if segments > MAX_SEGMENTS else f"{MAX_EXIF} segments of EXIF"
        return "too_large", f"more than {what} of tables and metadata"
    return None


def _segment(jpeg: bytes, place: int) -> tuple[int, int, int, int]:
    """Return the marker (-1 if there is none), start and end of its content, and the number of fill bytes."""
    fill = _FILL.match(jpeg, place)
    if fill is None or fill.end() >= len(jpeg):
        return -1, place, place, 0
    marker, start, filled = jpeg[fill.end()], fill.end() + 3, fill.end() - place - 1
    if marker in _BARE or marker == END:
        return marker, start, fill.end() + 1, filled
    return marker, start, start - 2 + max(int.from_bytes(jpeg[start - 2 : start], "big"), 2), filled


def _behind(jpeg: bytes, marker: int, end: int) -> int | None:
    """Return the offset where the search for the next marker starts."""
    if marker != SCAN:
        return end
    after = MARKER.search(jpeg, end)
    return after.start() if after else None
