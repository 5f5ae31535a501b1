"""JPEGs that a decoder would work on for minutes, told apart before they are decoded.

A decoder visits every block of the picture once for each scan, and libraries join metadata piece by piece. A scan may
hold next to nothing (ITU-T T.81, annex G): a file of 1 MB has room for tens of thousands. No camera writes such files.
"""

import re

from shards.metadata import APPLICATION, COMMENT, END, MARKER, SCAN, START

MOST_SCANS = 100  # the limit of libtiff, too; encoders of progressive JPEGs write about ten
MOST_SEGMENTS = 4096  # tables, metadata and scans of one file; each has at most 64 kB
MOST_EXIF = 64  # segments of EXIF, of which there should be one; Pillow copies all before for each
_EXIF = b"Exif\0\0"
_SCANS = re.compile(rb"\xff\xda")
_FILL = re.compile(rb"\xff+")
# Those that decoders know: frames and tables, APPn, COM. Behind others anything may be.
_KNOWN = frozenset({*range(0xC0, 0xD0), *range(0xDA, 0xE0), *APPLICATION, COMMENT})
_BARE = frozenset({0x01, *range(0xD0, 0xD9)})  # markers without a segment behind them


def fate(jpeg: bytes) -> tuple[str, str] | None:
    """Why a JPEG is not decoded, as a reason of `entry.REASONS` and a detail; None if it may be."""
    scans = segments = exif = 0
    place: int | None = len(START)
    while place is not None and segments <= MOST_SEGMENTS:
        marker, start, end = _segment(jpeg, place)
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
    if segments > MOST_SEGMENTS or exif > MOST_EXIF:
        what = f"{MOST_SEGMENTS} segments" if segments > MOST_SEGMENTS else f"{MOST_EXIF} segments of EXIF"
        return "too_large", f"more than {what} of tables and metadata"
    return None


def _segment(jpeg: bytes, place: int) -> tuple[int, int, int]:
    """Marker, and where the content behind its length begins and ends; marker -1 where there is none."""
    fill = _FILL.match(jpeg, place)
    if fill is None or fill.end() >= len(jpeg):
        return -1, place, place
    marker, start = jpeg[fill.end()], fill.end() + 3
    if marker in _BARE or marker == END:
        return marker, start, fill.end() + 1
    return marker, start, start - 2 + max(int.from_bytes(jpeg[start - 2 : start], "big"), 2)


def _behind(jpeg: bytes, marker: int, end: int) -> int | None:
    """Where the next marker is searched."""
    if marker != SCAN:
        return end
    after = MARKER.search(jpeg, end)
    return after.start() if after else None
