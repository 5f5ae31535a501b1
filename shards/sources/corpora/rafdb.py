"""RAF-DB, basic expressions: as its authors deliver it, or as a folder DATASET with numbered classes.

Labels are 1 surprise, 2 fear, 3 disgust, 4 happiness, 5 sadness, 6 anger, 7 neutral. The list of compound expressions
has the same name, but its numbers have other meanings. It is recognized by numbers above 7 and raises an error.
"""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from shards.entry import Entry, Rejected
from shards.errors import UserError
from shards.io.atomic import open_regular, read_text_if_exists
from shards.io.jsonl import MAX_LINE, split_lines
from shards.sources.corpus_files import (
    TEXT,
    box,
    first_existing,
    lines,
    list_dir,
    numbers,
    points,
    require_path,
    safe_relative_path,
)
from shards.sources.registry import CorpusSpec, check_options, option

LABELS = ("surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral")
COUNTS = {
    "train": (1290, 281, 717, 4772, 1982, 705, 2524),
    "test": (329, 74, 160, 1185, 478, 162, 680),
}
SPELLINGS = ("list_patition_label.txt", "list_partition_label.txt")  # the first is the authors' spelling
LISTS = tuple(f"{base}EmoLabel/{name}" for base in ("", "basic/") for name in SPELLINGS)
FOLDERS = ("DATASET/train", "train")
GENDERS = ("male", "female", "unsure")
RACES = ("caucasian", "african-american", "asian")
AGES = ("0-3", "4-19", "20-39", "40-69", "70+")


@dataclass(frozen=True)
class RAFDB:
    """Splits train and test. Extras: gender, race and age group if the manual annotations exist.

    Five landmarks and the box refer to the original photos, so only those have them.
    """

    root: Path
    images: str = option(
        "aligned", "images to use: aligned (faces of 100 px) or original (whole photos)", ("aligned", "original")
    )

    def __post_init__(self) -> None:
        """Raise UserError for another kind of images."""
        check_options(self)

    @property
    def release(self) -> str:
        """Official release, or class folders."""
        require_path("rafdb", self.root, "list of labels", *LISTS, *FOLDERS)
        return "official" if first_existing(self.root, *LISTS) else "folders"

    def __iter__(self) -> Iterator[Entry | Rejected]:
        """Yield faces in the order of the list, or folder by folder.

        Raises:
            UserError: If the folder is not RAF-DB or has the compound expressions, or images are missing.
        """
        if self.release == "official":
            yield from self._listed(require_path("rafdb", self.root, "list of labels", *LISTS))
        elif self.images == "original":
            raise UserError(
                f"rafdb: {self.root} only has class folders of aligned faces. Fix: remove --images original."
            )
        else:
            yield from _folders(self.root, require_path("rafdb", self.root, "class folders", *FOLDERS).parent)

    def _listed(self, file: Path) -> Iterator[Entry | Rejected]:
        rows = list(lines(file))
        beyond = next((row for row in rows if row[1].split()[-1] in ("8", "9", "10", "11")), None)
        if beyond:
            raise UserError(
                f"rafdb: {file} line {beyond[0]} has a compound expression. "
                "Fix: pass the folder of the basic expressions."
            )
        base = file.parent.parent
        require_path("rafdb", base, f"folder of {self.images} images", f"Image/{self.images}")
        for number, line in rows:
            yield self._entry(base, f"{file.name} line {number}", line)

    def _entry(self, base: Path, place: str, line: str) -> Entry | Rejected:
        name, _, label = line.replace("\t", " ").rpartition(" ")
        if not name:
            return Rejected(place, "bad_row", repr(line))
        path = safe_relative_path(name.strip())
        if path is None:
            return Rejected(place, "outside", repr(line))
        split = path.split("_")[0]
        if label not in map(str, range(1, 8)) or split not in COUNTS:
            return Rejected(place, "bad_row", repr(line))
        stem, ending = PurePosixPath(path).with_suffix(""), PurePosixPath(path).suffix
        file = base / "Image" / self.images / (path if self.images == "original" else f"{stem}_aligned{ending}")
        marks, person = _attributes(base / "Annotation" / "manual" / f"{stem}_manu_attri.txt")
        original = self.images == "original"
        return Entry(
            key=str(stem),
            source=file.relative_to(self.root).as_posix(),
            read=file,
            label=LABELS[int(label) - 1],
            split=split,
            box=_box(base / "Annotation" / "boundingbox" / f"{stem}_boundingbox.txt") if original else None,
            landmarks=marks if original else None,
            extras=person,
        )


