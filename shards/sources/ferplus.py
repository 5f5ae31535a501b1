"""FERPlus: ten votes for each face of FER2013, joined to it by the position of the row.

The names in fer2013new.csv drift (rows without a face have none), so only the position tells which face is meant. That
both lists have the same order is checked row by row by what they say of the split.
"""

import csv
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path

from shards.entry import Entry, Rejected
from shards.errors import UserError
from shards.files import open_regular
from shards.plain import MOST_LINE, lines_of
from shards.sources.fer2013 import FULL, SPLITS, entry, read_rows
from shards.sources.known import Known, check_options, option
from shards.sources.layout import TEXT, need

LABELS = ("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt")
VOTES = (*LABELS, "unknown", "nf")  # nf: no face
# Counted in fer2013new.csv itself.
COUNTS = {
    "majority": {
        "train": (8740, 7287, 3149, 3014, 2100, 119, 532, 119),
        "val": (1182, 865, 415, 351, 287, 24, 62, 13),
        "test": (1090, 893, 396, 384, 273, 18, 83, 16),
    },
    "argmax": {
        "train": (10309, 7528, 3562, 3515, 2467, 191, 652, 165),
        "val": (1335, 899, 456, 412, 319, 34, 74, 24),
        "test": (1262, 928, 444, 444, 325, 23, 93, 27),
    },
}


@dataclass(frozen=True)
class FERPlus:
    """Splits train, val (the public test) and test (the private one).

    Label: majority, more than half of the votes once single ones are left out, or argmax, the most votes (the first of
    equals). Where that is "unknown" or "nf", the face is rejected as unknown_label. Extras: the votes by name, and what
    FER2013 says.
    """

    root: Path
    fer2013: Path | None = option(None, "Folder with fer2013.csv or icml_face_data.csv; default: DIR.")  # noqa: RUF009
    rule: str = option("majority", "How votes become a label: majority or argmax.", ("majority", "argmax"))

    def __post_init__(self) -> None:
        """Raises UserError for an unknown rule."""
        check_options(self)

    def __iter__(self) -> Iterator[Entry | Rejected]:
        """Faces in the order of the rows.

        Raises:
            UserError: one of the lists is not there, lacks columns, or has other rows than the other one.
        """
        faces = need("ferplus", self.fer2013 or self.root, "list of FER2013's faces (see --fer2013)", *FULL)
        votes = need("ferplus", self.root, "list of votes", "fer2013new.csv")
        for row, vote in zip_longest(read_rows(faces), read_votes(votes)):
            if row is None or vote is None:
                raise UserError(f"ferplus: {faces} and {votes} differ in their number of rows; get both lists whole")
            usage, counts = vote
            parts = [SPLITS.get((name or "").lower()) for name in (row.usage, usage)]
            if None not in parts and parts[0] != parts[1]:
                raise UserError(
                    f"ferplus: row {row.number} is {row.usage} in {faces} and {usage} in {votes}; "
                    "one of them is not in its original order"
                )
            found = entry(faces.name, "fer2013", row)
            if isinstance(found, Entry):
                yield self._voted(found, counts)
            else:
                yield found

    def _voted(self, face: Entry, counts: tuple[int, ...] | None) -> Entry | Rejected:
        if counts is None:
            return Rejected(face.source, "bad_row", "no ten votes in fer2013new.csv")
        extras = {"votes": dict(zip(VOTES, counts, strict=True)), "fer2013": face.label}
        label = majority(counts) if self.rule == "majority" else VOTES[counts.index(max(counts))]
        return replace(face, label=label, extras=extras)


def majority(counts: tuple[int, ...]) -> str:
    """The label with strictly more than half of the votes after single ones are zeroed, else "unknown"."""
    kept = [count if count > 1 else 0 for count in counts]
    return VOTES[kept.index(max(kept))] if 2 * max(kept) > sum(kept) else "unknown"


def read_votes(file: Path) -> Iterator[tuple[str, tuple[int, ...] | None]]:
    """Usage and votes in the order of VOTES, None where they are damaged, row by row."""
    try:
        with open_regular(file, newline="", **TEXT) as text:
            rows = csv.reader(lines_of(text, MOST_LINE))
            titles = [name.strip().lower() for name in next(rows, [])]
            absent = [name for name in ("usage", *VOTES) if name not in titles]
            if absent:
                raise UserError(f"ferplus: {file} has no column {', '.join(absent)} (columns: {', '.join(titles)})")
            usage, *places = [titles.index(name) for name in ("usage", *VOTES)]
            for cells in filter(None, rows):
                yield cells[usage].strip() if usage < len(cells) else "", _counts(cells, places)
    except csv.Error as error:
        raise UserError(f"ferplus: {file} cannot be read as CSV: {error}") from None


def _counts(cells: list[str], places: list[int]) -> tuple[int, ...] | None:
    try:
        counts = tuple(int(cells[place]) for place in places)
    except (ValueError, IndexError):
        return None
    return counts if min(counts) >= 0 and any(counts) else None


CORPUS = Known(
    name="ferplus",
    title="FERPlus: FER2013's faces with ten votes each; majority or argmax, eight expressions.",
    source=FERPlus,
    labels=LABELS,
    terms="labels: MIT licence; FER2013's photos: found by a search engine, without a licence, for research",
    expected=lambda source: {
        split: dict(zip(LABELS, counts, strict=True)) for split, counts in COUNTS[source.rule].items()
    },
)
