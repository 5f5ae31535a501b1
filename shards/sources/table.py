"""A CSV list of images: a column of paths, and columns of labels, splits and groups by name."""

import csv
import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from shards.entry import Entry, Rejected
from shards.errors import UserError


@dataclass(frozen=True)
class Table:
    """The rows of a CSV file with a header. Columns are named; "" means that there is no such column.

    images: the folder that paths are relative to.
    """

    file: Path
    images: Path
    path_column: str = "path"
    label_column: str = ""
    split_column: str = ""
    group_column: str = ""

    def __iter__(self) -> Iterator[Entry | Rejected]:
        """Entries in the order of the rows.

        Raises:
            UserError: no such file or folder, not UTF-8, no rows, unknown column, no row with a label.
        """
        if not self.file.is_file():
            raise UserError(f"csv: {self.file} is not a file")
        if not self.images.is_dir():
            raise UserError(f"csv: the folder of images {self.images} does not exist; say where it is with --images")
        try:
            yield from self._rows()
        except UnicodeDecodeError as error:
            raise UserError(
                f"csv: {self.file} is not UTF-8 text ({error}); convert it, for example with iconv"
            ) from None
        except csv.Error as error:
            raise UserError(f"csv: {self.file} cannot be read as CSV: {error}") from None

    def _rows(self) -> Iterator[Entry | Rejected]:
        root = self.images.absolute()
        labelled = rows = 0
        with self.file.open(encoding="utf-8-sig", newline="") as lines:
            table = csv.reader(lines)
            header = [name.strip() for name in next(table, [])]
            if not header:
                raise UserError(f"csv: {self.file} is empty")
            places = [self._place(header, name) for name in self._columns()]
            for cells in table:
                if not cells:
                    continue
                rows += 1
                path, label, split, group = (
                    cells[place].strip() if place is not None and place < len(cells) else "" for place in places
                )
                labelled += bool(label)
                yield _entry(root, path, label, split, group, f"line {table.line_num}")
        if not rows:
            raise UserError(f"csv: {self.file} has a header and no rows")
        if self.label_column and not labelled:
            raise UserError(f"csv: no row of {self.file} has anything in the label column {self.label_column!r}")

    def _columns(self) -> tuple[str, ...]:
        return (self.path_column, self.label_column, self.split_column, self.group_column)

    def _place(self, header: list[str], name: str) -> int | None:
        if not name and name is not self.path_column:
            return None
        if name in header:
            return header.index(name)
        near = difflib.get_close_matches(name, header, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UserError(f"csv: {self.file} has no column {name!r}{hint} (columns: {', '.join(header)})")


def _entry(root: Path, path: str, label: str, split: str, group: str, place: str) -> Entry | Rejected:
    if not path:
        return Rejected(place, "missing", "no path in this row")
    relative = PurePosixPath(path)
    if relative.is_absolute() and relative.is_relative_to(root):
        relative = relative.relative_to(root)
    if relative.is_absolute() or ".." in relative.parts:
        return Rejected(place, "outside", f"{relative.name} does not lie below the folder of images")
    source = str(relative)
    return Entry(source, source, root / source, label or None, split or None, group or None)
