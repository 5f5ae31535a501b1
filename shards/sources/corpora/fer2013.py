"""FER2013 in each of its CSV forms: grayscale faces of 48 x 48 px, written as numbers in text.

fer2013.csv and icml_face_data.csv list all rows in the order that FERPlus refers to. train.csv and test.csv are from
the contest; test.csv has no labels. The version in folders has lost that order: read it with the command `folder`.
"""

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from shards.entry import Entry, Rejected
from shards.errors import UserError
from shards.io.atomic import open_regular
from shards.io.jsonl import MAX_LINE, split_lines
from shards.sources.corpus_files import TEXT, first_existing, require_path
from shards.sources.registry import CorpusSpec, check_options, option
from shards.sources.split_leaks import CHOICES, HELP, KEEP, LeakReport, published

LABELS = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
COUNTS = {
    "train": (3995, 436, 4097, 7215, 4830, 3171, 4965),
    "val": (467, 56, 496, 895, 653, 415, 607),
    "test": (491, 55, 528, 879, 594, 416, 626),
}
SPLITS = {"training": "train", "publictest": "val", "privatetest": "test"}
FULL = ("fer2013.csv", "icml_face_data.csv", "fer2013/fer2013.csv")
TRAIN, TEST = "train.csv", "test.csv"
SIDE = 48


class FER2013Row(NamedTuple):
    """One row of a list: its number from 0 and its cells, None for missing columns."""

    number: int
    emotion: str | None
    pixels: str
    usage: str | None


@dataclass(frozen=True)
class FER2013:
    """Source with splits train, val (the public test) and test (the private one)."""

    root: Path
    leaks: str = option(KEEP, HELP, CHOICES)
    _found: LeakReport = field(default_factory=LeakReport, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Raise UserError for an invalid option."""
        check_options(self)

    @property
    def release(self) -> str:
        """Name of the list that is read."""
        return find_list(self.root).name

    def __iter__(self) -> Iterator[Entry | Rejected]:
        """Yield faces in the order of the rows.

        Raises:
            UserError: If there is no list, or it has no column `pixels`.
        """
        yield from self._found.check(self._rows, self.leaks)

    def notes(self) -> list[str]:
        """Return a note about images in two splits."""
        return self._found.notes(self.leaks)

    def _rows(self) -> Iterator[Entry | Rejected]:
        file = find_list(self.root)
        if file.name != TRAIN:
            yield from (entry(file.name, "fer2013", row) for row in read_rows(file))
            return
        for name in (TRAIN, TEST):
            if (file.parent / name).is_file():
                split = name.removesuffix(".csv")
                yield from (entry(name, split, row, split) for row in read_rows(file.parent / name))


def find_list(root: Path) -> Path:
    """Return the list of all rows, or train.csv.

    Raises:
        UserError: If neither exists, or the root is the version in folders.
    """
    if (root / "train").is_dir() and first_existing(root, *FULL, TRAIN) is None:
        raise UserError(
            f"fer2013: {root} is the version in folders, which has lost the order of the rows. "
            "Fix: build it with `folder --split-folders --class-folders`."
        )
    return require_path("fer2013", root, "list of faces", *FULL, TRAIN)


def read_rows(file: Path) -> Iterator[FER2013Row]:
    """Yield the rows of a list; icml_face_data.csv has spaces in its column names."""
    try:
        with open_regular(file, newline="", **TEXT) as text:
            rows = csv.reader(split_lines(text, MAX_LINE))
            titles = [name.strip().lower() for name in next(rows, [])]
            if "pixels" not in titles:
                raise UserError(
                    f"fer2013: {file} has no column pixels (columns: {', '.join(titles) or 'none'}). "
                    "Fix: use the original, unmodified file."
                )
            places = [titles.index(name) if name in titles else None for name in ("emotion", "pixels", "usage")]
            for number, cells in enumerate(filter(None, rows)):
                found = [None if i is None else cells[i].strip() if i < len(cells) else "" for i in places]
                yield FER2013Row(number, found[0], found[1] or "", found[2])
    except csv.Error as error:
        raise UserError(
            f"fer2013: {file} is not valid CSV ({error}). Fix: use the original, unmodified file."
        ) from None


def entry(name: str, prefix: str, row: FER2013Row, split: str | None = None) -> Entry | Rejected:
    """Return a row as an entry; `split` is for lists without a column Usage."""
    source = f"{name} row {row.number}"
    split = SPLITS.get(row.usage.lower()) if row.usage is not None else split
    label = None
    if row.emotion is not None:
        label = label_of(row.emotion)
        if label is None:
            return Rejected(source, "bad_row", f"emotion {row.emotion!r}")
    image = picture(row.pixels)
    if image is None:
        return Rejected(source, "bad_row", f"not {SIDE * SIDE} pixels from 0 to 255")
    if split is None:
        return Rejected(source, "bad_row", f"Usage {row.usage!r}")
    return Entry(f"{prefix}-{row.number:05d}", source, image, label, split)


def label_of(emotion: str) -> str | None:
    """Return the label of a number from 0 to 6, also as 3.0 (pandas), or of a name, or None for any other text."""
    name = emotion.strip().casefold()
    if name in LABELS:
        return name
    number = re.fullmatch(r"([0-9])(?:\.0+)?", name)
    return LABELS[int(number[1])] if number and int(number[1]) < len(LABELS) else None


def picture(pixels: str) -> bytes | None:
    """Return a grayscale image file (PGM: lossless, without encoder) from numbers in text."""
    try:
        gray = bytes(map(int, pixels.split()))
    except ValueError:
        return None
    return b"P5\n%d %d\n255\n" % (SIDE, SIDE) + gray if len(gray) == SIDE * SIDE else None


def expected(source: FER2013) -> dict[str, dict[str, int]]:
    """Return the published counts; the contest's test.csv joins both tests, unlabeled."""
    counts = {split: dict(zip(LABELS, found, strict=True)) for split, found in COUNTS.items()}
    counts = counts if source.release != TRAIN else {"train": counts["train"], "test": {"": 7178}}
    return published(counts, source.leaks)


CORPUS = CorpusSpec(
    name="fer2013",
    title="FER2013 (fer2013.csv, icml_face_data.csv, or train.csv and test.csv).",
    source=FER2013,
    labels=LABELS,
    terms="photos found by a search engine, without license; for research",
    published_counts=expected,
)