def _folders(root: Path, base: Path) -> Iterator[Entry | Rejected]:
    """Yield DATASET/{train,test}/<1-7>/: the folder is the label; the list in or beside DATASET must agree."""
    prefix = base.relative_to(root).as_posix()
    for split in COUNTS:
        name = f"{split}_labels.csv"
        listed = _labels(first_existing(base, name) or _beside(root, base) / name)
        for number, label in enumerate(LABELS, 1):
            folder = base / split / str(number)
            for name in list_dir(folder) if folder.is_dir() else ():
                source = f"{prefix}/{split}/{number}/{name}".removeprefix("./")
                said = listed.pop(name, str(number))
                if said != str(number):
                    yield Rejected(source, "conflicting_label", f"{split}_labels.csv says {said!r}")
                    continue
                yield Entry(PurePosixPath(name).stem, source, folder / name, label, split)
        for name, said in listed.items():
            yield Rejected(f"{prefix}/{split}/{said}/{name}".removeprefix("./"), "missing")


def _beside(root: Path, base: Path) -> Path:
    """Return the folder of Kaggle's lists: the parent of a folder DATASET, otherwise the folder itself.

    Beside a folder of another name, there may be unrelated lists.
    """
    if base != root:
        return root
    full = root.resolve()
    return full.parent if full.name == "DATASET" else root


def _labels(file: Path) -> dict[str, str]:
    """Read a list `image,label`: name -> number as text, or {} without a list."""
    if not file.is_file():
        return {}
    try:
        with open_regular(file, newline="", **TEXT) as text:
            rows = csv.DictReader(split_lines(text, MAX_LINE))
            if not {"image", "label"} <= set(rows.fieldnames or ()):
                raise UserError(
                    f"rafdb: {file} lacks the columns image, label (columns: {rows.fieldnames}). "
                    "Fix: use the original, unmodified file."
                )
            return {(row["image"] or "").strip(): (row["label"] or "").strip() for row in rows}
    except csv.Error as error:
        raise UserError(f"rafdb: {file} is not valid CSV ({error}). Fix: use the original, unmodified file.") from None


def _attributes(file: Path) -> tuple[tuple[tuple[float, float], ...] | None, dict[str, str]]:
    """Read five landmarks and gender, race and age group by name: five lines x y, then three numbers."""
    text = read_text_if_exists(file)
    if text is None:
        return None, {}
    values = numbers(text, 13)
    if values is None:
        return None, {"attributes": "corrupt"}
    kinds = zip(("gender", "race", "age"), (GENDERS, RACES, AGES), map(int, values[10:]), strict=True)
    person = {kind: known[number] if 0 <= number < len(known) else str(number) for kind, known, number in kinds}
    return points(values[:10]), person


def _box(file: Path) -> tuple[float, float, float, float] | None:
    values = numbers(read_text_if_exists(file) or "", 4)
    return box(values[0], values[1], values[2] - values[0], values[3] - values[1]) if values else None


CORPUS = CorpusSpec(
    name="rafdb",
    title="RAF-DB, the seven basic expressions (the authors' folders, or DATASET with numbered classes).",
    source=RAFDB,
    labels=LABELS,
    first_label_id=1,
    terms="non-commercial research only; no copies to others; its images are not to be published",
    published_counts=lambda source: {split: dict(zip(LABELS, counts, strict=True)) for split, counts in COUNTS.items()},
    needs_crop=lambda source: source.images == "original",
)
