"""AffectNet's release of 2017: whole photos, and CSV lists with face box, 68 landmarks, expression and affect."""

import csv
from collections.abc import Iterator
from pathlib import Path

from shards.entry import Entry, Rejected
from shards.errors import UserError
from shards.io.atomic import open_regular
from shards.io.jsonl import MAX_LINE, split_lines
from shards.sources.corpora.affectnet.common import affect, named
from shards.sources.corpus_files import TEXT, box, first_existing, numbers, points, require_path, safe_relative_path

COLUMNS = (
    "subDirectory_filePath", "face_x", "face_y", "face_width", "face_height", "facial_landmarks", "expression",
    "valence", "arousal",
)  # fmt: skip
TRAINING = ("training.csv", "Manually_Annotated_file_lists/training.csv")
VALIDATION = ("validation.csv", "Manually_Annotated_file_lists/validation.csv")
AUTOMATIC = (
    "automatically_annotated.csv",
    "Automatically_annotated_file_list/automatically_annotated.csv",
    "Automatically_Annotated_file_list/automatically_annotated.csv",
    "Automatically_Annotated_file_lists/automatically_annotated.csv",
)
MANUAL_IMAGES = (
    "Manually_Annotated_Images",
    "Manually_Annotated/Manually_Annotated_Images",
    "Manually_Annotated_compressed/Manually_Annotated_Images",
    "Manually_Annotated",
    "Manually_Annotated_compressed",
)
AUTOMATIC_IMAGES = tuple(place.replace("Manually", "Automatically") for place in MANUAL_IMAGES)


def read_lists(root: Path, automatic: bool) -> Iterator[Entry | Rejected]:
    """Yield the rows of training.csv and validation.csv, optionally of automatically_annotated.csv."""
    manual = [(first_existing(root, *TRAINING), "train"), (first_existing(root, *VALIDATION), "val")]
    for file, split in manual:
        if file is not None:
            images = require_path("affectnet", root, "folder of the images", *MANUAL_IMAGES)
            yield from read_list(root, images, file, split)
    if automatic:
        file = require_path("affectnet", root, "list of the automatic labels", *AUTOMATIC)
        images = require_path("affectnet", root, "folder of the automatically labeled images", *AUTOMATIC_IMAGES)
        yield from read_list(root, images, file, "automatic")


def read_list(root: Path, images: Path, file: Path, split: str) -> Iterator[Entry | Rejected]:
    """Yield the rows of one list, in order."""
    try:
        with open_regular(file, newline="", **TEXT) as text:
            rows = csv.reader(split_lines(text, MAX_LINE))
            order = None
            for cells in rows:
                if order is None:
                    order, is_header = _order(file, cells)
                    if is_header:
                        continue
                if cells:
                    yield _entry(root, images, split, [cells[i] for i in order if i < len(cells)], rows.line_num, file)
    except csv.Error as error:
        raise UserError(
            f"affectnet: {file} is not valid CSV ({error}). Fix: use the original, unmodified file."
        ) from None


def _order(file: Path, cells: list[str]) -> tuple[list[int], bool]:
    """Return the position of each of COLUMNS, and whether the first row is a header (some validation.csv lack one)."""
    titles = [cell.strip() for cell in cells]
    if COLUMNS[0] in titles:
        absent = [name for name in COLUMNS if name not in titles]
        if absent:
            raise UserError(
                f"affectnet: {file} has no column {', '.join(absent)} (columns: {', '.join(titles)}). "
                "Fix: use the original, unmodified file."
            )
        return [titles.index(name) for name in COLUMNS], True
    if len(cells) == len(COLUMNS) and named(cells[6]) is not None:
        return list(range(len(COLUMNS))), False
    raise UserError(
        f"affectnet: {file} has neither a header nor the {len(COLUMNS)} columns {', '.join(COLUMNS)}. "
        "Fix: use the original, unmodified file."
    )


def _entry(root: Path, images: Path, split: str, cells: list[str], line: int, file: Path) -> Entry | Rejected:
    place = f"{file.name} line {line}"
    if len(cells) < len(COLUMNS):
        return Rejected(place, "bad_row", f"{len(cells)} columns of {len(COLUMNS)}")
    path = safe_relative_path(cells[0].strip())
    if path is None:
        return Rejected(place, "outside", repr(cells[0]))
    source = (images / path).relative_to(root).as_posix()
    label = named(cells[6])
    if label is None:
        return Rejected(source, "bad_row", f"{place}: expression {cells[6]!r}")
    frame = numbers(" ".join(cells[1:5]), 4)
    marks = numbers(cells[5], 2 * 68, ";")
    feeling = numbers(" ".join(cells[7:9]), 2)
    return Entry(
        key=f"{'automatic' if split == 'automatic' else 'manual'}/{path}",
        source=source,
        read=images / path,
        label=label,
        split=split,
        box=box(*frame) if frame else None,
        landmarks=points(marks) if marks else None,
        extras=affect(*feeling) if feeling else {},
    )
