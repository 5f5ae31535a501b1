"""Parquet files of a Hugging Face dataset: a column of images, {bytes, path} each, and labels named by the schema.

`data/train-00000-of-00002.parquet`, or `default/train/0000.parquet` if the hub converted the dataset. The schema's
metadata contains the features under `huggingface`: ClassLabel names the values of an integer label; -1 means no label.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from shards.entry import Entry, Rejected
from shards.errors import UserError
from shards.io.atomic import regular_path
from shards.io.jsonl import loads
from shards.rules import TEST, TRAIN, VAL, normalize_label, normalize_split
from shards.sources.containers.parquet_pages import CorruptParquetError, batches, check_footer
from shards.sources.corpus_files import describe_dir, safe_relative_path
from shards.sources.generic.folder import walk
from shards.sources.generic.rows import has_value, text_of

PART = re.compile(r"(.+?)(-\d{5}-of-\d{5})?(-[0-9a-f]{16})?")
ROWS = 64  # maximum rows in memory at a time


@dataclass(frozen=True)
class Columns:
    """Roles of the columns of a file. names: names of an integer label, () if the label itself is a name."""

    image: str
    label: str
    names: tuple[str, ...]
    others: tuple[str, ...]


@dataclass
class HuggingFace:
    """Rows of one Parquet file, or of all Parquet files below a folder.

    image_column: default: the column of type Image; label_column: default: the only ClassLabel, or the column "label".
    """

    root: Path
    image_column: str = ""
    label_column: str = ""
    group_column: str = ""
    unused: tuple[str, ...] = field(default=(), init=False)  # unused class label columns, after iterating

    def __iter__(self) -> Iterator[Entry | Rejected]:
        """Yield entries in the order of the file names and rows; extras: numbers and texts of other columns.

        Images are read immediately, because Parquet has no random access to single values.

        Raises:
            UserError: If there is no Parquet file, or the first one lacks a column.
        """
        files = self._files()
        self._columns(files[0][1])
        for name, file in files:
            yield from self._rows(name, file)

    @property
    def labels(self) -> tuple[str, ...]:
        """Label names in the schema's order, or () if there are none."""
        names = [normalize_label(name) or "" for name in self._columns(self._files()[0][1]).names]
        return tuple(names) if len(set(names)) == len(names) and all(names) else ()

    def notes(self) -> list[str]:
        """Return hints for the user, after iterating."""
        columns = ", ".join(self.unused)
        return [f"unlabeled; {self.root.name} has labels in {columns}: add --label-column"] if self.unused else []

    def _files(self) -> list[tuple[str, Path]]:
        if self.root.is_file():
            return [(self.root.name, self.root)]
        if not self.root.is_dir():
            raise UserError(f"huggingface={self.root}: does not exist. Fix: check the path.")
        names = [name for name in walk(self.root) if name.lower().endswith(".parquet")]
        if not names:
            raise UserError(
                f"huggingface: no .parquet in {self.root} (found: {describe_dir(self.root)}). Fix: check the path."
            )
        return [(name, self.root / name) for name in names]

    def _columns(self, file: Path) -> Columns:
        import pyarrow
        from pyarrow.parquet import read_schema

        try:
            check_footer(file)
            schema = read_schema(file)
        except (pyarrow.ArrowException, OSError, CorruptParquetError) as error:
            raise UserError(
                f"huggingface: {file} cannot be read as Parquet ({error}). Fix: download it again."
            ) from None
        features = _features(schema.metadata or {})
        image = self.image_column or _first_image(schema, features)
        named = {
            name: tuple(map(str, features[name].get("names") or ()))
            for name in schema.names
            if features.get(name, {}).get("_type") == "ClassLabel"
        }
        label = self.label_column or ("label" if "label" in schema.names else "")
        if not label and len(named) == 1:
            label = next(iter(named))
        for name in filter(None, (image, label, self.group_column)):
            if name not in schema.names:
                raise UserError(
                    f"huggingface: {file} has no column {name!r}. Fix: choose one of {', '.join(schema.names)}."
                )
        if not image:
            raise UserError(
                f"huggingface: {file} has no image column (columns: {', '.join(schema.names)}). "
                "Fix: add --image-column."
            )
        self.unused = () if label else tuple(named)
        others = tuple(name for name in schema.names if name not in (image, label, self.group_column))
        plain = tuple(name for name in others if _is_plain(schema.field(name).type))
        return Columns(image, label, named.get(label, ()), plain)

    def _rows(self, name: str, file: Path) -> Iterator[Entry | Rejected]:
        import pyarrow
        from pyarrow.parquet import ParquetFile

        number = 0
        split = split_of(name)
        try:
            columns = self._columns(file)
            wanted = {columns.image, columns.label, self.group_column, *columns.others} - {""}
            with regular_path(file) as path, ParquetFile(path, buffer_size=1 << 20) as table:
                for batch in batches(path, table, wanted, ROWS):
                    for row in batch.to_pylist():
                        yield self._entry(name, number, split, columns, row)
                        number += 1
        except UserError as error:
            yield Rejected(name, "bad_row", str(error))
        except (pyarrow.ArrowException, OSError, CorruptParquetError) as error:
            if getattr(error, "errno", None) is not None:  # a disk error, not a corrupt file
                raise
            yield Rejected(name, "unreadable", f"corrupt after row {number}: {error}; the rest is lost")

    def _entry(
        self, file: str, number: int, split: str | None, columns: Columns, row: dict[str, Any]
    ) -> Entry | Rejected:
        source = f"{file}/{number}"
        label = row.get(columns.label)
        if columns.names and label is not None:
            if not isinstance(label, int) or not -1 <= label < len(columns.names):
                return Rejected(source, "bad_row", f"label {label} of {len(columns.names)}")
            label = columns.names[label] if label >= 0 else None
        extras = {name: row[name] for name in columns.others if has_value(row[name])}
        image = row[columns.image]
        if not _is_image(image):
            return Rejected(source, "bad_row", f"{columns.image} contains {type(image).__name__}, not bytes or a path")
        read, path = _parts(image)
        if path:
            extras["path"] = PurePosixPath(path).name
        if read is None:
            if not path:
                return Rejected(source, "missing", "no image in this row")
            relative = safe_relative_path(path)
            if relative is None:
                return Rejected(source, "outside", f"{PurePosixPath(path).name} is outside the folder")
            read = (self.root if self.root.is_dir() else self.root.parent).absolute() / relative
        return Entry(
            key=f"{file.removesuffix('.parquet')}/{number:07d}",
            source=source,
            read=read,
            label=text_of(label) or None,
            split=split,
            group=text_of(row.get(self.group_column)) or None,
            extras=extras,
        )


