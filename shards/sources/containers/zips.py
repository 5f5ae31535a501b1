"""Stream the members of a zip in constant memory, reading its central directory as a stream.

The standard library's zipfile keeps the whole directory, 550 bytes per member. Layout: PKWARE's APPNOTE.TXT 4.3.12 to
4.3.16 (directory, its end, and the 64-bit forms), 4.5.3 (the 64-bit extra field), 4.6.9 and appendix D (names).
"""

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

from shards.entry import LazyBytes, Rejected
from shards.io.atomic import open_regular
from shards.sources.containers.tars import MAX_UNPACKED, TOO_LARGE, ArchiveMember

END = struct.Struct("<4s4H2LH")
LOCATOR = struct.Struct("<4sLQL")
END_64 = struct.Struct("<4sQ2H2L4Q")
ENTRY = struct.Struct("<4s6H3L5H2L")
LOCAL_HEADER = 30  # bytes before a member's name; its data follows the name and extra field
LONGEST_COMMENT = 0xFFFF
FULL_32 = 0xFFFFFFFF  # marker: see the 64-bit field
EXTRA_64, EXTRA_NAME = 1, 0x7075
ENCRYPTED, UTF_8 = 1, 1 << 11  # flags
STORED, DEFLATED = 0, 8


class DamagedZip(Exception):  # noqa: N818 - the result for one archive
    """Error: the file is not a complete zip. The message gives the reason."""


class ZipEntry(NamedTuple):
    """A member as listed in the directory.

    guessed: see `ArchiveMember`; header: offset of its local header; packed: compressed size.
    """

    name: str
    guessed: bool
    flags: int
    method: int
    crc: int
    packed: int
    size: int
    header: int


class Directory(NamedTuple):
    """Start and end of the directory, and the shift of all its offsets: the number of bytes before the zip."""

    start: int
    end: int
    shift: int


def read_zip(file: Path) -> Iterator[ArchiveMember | Rejected]:
    """Yield the members of a zip in the order of its directory.

    Yields a Rejected (source "") if the file is not a zip, is truncated (the directory is its last part) or has a
    corrupt directory.

    Raises:
        OSError: If the file cannot be read at all.
    """
    with open_regular(file, "rb") as data:
        try:
            for item in _listed(data, _directory(data)):
                if not item.name.endswith("/"):
                    yield _member(file, item)
        except DamagedZip as damage:
            yield Rejected("", "unreadable", f"not a complete zip: {damage}")


def _directory(data: IO[bytes]) -> Directory:
    size = data.seek(0, 2)
    start = data.seek(max(0, size - END.size - LONGEST_COMMENT))
    tail = data.read()
    found = _end(tail)
    if found < 0:
        raise DamagedZip("its directory at the end is missing")
    _, disk, first_disk, _, _, length, offset, _ = END.unpack_from(tail, found)
    end = start + found
    wide = _end_64(data, end)
    if wide is not None:
        disk, first_disk, length, offset, end = wide
    if disk or first_disk:
        raise DamagedZip("it is one of several parts; join them first")
    if end - length - offset < 0:
        raise DamagedZip("its directory is truncated")
    return Directory(end - length, end, end - length - offset)


def _end(tail: bytes) -> int:
    """Return the offset of the end-of-directory record in the last bytes of a zip, or -1. A comment may follow."""
    place = tail.rfind(b"PK\5\6", 0, max(len(tail) - END.size + 4, 0))
    while place >= 0 and END.unpack_from(tail, place)[-1] > len(tail) - place - END.size:
        place = tail.rfind(b"PK\5\6", 0, place + 3)
    return place


def _end_64(data: IO[bytes], end: int) -> tuple[int, int, int, int, int] | None:
    """Return disk numbers, length, offset and end of the directory in 64-bit form, or None without it."""
    place = end - LOCATOR.size - END_64.size
    if place < 0:
        return None
    data.seek(place)
    record, locator = data.read(END_64.size), data.read(LOCATOR.size)
    if not record.startswith(b"PK\6\6") or not locator.startswith(b"PK\6\7"):
        return None
    _, _, _, _, disk, first_disk, _, _, length, offset = END_64.unpack(record)
    return disk, first_disk, length, offset, place


