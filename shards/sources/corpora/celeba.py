"""CelebA: 202,599 photos of 10,177 people, 178 x 218 pixels if aligned; Liu et al., ICCV 2015.

`img_align_celeba/000001.jpg` (or `img_align_celeba_png`); the lists are beside it or in `Anno/` and `Eval/`: .txt from
the authors, .csv from Kaggle. `list_bbox_celeba` and `list_landmarks_celeba` only refer to the unaligned `img_celeba`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from shards.entry import Entry, Rejected
from shards.errors import UserError
from shards.sources.corpus_files import (
    box,
    first_existing,
    lines,
    list_dir,
    numbers,
    points,
    require_path,
    safe_relative_path,
)
from shards.sources.generic.folder import EXTENSIONS
from shards.sources.registry import CorpusSpec, option

SPLITS = {"0": "train", "1": "val", "2": "test"}
EXPECTED = {"train": {"": 162_770}, "val": {"": 19_867}, "test": {"": 19_962}}
LIST_FOLDERS = ("", "Eval/", "Anno/", "annotations/")
ALIGNED = ("img_align_celeba", "img_align_celeba_png")
UNALIGNED = ("img_celeba",)

Row = tuple[int, str]  # line number, text after the name


@dataclass(frozen=True)
class Lists:
    """Metadata by file name. Lines are kept raw and parsed on access: 100 MB in total."""

    identity: dict[str, Row]
    attributes: dict[str, Row]
    landmarks: dict[str, Row]
    boxes: dict[str, Row]
    attribute_names: tuple[str, ...]


@dataclass(frozen=True)
class CelebA:
    """Source: the photos in `list_eval_partition`, or all photos without that list."""

    root: Path
    unaligned: bool = option(False, "use the photos of img_celeba, with boxes, instead of the aligned photos")

    def __iter__(self) -> Iterator[Entry | Rejected]:
        """Yield photos with group = person; extras: the attributes present. There are no labels.

        Raises:
            UserError: If there is no image folder, or a list lacks its header.
        """
        folders = UNALIGNED if self.unaligned else ALIGNED
        folder = require_path(
            "celeba", self.root, "images", *(f"{place}{name}" for name in folders for place in ("", "Img/"))
        )
        folder = first_existing(folder, folder.name) or folder  # Kaggle's archive nests it twice
        lists = self._lists()
        splits = self._list("list_eval_partition")
        if splits is None:
            for name in list_dir(folder):
                if Path(name).suffix.lower() in EXTENSIONS:
                    yield self._entry(folder, lists, name, None)
            return
        for number, line in lines(splits):
            name, _, split = line.replace(",", " ").partition(" ")
            if name != "image_id":
                yield self._row(folder, lists, name, split.strip(), f"{splits.name} line {number}")

    @property
    def release(self) -> str:
        """Kind of photos that the source reads."""
        return "unaligned" if self.unaligned else "aligned"

    def notes(self) -> list[str]:
        """Return notes about missing files."""
        absent = self._list("list_eval_partition") is None
        return [f"{self.root} has no list_eval_partition: every photo is in split train"] if absent else []

    def _row(self, folder: Path, lists: Lists, name: str, split: str, place: str) -> Entry | Rejected:
        if split not in SPLITS:
            return Rejected(place, "bad_row", f"split {split!r} is not 0, 1 or 2")
        return self._entry(folder, lists, name, SPLITS[split])

    def _entry(self, folder: Path, lists: Lists, name: str, split: str | None) -> Entry | Rejected:
        source = safe_relative_path(name)
        if source is None:
            return Rejected(name, "outside")
        try:
            identity = _numbers(lists.identity, name, 1)
            landmarks = _numbers(lists.landmarks, name, 10)
            edges = _numbers(lists.boxes, name, 4)
            attributes = _numbers(lists.attributes, name, len(lists.attribute_names))
        except ValueError as error:
            return Rejected(source, "bad_row", str(error))
        file = Path(source).with_suffix(".png") if "png" in folder.name else Path(source)
        present = zip(lists.attribute_names, attributes or (), strict=False)
        return Entry(
            key=source,
            source=f"{folder.name}/{file}",
            read=folder.absolute() / file,
            split=split,
            group=f"{identity[0]:.0f}" if identity else None,
            box=box(*edges) if edges else None,
            landmarks=points(landmarks) if landmarks else None,
            extras={"attributes": [name for name, value in present if value > 0]} if attributes else {},
        )

    def _lists(self) -> Lists:
        landmarks = "list_landmarks_celeba" if self.unaligned else "list_landmarks_align_celeba"
        header, attributes = _rows(self._list("list_attr_celeba"), header=True)
        return Lists(
            identity=_rows(self._list("identity_CelebA"))[1],
            attributes=attributes,
            landmarks=_rows(self._list(landmarks), header=True)[1],
            boxes=_rows(self._list("list_bbox_celeba"), header=True)[1] if self.unaligned else {},
            attribute_names=header,
        )

    def _list(self, name: str) -> Path | None:
        return first_existing(
            self.root, *(f"{folder}{name}{suffix}" for folder in LIST_FOLDERS for suffix in (".txt", ".csv"))
        )


def _rows(file: Path | None, header: bool = False) -> tuple[tuple[str, ...], dict[str, Row]]:
    """Return the column names of a list's header, and its rows by image.

    The first line may be the number of rows; columns are separated by spaces or a comma.
    """
    found: dict[str, Row] = {}
    columns: tuple[str, ...] = ()
    if file is None:
        return columns, found
    for number, line in lines(file):
        name, _, rest = line.replace(",", " ").partition(" ")
        if number == 1 and not rest and name.isdigit():
            continue
        if header and not columns:
            if numbers(rest, len(rest.split())) is not None:
                raise UserError(
                    f"celeba: {file} has no header with column names. Fix: use the original, unmodified file."
                )
            columns = (*(() if name == "image_id" else (name,)), *rest.split())
        else:
            found[name] = (number, rest)
    return columns, found


def _numbers(rows: dict[str, Row], name: str, count: int) -> tuple[float, ...] | None:
    """Return the numbers of one image, or None without a row. Raises ValueError for a corrupt row."""
    if name not in rows:
        return None
    number, text = rows[name]
    values = numbers(text, count)
    if values is None:
        raise ValueError(f"line {number}: {text[:60]!r} is not {count} numbers")
    return values


def expected(source: CelebA) -> dict[str, dict[str, int]]:
    """Return the published counts."""
    return EXPECTED if source._list("list_eval_partition") else {"train": {"": 202_599}}


CORPUS = CorpusSpec(
    name="celeba",
    title="CelebA: 202,599 photos of celebrities, aligned; identities, no expressions.",
    source=CelebA,
    terms="CelebA: non-commercial research only; no redistribution of the images; mmlab.ie.cuhk.edu.hk/projects/CelebA",
    published_counts=expected,
    needs_crop=lambda source: source.unaligned,
)