def _is_image(image: Any) -> bool:
    """Return whether a value can be an image: {bytes, path} with at least one, bytes, a path, or nothing."""
    if not isinstance(image, dict):
        return image is None or isinstance(image, bytes | str)
    return isinstance(image.get("bytes"), bytes | None) and isinstance(image.get("path"), str | None)


def _parts(image: dict[str, Any] | bytes | str | None) -> tuple[Path | bytes | None, str | None]:
    """Return an image's bytes and path."""
    if isinstance(image, dict):
        return image.get("bytes"), image.get("path")
    return (image, None) if isinstance(image, bytes) else (None, image)


def split_of(name: str) -> str | None:
    """Infer the split from a file name (before -00000-of-00002) or its folder."""
    path = PurePosixPath(name)
    match = PART.fullmatch(path.stem)
    if match and (match[2] or normalize_split(match[1]) in (TRAIN, VAL, TEST)):
        return match[1]
    folder = path.parent.name
    return folder if folder and normalize_split(folder) in (TRAIN, VAL, TEST) else None


def _features(metadata: dict[bytes, bytes]) -> dict[str, dict[str, Any]]:
    """Return the features written to the schema by Hugging Face's library, or {} without them."""
    try:
        features = loads(metadata[b"huggingface"])["info"]["features"]
        return {str(name): about for name, about in features.items() if isinstance(about, dict)}
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}


def _first_image(schema: Any, features: dict[str, dict[str, Any]]) -> str:
    """Return the first column of type Image, else the first similar struct, else the first binary column."""
    from pyarrow import types

    marked = [name for name in schema.names if features.get(name, {}).get("_type") == "Image"]
    kinds = {name: schema.field(name).type for name in schema.names}
    alike = [name for name, kind in kinds.items() if types.is_struct(kind) and kind.get_field_index("bytes") >= 0]
    held = [name for name, kind in kinds.items() if types.is_binary(kind) or types.is_large_binary(kind)]
    return next(iter([*marked, *alike, *held]), "")


def _is_plain(kind: Any) -> bool:
    from pyarrow import types

    kind = kind.value_type if types.is_dictionary(kind) else kind
    text = types.is_string(kind) or types.is_large_string(kind)
    return text or types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)
