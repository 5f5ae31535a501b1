"""Stream the rows of a table in CSV, TSV, JSON Lines or Parquet; the file extension determines the format."""

import csv
import math
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from shards.errors import UserError
from shards.files import open_regular, regular_path
from shards.plain import MOST_LINE, lines_of, parse_json
from shards.sources.pages import DamagedPages, batches, check_footer

KINDS = {".tsv": "tsv", ".tab": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".parquet": "parquet"}
HEAD = 1000  # lines of JSON in which every column must occur
MOST_TEXT = 128 << 20  # maximum characters of a row, which may contain a base64 image
FEW, MANY = 64, 4096  # rows of Parquet in memory: with images, without

Row = tuple[str, tuple[Any, ...] | None]
"""Location ("line 3") and values in the order of the requested columns; None if the row is corrupt."""


def kind_of(file: Path) -> str:
    """Return csv (also for an unknown extension), tsv, jsonl or parquet."""
    return KINDS.get(file.suffix.lower(), "csv")


def columns_of(file: Path) -> list[str]:
    """Return the column names.

    Raises:
        UserError: the file is empty, or not of its format.
    """
    kind = kind_of(file)
    if kind == "parquet":
        return list(_parquet(file).schema_arrow.names)
    with open_regular(file, encoding="utf-8-sig", newline="") as lines:
        if kind == "jsonl":
            if lines.read(4096).lstrip().startswith("["):
                raise UserError(
                    f"jsonl: {file} is a JSON array. Fix: write one object per line, for example with jq -c '.[]'"
                )
            lines.seek(0)
            head = (_object(line) or {} for _, line in zip(range(HEAD), lines_of(lines, MOST_TEXT), strict=False))
            names = list(dict.fromkeys(chain.from_iterable(head)))
        else:
            names = [
                name.strip() for name in next(csv.reader(lines_of(lines, MOST_LINE), delimiter=_delimiter(kind)), [])
            ]
    if not names:
        raise UserError(f"{kind}: {file} is empty. Fix: check the path")
    return names


def read_rows(file: Path, columns: list[str], images: bool = False) -> Iterator[Row]:
    """Yield the values of each row in `columns`, None if missing; images: a column contains files."""
    kind = kind_of(file)
    if kind == "parquet":
        yield from _parquet_rows(file, columns, FEW if images else MANY)
        return
    with open_regular(file, encoding="utf-8-sig", newline="") as lines:
        if kind == "jsonl":
            for number, line in enumerate(lines_of(lines, MOST_TEXT), 1):
                if line.strip():
                    values = _object(line)
                    row = None if values is None else tuple(values.get(name) for name in columns)
                    yield f"line {number}", row
            return
        table = csv.reader(lines_of(lines, MOST_TEXT if images else MOST_LINE), delimiter=_delimiter(kind))
        header = [name.strip() for name in next(table, [])]
        places = [header.index(name) for name in columns]
        for cells in _long(table) if images else table:
            if cells:
                yield f"line {table.line_num}", tuple(cells[at] if at < len(cells) else None for at in places)


def _long(table: Iterator[list[str]]) -> Iterator[list[str]]:
    """Yield lines whose fields may contain images; other tables keep the csv module's limit."""
    while True:
        before = csv.field_size_limit(MOST_TEXT)
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


def is_said(value: Any) -> bool:
    """Return whether a value is present and valid in JSON: not None, NaN or infinite."""
    return value is not None and not (isinstance(value, float) and not math.isfinite(value))


def _delimiter(kind: str) -> str:
    return "\t" if kind == "tsv" else ","


def _object(line: str) -> dict[str, Any] | None:
    try:
        value = parse_json(line)
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
    except (pyarrow.ArrowException, OSError, DamagedPages) as error:
        raise UserError(f"parquet: {file} cannot be read as Parquet ({error}). Fix: download it again") from None


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
    except (pyarrow.ArrowException, OSError, DamagedPages) as error:
        raise UserError(f"parquet: {file} is corrupt after row {number} ({error}). Fix: download it again") from None
