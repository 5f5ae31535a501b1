"""Stream the rows of a table in CSV, TSV, JSON Lines or Parquet; the file extension determines the format."""

import csv
import gzip
import io
import math
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import IO, Any

from shards.errors import UserError
from shards.io.atomic import open_regular, regular_path
from shards.io.jsonl import MAX_LINE, loads, split_lines
from shards.sources.containers.parquet_pages import CorruptParquetError, batches, check_footer

KINDS = {".tsv": "tsv", ".tab": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".parquet": "parquet"}
WORKBOOKS = (".xlsx", ".xlsm", ".xlsb", ".xls", ".ods", ".numbers")
PACKED = (".zip", ".bz2", ".xz", ".zst", ".7z")
DELIMITERS = (",", ";", "\t", "|")  # of a .csv; Excel writes the list separator of its locale
BOOK_STARTS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")  # of .xlsx and .xls
UTF_16 = (b"\xff\xfe", b"\xfe\xff")  # Excel's "Unicode text"
HEAD = 1000  # lines of JSON in which every column must occur
MAX_TEXT = 128 << 20  # maximum characters of a row, which may contain a base64 image
FEW, MANY = 64, 4096  # rows of Parquet in memory, with and without images

Row = tuple[str, tuple[Any, ...] | None]
"""Location ("line 3") and values in the order of the requested columns, or None if the row is corrupt."""


def kind_of(file: Path) -> str:
    """Return csv (also for an unknown extension), tsv, jsonl or parquet; a .gz has the format of its content."""
    return KINDS.get(_plain_suffix(file), "csv")


def check_kind(file: Path) -> None:
    """Raise UserError for a workbook or a list in an archive."""
    suffix = file.suffix.lower()
    if suffix in WORKBOOKS:
        raise _workbook(file)
    if suffix in PACKED or (suffix == ".gz" and _plain_suffix(file) == ".parquet"):
        raise UserError(f"table: {file} is compressed, but only .gz of text is supported. Fix: unpack it.")


def _workbook(file: Path) -> UserError:
    return UserError(f"table: {file} is a workbook. Fix: save its sheet as 'CSV UTF-8' and give that file.")


def _plain_suffix(file: Path) -> str:
    return (Path(file.stem) if file.suffix.lower() == ".gz" else file).suffix.lower()


@contextmanager
def _open_text(file: Path) -> Iterator[IO[str]]:
    """Open a list as decompressed text: UTF-8 with or without BOM, or UTF-16 with BOM."""
    with open_regular(file, "rb") as data:
        try:
            plain = gzip.GzipFile(fileobj=data) if file.suffix.lower() == ".gz" else data
            start = plain.read(4)
            plain.seek(0)
            if start in BOOK_STARTS:
                raise _workbook(file)
            encoding = "utf-16" if start[:2] in UTF_16 else "utf-8-sig"
            with io.TextIOWrapper(plain, encoding=encoding, newline="") as lines:
                yield lines
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise UserError(f"{kind_of(file)}: {file} is corrupt ({error}). Fix: copy it again.") from None


def _csv_lines(lines: IO[str], kind: str, most: int) -> tuple[Iterator[str], str]:
    """Return the lines of a CSV from its header on, and the delimiter of Excel's first line `sep=;`, or ""."""
    rest = split_lines(lines, most)
    first = next(rest, "")
    if kind == "csv" and first.lower().startswith("sep=") and len(first.strip()) == 5:
        return rest, first.strip()[4]
    return chain([first] if first else [], rest), ""


def columns_of(file: Path, wanted: Sequence[str] = ()) -> list[str]:
    """Return the column names. wanted: columns that determine the delimiter of a .csv.

    Raises:
        UserError: If the file is empty or not of its format.
    """
    kind = kind_of(file)
    if kind == "parquet":
        return list(_parquet(file).schema_arrow.names)
    with _open_text(file) as lines:
        if kind == "jsonl":
            if lines.read(4096).lstrip().startswith("["):
                raise UserError(
                    f"jsonl: {file} is a JSON array. Fix: use, for example, jq -c '.[]' to write one object per line."
                )
            lines.seek(0)
            head = (_object(line) or {} for _, line in zip(range(HEAD), split_lines(lines, MAX_TEXT), strict=False))
            names = list(dict.fromkeys(chain.from_iterable(head)))
        else:
            names = _header(lines, kind, MAX_LINE, wanted)[0]
    if not names:
        raise UserError(f"{kind}: {file} is empty. Fix: check the path.")
    return names


