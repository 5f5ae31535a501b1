"""An image list (CSV, TSV, JSON Lines, Parquet): a column of paths or of image files, others by name."""

import base64
import csv
import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from shards.entry import Entry, Rejected
from shards.errors import UserError
from shards.sources.corpus_files import box, numbers
from shards.sources.generic.rows import check_kind, columns_of, kind_of, read_rows, text_of

BOX_FORMATS = ("xywh", "xyxy")
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Table:
    """Rows of a table with named columns; "" means that the table has no such column.

    images: base folder of the paths; bytes_column: column of image files, binary in Parquet, base64 in text (the path
    is then only a name); box_columns: one column, or four joined by commas; box_format: left, top and width, height
    (xywh) or right, bottom (xyxy), in pixels. A path with different boxes stands for different faces.
    valence_column, arousal_column: numbers in [-1, 1]. A path with backslashes is read with slashes if that file
    exists.
    """

    file: Path
    images: Path
    path_column: str = "path"
    label_column: str = ""
    split_column: str = ""
    group_column: str = ""
    bytes_column: str = ""
    box_columns: str = ""
    box_format: str = "xywh"
    valence_column: str = ""
    arousal_column: str = ""

    def __iter__(self) -> Iterator[Entry | Rejected]:
        """Yield entries in the order of the rows.

        Raises:
            UserError: If the file or a folder is missing, the file is not UTF-8 or has no rows, a column is unknown, or
                no row has a label.
        """
        kind = kind_of(self.file)
        check_kind(self.file)
        if not self.file.is_file():
            raise UserError(f"{kind}={self.file}: not a file. Fix: check the path.")
        if not self.images.is_dir():
            raise UserError(f"--images={self.images}: not a folder. Fix: pass the base folder of the paths.")
        if self.box_format not in BOX_FORMATS or len(self._box_columns()) not in (0, 1, 4):
            raise UserError(
                f"{kind}: a box needs one or four columns and the order {' or '.join(BOX_FORMATS)}. Fix: correct --box."
            )
        try:
            yield from self._rows()
        except UnicodeDecodeError as error:
            raise UserError(
                f"{kind}: {self.file} is not UTF-8 ({error}). Fix: save it as 'CSV UTF-8', or convert it, such as "
                "from Windows: iconv -f CP1252 -t UTF-8."
            ) from None
        except csv.Error as error:
            raise UserError(
                f"{kind}: {self.file} is not valid {kind.upper()} ({error}). Fix: correct the file."
            ) from None

    def _rows(self) -> Iterator[Entry | Rejected]:
        root, kind = self.images.absolute(), kind_of(self.file)
        labeled = rows = 0
        columns = self._columns()
        for place, values in read_rows(self.file, [name for name in columns if name], bool(self.bytes_column)):
            rows += 1
            if values is None:
                yield Rejected(place, "bad_row", f"{self.file.name}: not a JSON object")
                continue
            given = iter(values)
            found = [next(given) if column else None for column in columns]
            path, label, split, group, data, valence, arousal, *edges = found
            name = _label(label, kind)
            labeled += bool(name)
            about = {"label": name or None, "split": text_of(split) or None, "group": text_of(group) or None}
            try:
                about["box"] = _box(edges, self.box_format)  # type: ignore[assignment]
                about["extras"] = _affect(valence, arousal)  # type: ignore[assignment]
                if self.bytes_column:
                    yield self._held(place, text_of(path), data, about)
                else:
                    yield _entry(root, text_of(path), place, about)
            except ValueError as error:
                yield Rejected(place, "bad_row", str(error))
        if not rows:
            raise UserError(f"{kind}: {self.file} has a header but no rows. Fix: check the path.")
        if self.label_column and not labeled:
            raise UserError(
                f"--label-column={self.label_column}: no row of {self.file} has a label. Fix: choose another column."
            )

    def _held(self, place: str, path: str, data: Any, about: dict[str, Any]) -> Entry | Rejected:
        """Return an entry whose image is in the table."""
        if data is None:
            return Rejected(place, "missing", "no image in this row")
        if isinstance(data, str):
            data = base64.b64decode(re.sub(r"^data:[^,]*,|\s", "", data), validate=True)
        if not isinstance(data, bytes):
            raise ValueError(f"the column {self.bytes_column!r} contains no files")  # noqa: TRY004 - a corrupt row
        number = int(place.split()[1])
        source = PurePosixPath(path).name if PurePosixPath(path).is_absolute() else path
        return Entry(f"{self.file.stem}/{number:08d}", source or f"{self.file.name} {place}", data, **about)

    def _box_columns(self) -> list[str]:
        return [name.strip() for name in self.box_columns.split(",")] if self.box_columns else []

    def _columns(self) -> list[str]:
        """Return the columns of path, label, split, group, bytes, affect and box, or "" for missing ones."""
        affect = (self.valence_column, self.arousal_column)
        asked = (self.label_column, self.split_column, self.group_column, self.bytes_column, *affect)
        wanted = [*([] if self.bytes_column else [self.path_column]), *filter(None, asked), *self._box_columns()]
        header = columns_of(self.file, wanted)
        path = self.path_column if not self.bytes_column or self.path_column in header else ""
        for name in wanted:
            if name not in header:
                near = difflib.get_close_matches(name, header, n=1, cutoff=0.5)
                hint = f". Did you mean {near[0]!r}?" if near else ""
                raise UserError(
                    f"{kind_of(self.file)}: {self.file} has no column {name!r}{hint} (columns: {', '.join(header)}). "
                    "Fix: use one of its columns."
                )
        return [path, *asked, *self._box_columns()]


