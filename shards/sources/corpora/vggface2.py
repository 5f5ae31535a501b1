"""VGGFace2: 3.31 million photos of 9,131 people; Cao et al., FG 2018.

`{train,test}/n000002/0001_01.jpg`, also below `data/`. Optional: `bb_landmark/loose_bb_{train,test}.csv`
(`NAME_ID,X,Y,W,H`, quoted names without extension), `loose_landmark_*.csv` (five points) and `identity_meta.csv`.
"""

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from shards.entry import Entry, Rejected
from shards.errors import UserError
from shards.io.atomic import open_regular
from shards.io.jsonl import MAX_LINE, split_lines
from shards.sources.corpus_files import (
    TEXT,
    box,
    describe_dir,
    first_existing,
    list_dir,
    numbers,
    points,
    require_path,
    safe_relative_path,
)
from shards.sources.generic.folder import EXTENSIONS
from shards.sources.registry import CorpusSpec

EXPECTED = {"train": 3_141_890, "test": 169_396}
LIST_FOLDERS = ("bb_landmark", "meta/bb_landmark", "data/bb_landmark", "meta", ".")
PERSON = re.compile(r"n\d{6}")

Row = tuple[int, str]  # line number, text after the name


@dataclass(frozen=True)
class RowRuns:
    """A list too large for memory: (offset, line number, number of lines) of each run of lines about one person."""

    file: Path | None
    runs: dict[str, list[tuple[int, int, int]]]

    def rows(self, person: str) -> dict[str, Row]:
        """Read the lines about a person, by image name."""
        found = {}
        if self.file is not None and person in self.runs:
            with open_regular(self.file, "rb") as data:
                for offset, first, count in self.runs[person]:
                    data.seek(offset)
                    for number in range(first, first + count):
                        name, rest = _cut(data.readline())
                        found[name] = (number, rest)
        return found


@dataclass(frozen=True)
class VGGFace2:
    """Source: the photos on disk and those in the lists."""

    root: Path

    def __iter__(self) -> Iterator[Entry | Rejected]:
        """Yield unlabeled photos with group = person; box and landmarks from the lists, if present; extras: gender.

        Raises:
            UserError: If there are no person folders, or a list lacks its header.
        """
        require_path("vggface2", self.root, "train or test folder", *self._places("train"), *self._places("test"))
        genders = self._genders()
        for split in EXPECTED:
            folder = first_existing(self.root, *self._places(split))
            if folder is not None:
                yield from self._split(folder, split, genders)

    def _places(self, split: str) -> tuple[str, ...]:
        return (split, f"data/{split}")

    def _split(self, folder: Path, split: str, genders: dict[str, str]) -> Iterator[Entry | Rejected]:
        people = [name for name in list_dir(folder) if (folder / name).is_dir()]
        if not any(PERSON.fullmatch(name) for name in people):
            raise UserError(
                f"vggface2: no folders such as n000002 in {folder} (found: {describe_dir(folder)}). "
                "Fix: pass the corpus folder."
            )
        boxes = self._blocks(f"loose_bb_{split}.csv", "NAME_ID,X,Y,W,H")
        marks = self._blocks(f"loose_landmark_{split}.csv", "NAME_ID,P1X,P1Y,P2X,P2Y,P3X,P3Y,P4X,P4Y,P5X,P5Y")
        there = set(people)
        for person in sorted(there | boxes.runs.keys() | marks.runs.keys()):
            own = list_dir(folder / person) if person in there else []
            files = {Path(name).stem: name for name in own if Path(name).suffix.lower() in EXTENSIONS}
            edges, landmarks = boxes.rows(person), marks.rows(person)
            extras = {"gender": genders[person]} if person in genders else {}
            for stem in sorted(files.keys() | edges.keys() | landmarks.keys()):
                source = f"{split}/{person}/{files.get(stem, stem + '.jpg')}"
                if safe_relative_path(person) is None or safe_relative_path(stem) is None:
                    yield Rejected(source, "outside")
                elif stem not in files:
                    yield Rejected(source, "missing")
                else:
                    read = folder.absolute() / person / files[stem]
                    described = _describe(edges.get(stem), landmarks.get(stem))
                    if isinstance(described, str):
                        yield Rejected(source, "bad_row", described)
                    else:
                        yield Entry(source, source, read, None, split, person, *described, extras)

    def _blocks(self, name: str, header: str) -> RowRuns:
        """Locate the lines of each person in one pass over a list."""
        file = first_existing(self.root, *(f"{folder}/{name}" for folder in LIST_FOLDERS))
        runs: dict[str, list[tuple[int, int, int]]] = {}
        if file is None:
            return RowRuns(None, runs)
        with open_regular(file, "rb") as data:
            first = data.readline()
            if first.decode(errors="replace").replace('"', "").replace(" ", "").strip("\ufeff\r\n") != header:
                raise UserError(
                    f"vggface2: the first line of {file} is not {header}. Fix: use the original, unmodified file."
                )
            before, offset = None, len(first)
            for number, line in enumerate(data, 2):
                person = line.lstrip(b'" ').partition(b"/")[0].decode(errors="surrogateescape")
                if line.strip():
                    if person == before:
                        start, at, count = runs[person][-1]
                        runs[person][-1] = (start, at, count + 1)
                    else:
                        runs.setdefault(person, []).append((offset, number, 1))
                    before = person
                else:
                    before = None
                offset += len(line)
        return RowRuns(file, runs)

    def _genders(self) -> dict[str, str]:
        """Read person -> f or m. Names contain commas in quotes, and spaces follow the commas."""
        file = first_existing(self.root, *(f"{folder}/identity_meta.csv" for folder in LIST_FOLDERS))
        if file is None:
            return {}
        try:
            with open_regular(file, **TEXT, newline="") as text:
                rows = csv.reader(split_lines(text, MAX_LINE), skipinitialspace=True)
                return {row[0]: row[-1].strip() for row in rows if len(row) > 1 and row[-1].strip() in ("f", "m")}
        except csv.Error as error:
            raise UserError(
                f"vggface2: {file} is not valid CSV ({error}). Fix: use the original, unmodified file."
            ) from None


Described = tuple[tuple[float, float, float, float] | None, tuple[tuple[float, float], ...] | None]


def _describe(edges: Row | None, landmarks: Row | None) -> Described | str:
    """Parse box and landmarks from their lines, or return the problem."""
    values = []
    for row, count in ((edges, 4), (landmarks, 10)):
        values.append(None if row is None else numbers(row[1], count, ","))
        if row is not None and values[-1] is None:
            return f"line {row[0]}: {row[1][:60]!r} is not {count} numbers"
    return (box(*values[0]) if values[0] else None, points(values[1]) if values[1] else None)


def _cut(line: bytes) -> tuple[str, str]:
    """Split b'"n000002/0001_01",161,140,224,324' into ('0001_01', '161,140,224,324')."""
    name, _, rest = line.decode(errors="surrogateescape").strip().partition(",")
    return name.strip('" ').partition("/")[2], rest


CORPUS = CorpusSpec(
    name="vggface2",
    title="VGGFace2: 3.31 million photos of 9,131 people; no expressions.",
    source=VGGFace2,
    terms="VGGFace2: research only; withdrawn by its authors, rights of the photos with their owners",
    published_counts=lambda source: {
        split: {"": count} for split, count in EXPECTED.items() if first_existing(source.root, *source._places(split))
    },
)
