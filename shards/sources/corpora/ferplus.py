"""FERPlus: ten votes for each face of FER2013, from FER2013's own list or from the images of Microsoft's script.

With the list, faces are joined to votes by row position, because the names in fer2013new.csv are shifted (rows without
a face have none). Both lists must have the same order; the split is compared row by row.

With images (`FER2013Train/fer0000000.png`, `FER2013Valid/`, `FER2013Test/`, and fer2013new.csv beside them, in a folder
or a zip), names identify faces. Four names occur twice: one file then serves two rows with separate votes, like in the
published counts; differing votes are reported.
"""

import csv
import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from pathlib import Path
from typing import IO, NamedTuple

from shards.entry import Entry, Rejected
from shards.errors import UserError
from shards.io.atomic import open_regular
from shards.io.jsonl import MAX_LINE, split_lines
from shards.sources.containers.corpus_archive import CorpusFiles, find_corpus_files
from shards.sources.corpora.fer2013 import FULL, SPLITS, entry, read_rows
from shards.sources.corpus_files import TEXT, first_existing, require_path
from shards.sources.registry import CorpusSpec, check_options, option
from shards.sources.split_leaks import CHOICES, HELP, KEEP, LeakReport, published

LABELS = ("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt")
VOTES = (*LABELS, "unknown", "nf")  # nf: no face
LIST = "fer2013new.csv"
FOLDERS = {"train": "FER2013Train", "val": "FER2013Valid", "test": "FER2013Test"}
# Counted in fer2013new.csv.
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

    Label: majority (more than half of the votes after single votes are removed) or argmax (most votes, the first of
    equals). A face whose label is "unknown" or "nf" is rejected as unknown_label. Extras: votes by name, FER2013's
    label.
    """

    root: Path
    fer2013: Path | None = option(None, "folder with fer2013.csv or icml_face_data.csv (default: DIR)")  # noqa: RUF009
    rule: str = option("majority", "rule that turns votes into a label: majority or argmax", ("majority", "argmax"))
    leaks: str = option(KEEP, HELP, CHOICES)
    _found: LeakReport = field(default_factory=LeakReport, init=False, repr=False, compare=False)
    _doubled: dict[str, bool] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Raise UserError for an unknown rule."""
        check_options(self)

    def __iter__(self) -> Iterator[Entry | Rejected]:
        """Yield faces in the order of the rows.

        Raises:
            UserError: If a list is missing, lacks columns, or has other rows than the other list.
        """
        self._doubled.clear()
        files = None if self.fer2013 or first_existing(self.root, *FULL) else _find_images(self.root)
        yield from self._found.check(self._listed if files is None else lambda: self._images(files), self.leaks)

    def notes(self) -> list[str]:
        """Return notes about images in two splits and names that occur twice."""
        found = self._found.notes(self.leaks)
        if self._doubled:
            names = ", ".join(
                f"{name} (with different votes)" if other else name for name, other in self._doubled.items()
            )
            found.append(f"names that occur twice in {LIST}, one image with the votes of both rows: {names}")
        return found

    def _images(self, files: CorpusFiles) -> Iterator[Entry | Rejected]:
        votes = list(read_votes(io.StringIO(files.text("ferplus", LIST), newline=""), f"{LIST} in {files.where}"))
        for (usage, name), count in Counter((vote.usage, vote.name) for vote in votes).items():
            if name and count > 1:
                told = {vote.counts for vote in votes if (vote.usage, vote.name) == (usage, name)}
                self._doubled[name] = len(told) > 1
        for number, vote in enumerate(votes):
            yield self._image(files, number, vote)

    def _image(self, files: CorpusFiles, number: int, vote: "Vote") -> Entry | Rejected:
        split = SPLITS.get(vote.usage.lower())
        if split is None:
            return Rejected(f"{LIST} row {number}", "bad_row", f"Usage {vote.usage!r}")
        if not vote.name:
            return Rejected(f"{LIST} row {number}", "unknown_label", "no name: not a face")
        source = f"{FOLDERS[split]}/{vote.name}"
        read = files.read(source)
        if isinstance(read, Rejected):
            return read
        return self._voted(Entry(f"fer2013-{number:05d}", source, read, split=split), vote.counts)

    def _listed(self) -> Iterator[Entry | Rejected]:
        faces = require_path("ferplus", self.fer2013 or self.root, "list of FER2013's faces (see --fer2013)", *FULL)
        votes = require_path("ferplus", self.root, "list of votes", LIST)
        for row, vote in zip_longest(read_rows(faces), _votes_of(votes)):
            if row is None or vote is None:
                raise UserError(
                    f"ferplus: {faces} and {votes} have different numbers of rows. Fix: download both lists again."
                )
            usage, _, counts = vote
            parts = [SPLITS.get((name or "").lower()) for name in (row.usage, usage)]
            if None not in parts and parts[0] != parts[1]:
                raise UserError(
                    f"ferplus: row {row.number} is {row.usage} in {faces} and {usage} in {votes}. "
                    "Fix: use both lists in their original order."
                )
            found = entry(faces.name, "fer2013", row)
            if isinstance(found, Entry):
                yield self._voted(found, counts)
            else:
                yield found

    def _voted(self, face: Entry, counts: tuple[int, ...] | None) -> Entry | Rejected:
        if counts is None:
            return Rejected(face.source, "bad_row", f"not ten votes in {LIST}")
        extras: dict[str, object] = {"votes": dict(zip(VOTES, counts, strict=True))}
        if face.label is not None:
            extras["fer2013"] = face.label
        label = majority(counts) if self.rule == "majority" else VOTES[counts.index(max(counts))]
        return replace(face, label=label, extras=extras)


