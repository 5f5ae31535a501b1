"""Limit the rows read at once from a Parquet file, using its page headers before any page is decompressed.

A page can expand a thousandfold, and one long text in a dictionary can represent every row. The file's footer may be
wrong; Arrow allocates memory according to the page headers. Layout: PageHeader in parquet.thrift, in Thrift's compact
protocol (doc/specs/thrift-compact-protocol.md).
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from shards.io.atomic import open_regular

AT_ONCE = 64 << 20  # maximum bytes of the rows of one batch
FREE = 64 << 20  # decompressed bytes allowed for any compressed size
RATIO = 32  # maximum expansion of larger pages; images barely compress, and texts less than this
MOST = 2 << 30  # maximum bytes of pages decompressed at the same time
MOST_VALUES = 1 << 24  # per list column and row group, or per page whose lengths are decoded first
MOST_FOOTER = 16 << 20  # maximum bytes; a few hundred per column and row group are normal
_LONGEST_HEADER = 1 << 20
_DICTIONARY = 2  # page type
_DELTAS = frozenset({5, 6, 7})  # encodings
_BYTES = ("BYTE_ARRAY", "FIXED_LEN_BYTE_ARRAY")
_DEPTH = 16


class CorruptParquetError(ValueError):
    """Error: pages cannot be read or take too much memory. The message gives the reason."""


@dataclass
class Chunk:
    """Pages of a column in a row group, in bytes. held: decompressed at a time; packed: the same, compressed."""

    dictionary: int = 0
    page: int = 0
    packed: int = 0
    values: int = 0

    @property
    def held(self) -> int:
        """Bytes of the dictionary and of the largest page."""
        return self.dictionary + self.page


def check_footer(file: Path) -> None:
    """Raise CorruptParquetError if the footer is too large: in memory it takes a hundred times its size."""
    with open_regular(file, "rb") as data:
        size = data.seek(0, 2)
        data.seek(max(0, size - 8))
        footer = int.from_bytes(data.read(4), "little")
    if MOST_FOOTER < footer <= size:
        raise CorruptParquetError(f"its footer has {footer} bytes; the maximum is {MOST_FOOTER >> 20} MiB")


def batches(file: Path, table: Any, columns: Collection[str], rows: int) -> Iterator[Any]:
    """Yield record batches of a `pyarrow.parquet.ParquetFile` with at most `rows` rows, fewer if they may be large.

    Raises:
        CorruptParquetError: If the pages cannot be read or take too much memory. Errors of pyarrow are passed on.
    """
    wanted = sorted(set(columns))
    with open_regular(file, "rb") as data:
        for group in range(table.metadata.num_row_groups):
            few = _rows(data, table, group, wanted, rows)
            yield from table.iter_batches(few, row_groups=[group], columns=wanted, use_threads=False)


def _rows(data: IO[bytes], table: Any, group: int, wanted: Collection[str], rows: int) -> int:
    """Return how many rows of a row group may be read at once."""
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
            raise CorruptParquetError(f"the lists in {column.path_in_schema} take too much memory")
    if held > max(FREE, min(MOST, RATIO * packed)):
        raise CorruptParquetError(f"{packed} bytes of pages expand to {held}; rewrite the file with smaller row groups")
    return max(1, min(rows, AT_ONCE // max(longest, 1)))


def _chunk(data: IO[bytes], column: Any) -> Chunk:
    """Sum up the page headers of a column in a row group."""
    start = column.data_page_offset
    if column.has_dictionary_page and column.dictionary_page_offset is not None:
        start = min(start, column.dictionary_page_offset)
    found, end = Chunk(), start + column.total_compressed_size
    if start < 0 or end < start:
        raise CorruptParquetError(f"the column {column.path_in_schema} has an invalid offset")
    sizes = [0, 0]  # compressed sizes: dictionary, largest page
    while start < end:
        header, length = _header(data, start)
        kind, unpacked, packed = (header.get(field, -1) for field in (1, 2, 3))
        if min(kind, unpacked, packed) < 0:
            raise CorruptParquetError(f"no page at byte {start}")
        if kind == _DICTIONARY:
            found.dictionary, sizes[0] = max(found.dictionary, unpacked), max(sizes[0], packed)
        else:
            found.page, sizes[1] = max(found.page, unpacked), max(sizes[1], packed)
            about = header.get(5) or header.get(8) or {}
            values = about.get(1, 0)
            found.values += max(values, 0)
            encoding = about.get(2) if 5 in header else about.get(4)
            if encoding in _DELTAS and values > MOST_VALUES:
                raise CorruptParquetError(f"the page at byte {start} declares {values} values")
        start += length + packed
    found.packed = sum(sizes)
    return found


def _header(data: IO[bytes], start: int) -> tuple[dict[int, Any], int]:
    """Return the header of the page at `start` (fields by number) and its length in bytes."""
    for size in (1 << 10, _LONGEST_HEADER):
        data.seek(start)
        try:
            return _struct(data.read(size), 0, 0)
        except IndexError:
            continue
    raise CorruptParquetError(f"the header of the page at byte {start} is not terminated")


def _struct(data: bytes, at: int, depth: int) -> tuple[dict[int, Any], int]:
    """Return the fields of a struct by number and its end. Raises IndexError past the end of `data`."""
    if depth > _DEPTH:
        raise CorruptParquetError("a page header is nested too deeply")
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
    if kind in (1, 2):  # true, false: the type encodes the value
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
    raise CorruptParquetError(f"a page header contains an unknown type {kind}")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        value |= (data[at] & 0x7F) << shift
        at += 1
        if data[at - 1] < 0x80:
            return value, at
    raise CorruptParquetError("a page header contains an unterminated number")


def _integer(data: bytes, at: int) -> tuple[int, int]:
    value, at = _varint(data, at)
    return value >> 1 ^ -(value & 1), at
