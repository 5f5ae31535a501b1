"""JPEGs and PNGs that a decoder would work on for minutes, told apart before they are decoded.

A decoder visits every block of the picture once for each scan, and libraries join metadata piece by piece. A scan may
hold next to nothing (ITU-T T.81, annex G): a file of 1 MB has room for tens of thousands. No camera writes such files.
"""

import re

from shards.metadata import APPLICATION, COMMENT, END, MARKER, SCAN, START

MOST_SCANS = 100  # the limit of libtiff, too; encoders of progressive JPEGs write about ten
MOST_SEGMENTS = 4096  # tables, metadata and scans of one file; each has at most 64 kB
MOST_FILL = 1 << 20  # bytes of 0xff before markers, which decoders pass one by one; of one file, and in one row
MOST_CHUNKS = 1 << 16  # of a PNG, shorter than SHORT_CHUNK; encoders cut a picture into chunks of 8 kB and more
SHORT_CHUNK = 256
MOST_EXIF = 64  # segments of EXIF, of which there should be one; Pillow copies all before for each
_EXIF = b"Exif\0\0"
_SCANS = re.compile(rb"\xff\xda")
_FILL = re.compile(rb"\xff+")
_ROW = b"\xff" * MOST_FILL  # in the coded picture, where markers are searched, not walked
_FILLED = ("too_large", f"more than {MOST_FILL} bytes of fill")
PNG_START = b"\x89PNG\r\n\x1a\n"
# Those that decoders know: frames and tables, APPn, COM. Behind others anything may be.
_KNOWN = frozenset({*range(0xC0, 0xD0), *range(0xDA, 0xE0), *APPLICATION, COMMENT})
_BARE = frozenset({0x01, *range(0xD0, 0xD9)})  # markers without a segment behind them


def fate(data: bytes) -> tuple[str, str] | None:
    """Why an image is not decoded, as a reason of `entry.REASONS` and a detail; None if it may be."""
    if data.startswith(START):
        return _jpeg_fate(data)
    return _png_fate(data) if data.startswith(PNG_START) else None


def _png_fate(png: bytes) -> tuple[str, str] | None:
    """Chunks of the PNG specification, section 5.3: length, type, data, checksum."""
    place, short = len(PNG_START), 0
    while place + 8 <= len(png):
        length = int.from_bytes(png[place : place + 4], "big")
        short += length < SHORT_CHUNK
        if short > MOST_CHUNKS:
            return "too_large", f"more than {MOST_CHUNKS} chunks of less than {SHORT_CHUNK} bytes"
        place += length + 12
    return None


def _jpeg_fate(jpeg: bytes) -> tuple[str, str] | None:
    if _ROW in jpeg:  # asked before the walk, whose search for markers takes long in it
        return _FILLED
    scans = segments = exif = fill = 0
    place: int | None = len(START)
    while place is not None and segments <= MOST_SEGMENTS:
        marker, start, end, filled = _segment(jpeg, place)
        fill += filled
        if marker == END:
            break
        if marker not in _KNOWN and marker not in _BARE:
            # Decoders go on in ways of their own: whatever looks like a scan counts.
            scans = max(scans, sum(1 for _ in _SCANS.finditer(jpeg)))
            break
        segments += marker not in _BARE
        scans += marker == SCAN
        exif += jpeg.startswith(_EXIF, start)
        place = _behind(jpeg, marker, end)
    if scans > MOST_SCANS:
        return "too_many_scans", f"at least {scans} scans, and at most {MOST_SCANS} are decoded"
    if fill > MOST_FILL:
        return _FILLED
    if segments > MOST_SEGMENTS or exif > MOST_EXIF:
        what = f"{MOST_SEGMENTS} segments" if segments > MOST_SEGMENTS else f"{MOST_EXIF} segments of EXIF"
        return "too_large", f"more than {what} of tables and metadata"
    return None


def _segment(jpeg: bytes, place: int) -> tuple[int, int, int, int]:
    """Marker, where the content behind its length begins and ends, fill bytes; marker -1 where there is none."""
    fill = _FILL.match(jpeg, place)
    if fill is None or fill.end() >= len(jpeg):
        return -1, place, place, 0
    marker, start, filled = jpeg[fill.end()], fill.end() + 3, fill.end() - place - 1
    if marker in _BARE or marker == END:
        return marker, start, fill.end() + 1, filled
    return marker, start, start - 2 + max(int.from_bytes(jpeg[start - 2 : start], "big"), 2), filled


def _behind(jpeg: bytes, marker: int, end: int) -> int | None:
    """Where the next marker is searched."""
    if marker != SCAN:
        return end
    after = MARKER.search(jpeg, end)
    return after.start() if after else None