def majority(counts: tuple[int, ...]) -> str:
    """Return the label with more than half of the votes after single votes are zeroed, else "unknown"."""
    kept = [count if count > 1 else 0 for count in counts]
    return VOTES[kept.index(max(kept))] if 2 * max(kept) > sum(kept) else "unknown"


class Vote(NamedTuple):
    """One row of fer2013new.csv. counts: votes in the order of VOTES, None if corrupt."""

    usage: str
    name: str
    counts: tuple[int, ...] | None


def _votes_of(file: Path) -> Iterator[Vote]:
    with open_regular(file, newline="", **TEXT) as text:
        yield from read_votes(text, file)


def read_votes(text: IO[str], where: object) -> Iterator[Vote]:
    """Yield the rows of fer2013new.csv; `where` is for messages. Raises UserError for a missing column or bad CSV."""
    try:
        rows = csv.reader(split_lines(text, MAX_LINE))
        titles = [name.strip().lower() for name in next(rows, [])]
        absent = [name for name in ("usage", *VOTES) if name not in titles]
        if absent:
            raise UserError(
                f"ferplus: {where} has no column {', '.join(absent)} (columns: {', '.join(titles)}). "
                "Fix: use the original, unmodified file."
            )
        usage, *places = [titles.index(name) for name in ("usage", *VOTES)]
        named = titles.index("image name") if "image name" in titles else len(titles)
        for cells in filter(None, rows):
            said, name = (cells[at].strip() if at < len(cells) else "" for at in (usage, named))
            yield Vote(said, name, _counts(cells, places))
    except csv.Error as error:
        raise UserError(
            f"ferplus: {where} is not valid CSV ({error}). Fix: use the original, unmodified file."
        ) from None


def _find_images(root: Path) -> CorpusFiles | None:
    return next((files for folder in FOLDERS.values() if (files := find_corpus_files(root, LIST, folder))), None)


def _counts(cells: list[str], places: list[int]) -> tuple[int, ...] | None:
    try:
        counts = tuple(int(cells[place]) for place in places)
    except (ValueError, IndexError):
        return None
    return counts if min(counts) >= 0 and any(counts) else None


CORPUS = CorpusSpec(
    name="ferplus",
    title="FERPlus: FER2013's faces with ten votes each; majority or argmax, eight expressions.",
    source=FERPlus,
    labels=LABELS,
    terms="labels: MIT license; FER2013's photos: found by a search engine, without license, for research",
    published_counts=lambda source: published(
        {split: dict(zip(LABELS, counts, strict=True)) for split, counts in COUNTS[source.rule].items()}, source.leaks
    ),
)