def _label(value: Any, kind: str) -> str:
    """Convert a label to text. CSV has no types: pandas writes an integer column with gaps as 3.0."""
    text = text_of(value)
    whole = re.fullmatch(r"([+-]?[0-9]{1,40})(?:\.0+|,0)", text) if kind in ("csv", "tsv") else None
    return str(int(whole[1])) if whole else text


def _box(edges: list[Any], order: str) -> Box | None:
    """Parse a box from four values, or from one that contains four; return None without values. Raises ValueError."""
    words = edges[0] if len(edges) == 1 and isinstance(edges[0], list | tuple) else edges
    if len(edges) == 4:
        words = [_point(text_of(edge)) for edge in edges]
    text = re.sub(r"[\[\](),;]", " ", " ".join(map(text_of, words)))
    if not text.strip():
        return None
    values = numbers(text, 4)
    found = None
    if values is not None:
        left, top, third, fourth = values
        found = box(left, top, third, fourth) if order == "xywh" else box(left, top, third - left, fourth - top)
    if found is None:
        raise ValueError(f"{text.strip()[:60]!r} is not a box ({order})")
    return found


def _point(text: str) -> str:
    """Convert a number that may have a decimal comma or a typeset minus, as in most European tables."""
    text = text.replace("\u2212", "-")  # a minus sign as typeset
    return text.replace(",", ".") if re.fullmatch(r"[+-]?\d*,\d+", text) else text


def _affect(valence: Any, arousal: Any) -> dict[str, float]:
    """Return valence and arousal, if present. Raises ValueError for a value that is not a number from -1 to 1."""
    found = {}
    for name, value in (("valence", valence), ("arousal", arousal)):
        if text := text_of(value):
            number = numbers(_point(text), 1)
            if number is None or not -1 <= number[0] <= 1:
                raise ValueError(f"{name} {text[:60]!r} is not a number from -1 to 1")
            found[name] = number[0]
    return found


def _entry(root: Path, path: str, place: str, about: dict[str, Any]) -> Entry | Rejected:
    if not path:
        return Rejected(place, "missing", "no path in this row")
    relative = PurePosixPath(path)
    if "\\" in path:
        slashed = PurePosixPath(path.replace("\\", "/"))
        relative = slashed if (root / slashed).exists() and not (root / path).exists() else relative
    if relative.is_absolute() and relative.is_relative_to(root):
        relative = relative.relative_to(root)
    if relative.is_absolute() or ".." in relative.parts:
        return Rejected(place, "outside", f"{relative.name} is outside the image folder")
    source = str(relative)
    face = "" if about["box"] is None else "/" + "_".join(f"{value:g}" for value in about["box"])
    return Entry(source + face, source, root / source, **about)