def read_rows(file: Path, columns: list[str], images: bool = False) -> Iterator[Row]:
    """Yield the values of each row in `columns`, None if missing. images: whether a column contains files."""
    kind = kind_of(file)
    if kind == "parquet":
        yield from _parquet_rows(file, columns, FEW if images else MANY)
        return
    with _open_text(file) as lines:
        if kind == "jsonl":
            for number, line in enumerate(split_lines(lines, MAX_TEXT), 1):
                if line.strip():
                    values = _object(line)
                    row = None if values is None else tuple(values.get(name) for name in columns)
                    yield f"line {number}", row
            return
        most = MAX_TEXT if images else MAX_LINE
        header, before, table = _header(lines, kind, most, columns)
        places = [header.index(name) for name in columns]
        for cells in _long(table, most):
            if cells:
                yield f"line {before + table.line_num}", tuple(cells[at] if at < len(cells) else None for at in places)


def _header(lines: IO[str], kind: str, most: int, wanted: Sequence[str]) -> tuple[list[str], int, Any]:
    """Return the names of the columns, the number of header lines, and a reader of the rows after the header.

    The delimiter is the first with which the header has all of `wanted`, else the one that gives the most columns.
    """
    rest, named = _csv_lines(lines, kind, most)
    head, before = next(rest, ""), 1 + bool(named)
    while head.count('"') % 2 and (more := next(rest, "")):  # a name with a line break in it
        head, before = head + more, before + 1
    choices = (named,) if named else DELIMITERS if kind == "csv" else ("\t",)
    headers = {mark: [name.strip() for name in next(csv.reader([head], delimiter=mark), [])] for mark in choices}
    fitting = [mark for mark in choices if set(filter(None, wanted)) <= set(headers[mark])]
    chosen = (fitting or sorted(choices, key=lambda mark: -len(headers[mark])))[0]
    return headers[chosen], before, csv.reader(rest, delimiter=chosen)


def _long(table: Any, most: int) -> Iterator[list[str]]:
    """Yield lines whose fields may contain images; other tables keep the csv module's limit."""
    while True:
        before = csv.field_size_limit(most)
        try:
            cells = next(table, None)
        finally:
            csv.field_size_limit(before)
        if cells is None:
            return
        yield cells


def text_of(value: Any) -> str:
    """Convert a value to text: '' for None and NaN (missing numbers), '3' for 3.0."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def has_value(value: Any) -> bool:
    """Return whether a value is present and valid in JSON: not None, NaN or infinite."""
    return value is not None and not (isinstance(value, float) and not math.isfinite(value))


def _object(line: str) -> dict[str, Any] | None:
    try:
        value = loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _parquet(file: Path) -> Any:
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        with regular_path(file) as path:
            check_footer(path)
            return ParquetFile(path, buffer_size=1 << 20)
    except (pyarrow.ArrowException, OSError, CorruptParquetError) as error:
        raise UserError(f"parquet: {file} cannot be read as Parquet ({error}). Fix: download it again.") from None


def _parquet_rows(file: Path, columns: list[str], batch_rows: int) -> Iterator[Row]:
    import pyarrow

    number = 0
    try:
        with _parquet(file) as table:
            for batch in batches(file, table, columns, batch_rows):
                values = [batch.column(name).to_pylist() for name in columns]
                for row in zip(*values, strict=True):
                    number += 1
                    yield f"row {number}", row
    except (pyarrow.ArrowException, OSError, CorruptParquetError) as error:
        raise UserError(f"parquet: {file} is corrupt after row {number} ({error}). Fix: download it again.") from None