def _listed(data: IO[bytes], directory: Directory) -> Iterator[ZipEntry]:
    place, members = data.seek(directory.start), 0
    while place < directory.end:
        fixed = data.read(ENTRY.size)
        if len(fixed) < ENTRY.size or not fixed.startswith(b"PK\1\2"):
            raise DamagedZip(f"no member in its directory at byte {place}; the rest is lost")
        _, _, _, flags, method, _, _, crc, packed, size, *lengths, _, _, _, header = ENTRY.unpack(fixed)
        rest = data.read(sum(lengths))  # name, extra field, comment
        name, extra = rest[: lengths[0]], rest[lengths[0] : lengths[0] + lengths[1]]
        size, packed, header = _wide(extra, size, packed, header)
        members += LOCAL_HEADER + lengths[0] + packed
        if members > directory.start:  # overlapping members would be decompressed thousands of times
            raise DamagedZip("its members overlap; unpack it and build from the folder")
        text, guessed = _name(name, flags, extra)
        yield ZipEntry(text.replace("\\", "/"), guessed, flags, method, crc, packed, size, header + directory.shift)
        place += ENTRY.size + sum(lengths)


def _wide(extra: bytes, *values: int) -> Iterator[int]:
    """Resolve 32-bit values: those that do not fit are in the 64-bit extra field, in the same order."""
    wide = _extra_field(extra, EXTRA_64)
    for value in values:
        if value == FULL_32 and len(wide) >= 8:
            yield int.from_bytes(wide[:8], "little")
            wide = wide[8:]
        else:
            yield value


def _extra_field(extra: bytes, wanted: int) -> bytes:
    """Return the content of the last extra field of a kind; b"" without one."""
    found = b""
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<2H", extra)
        if kind == wanted:
            found = extra[4 : 4 + length]
        extra = extra[4 + length :]
    return found


def _name(raw: bytes, flags: int, extra: bytes) -> tuple[str, bool]:
    """Return a member's name, and whether its encoding was guessed.

    A name without the UTF-8 flag is in cp437 by the standard. Many programs (macOS, old Java and PHP) write UTF-8
    without the flag, or an extra field with the name in UTF-8 (APPNOTE 4.6.9). Others use the system's own code page.
    """
    raw = raw.partition(b"\0")[0]
    if flags & UTF_8 or raw.isascii():
        return raw.decode("utf-8", "surrogateescape"), False
    field = _extra_field(extra, EXTRA_NAME)
    if len(field) > 5 and field[0] == 1 and int.from_bytes(field[1:5], "little") == zlib.crc32(raw):
        raw = field[5:]
    try:
        return raw.decode("utf-8"), False
    except UnicodeDecodeError:
        return raw.decode("cp437"), True


def _member(file: Path, item: ZipEntry) -> ArchiveMember:
    if item.flags & ENCRYPTED:
        fate: tuple[str, ...] = ("unreadable", "encrypted")
    elif item.method not in (STORED, DEFLATED):
        fate = ("unreadable", f"compression method {item.method}; unpack the archive first")
    else:
        fate = ()
    arguments = (item.header, item.packed, item.size, item.crc, item.method == DEFLATED)
    return ArchiveMember(item.name, item.size, LazyBytes("zip_member", arguments, file), fate, item.guessed)


def read_zipped(file: Path, header: int, size: int, unpacked: int, crc: int, packed: bool) -> bytes:
    """Read a member by the offset of its header, without the directory; runs in a worker.

    Raises:
        ImageRejected: If the member is corrupt.
        OSError: If the file cannot be read at all.
    """
    from shards.imaging.codec import MAX_BYTES, ImageRejected
    from shards.sources.containers.byte_range import read_range

    if unpacked > (MAX_UNPACKED if packed else MAX_BYTES):
        raise ImageRejected("too_large", TOO_LARGE if packed else "more than 1 GiB")
    start = read_range(file, header, LOCAL_HEADER)
    if not start.startswith(b"PK\3\4"):
        raise ImageRejected("unreadable", f"no member of a zip at byte {header}")
    behind = sum(int.from_bytes(start[at : at + 2], "little") for at in (26, 28))
    data = read_range(file, header + LOCAL_HEADER + behind, size)
    try:
        data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, unpacked + 1) if packed else data
    except zlib.error as error:
        raise ImageRejected("unreadable", str(error)) from None
    if len(data) != unpacked or zlib.crc32(data) != crc:
        raise ImageRejected("unreadable", "its checksum does not match")
    return data
