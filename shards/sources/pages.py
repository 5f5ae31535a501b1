"""How many rows of a Parquet file may be read at once, told by the headers of its pages before any is unpacked.

A page may unpack to a thousand times its size, and one long text in a dictionary stand for every row. The file's footer
need not be true; what Arrow takes memory for are the pages' own headers. Layout: PageHeader in parquet.thrift, in
Thrift's compact protocol (doc/specs/thrift-compact-protocol.md).
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from shards.files import open_regular

AT_ONCE = 64 << 20  # bytes that the rows of one batch may have
FREE = 64 << 20  # bytes that pages may unpack to from however few
RATIO = 32  # by which larger ones may grow; images do not shrink, and texts by less
MOST = 2 << 30  # bytes of the pages that are unpacked at the same time
MOST_VALUES = 1 << 24  # of a column of lists in a row group, or of a page whose lengths are unpacked in advance
MOST_FOOTER = 16 << 20  # bytes; a few hundred for each column of each row group
_LONGEST_HEADER = 1 << 20
_DICTIONARY = 2  # type of page
_DELTAS = frozenset({5, 6, 7})  # encodings
_BYTES = ("BYTE_ARRAY", "FIXED_LEN_BYTE_ARRAY")
_DEPTH = 16


class DamagedPages(ValueError):  # noqa: N818 - a file's fate
    """Pages that cannot be read, or that take too much memory. The message says why."""


@dataclass
class Chunk:
    """Pages of a column in a row group. held: bytes of what may be unpacked at a time; packed: the same in the file."""

    dictionary: int = 0
    page: int = 0
    packed: int = 0
    values: int = 0

    @property
    def held(self) -> int:
        """Bytes of the dictionary and of the largest page."""
        return self.dictionary + self.page


def check_footer(file: Path) -> None:
    """Raise DamagedPages where the footer is too large: in memory it takes a hundred times its size."""
    with open_regular(file, "rb") as data:
        size = data.seek(0, 2)
        data.seek(max(0, size - 8))
        footer = int.from_bytes(data.read(4), "little")
    if MOST_FOOTER < footer <= size:
        raise DamagedPages(f"its footer has {footer} bytes, and may have {MOST_FOOTER >> 20} MiB")


def batches(file: Path, table: Any, columns: Collection[str], rows: int) -> Iterator[Any]:
    """The record batches of a `pyarrow.parquet.ParquetFile`, of at most `rows` rows; fewer where these may be large.

    Raises:
        DamagedPages: see there; whatever pyarrow raises.
    """
    wanted = sorted(set(columns))
    with open_regular(file, "rb") as data:
        for group in range(table.metadata.num_row_groups):
            few = _rows(data, table, group, wanted, rows)
            yield from table.iter_batches(few, row_groups=[group], columns=wanted, use_threads=False)


def _rows(data: IO[bytes], table: Any, group: int, wanted: Collection[str], rows: int) -> int:
    """How many rows of a row group may be read at once."""
    about = table.metadata.row_group(group)
    held = packed = longest = 0
    for number in range(about.num_columns):
        column = about.column(number)
        if column.path_in_schema.split(".")[0] not in wanted:
            continue
        chunk = _chunk(data, column)
        held, packed = held + chunk.held, packed + chunk.packed
        texts = column.physical_type in _BYTES
        longest += max(chunk.dictionary, chunk.page) if texts else 0
        if table.schema.column(number).max_repetition_level and (
            chunk.values > MOST_VALUES or (texts and chunk.values * chunk.dictionary > MOST)
        ):
            raise DamagedPages(f"its lists in {column.path_in_schema} take too much memory")
    if held > max(FREE, min(MOST, RATIO * packed)):
        raise DamagedPages(f"{packed} bytes of its pages unpack to {held}; write them anew, in smaller row groups")
    return max(1, min(rows, AT_ONCE // max(longest, 1)))


def _chunk(data: IO[bytes], column: Any) -> Chunk:
    """What the page headers of a column in a row group say."""
    start = column.data_page_offset
    if column.has_dictionary_page and column.dictionary_page_offset is not None:
        start = min(start, column.dictionary_page_offset)
    found, end = Chunk(), start + column.total_compressed_size
    if start < 0 or end < start:
        raise DamagedPages(f"the column {column.path_in_schema} lies nowhere")
    sizes = [0, 0]  # packed: of the dictionary, of the largest page
    while start < end:
        header, length = _header(data, start)
        kind, unpacked, packed = (header.get(field, -1) for field in (1, 2, 3))
        if min(kind, unpacked, packed) < 0:
            raise DamagedPages(f"no page at byte {start}")
        if kind == _DICTIONARY:
            found.dictionary, sizes[0] = max(found.dictionary, unpacked), max(sizes[0], packed)
        else:
            found.page, sizes[1] = max(found.page, unpacked), max(sizes[1], packed)
            about = header.get(5) or header.get(8) or {}
            values = about.get(1, 0)
            found.values += max(values, 0)
            encoding = about.get(2) if 5 in header else about.get(4)
            if encoding in _DELTAS and values > MOST_VALUES:
                raise DamagedPages(f"the page at byte {start} says that it has {values} values")
        start += length + packed
    found.packed = sum(sizes)
    return found


def _header(data: IO[bytes], start: int) -> tuple[dict[int, Any], int]:
    """The header of the page at `start`: fields by number, and its length in bytes."""
    for size in (1 << 10, _LONGEST_HEADER):
        data.seek(start)
        try:
            return _struct(data.read(size), 0, 0)
        except IndexError:
            continue
    raise DamagedPages(f"the header of the page at byte {start} has no end")


def _struct(data: bytes, at: int, depth: int) -> tuple[dict[int, Any], int]:
    """The fields of a struct by number, and where it ends. Raises IndexError: behind the end of `data`."""
    if depth > _DEPTH:
        raise DamagedPages("the header of a page is nested too deeply")
    found: dict[int, Any] = {}
    number = 0
    while (head := data[at]) != 0:
        at += 1
        number += head >> 4
        if not head >> 4:
            number, at = _integer(data, at)
        found[number], at = _value(data, at, head & 0xF, depth)
    return found, at + 1


def _value(data: bytes, at: int, kind: int, depth: int) -> tuple[Any, int]:
    if kind in (1, 2):  # true, false: the type is the value
        return kind == 1, at
    if kind == 3:
        return data[at], at + 1
    if kind in (4, 5, 6):
        return _integer(data, at)
    if kind == 7:
        return None, at + 8
    if kind == 8:
        size, at = _varint(data, at)
        return None, at + size
    if kind == 12:
        return _struct(data, at, depth + 1)
    raise DamagedPages(f"the header of a page holds something of type {kind}")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        value |= (data[at] & 0x7F) << shift
        at += 1
        if data[at - 1] < 0x80:
            return value, at
    raise DamagedPages("the header of a page holds a number without end")


def _integer(data: bytes, at: int) -> tuple[int, int]:
    value, at = _varint(data, at)
    return value >> 1 ^ -(value & 1), at
