"""AffectNet in each of its three releases, told apart by their files; one numbering, 0 neutral to 10 no-face.

csv-2017: lists of the full photos with boxes and landmarks; npy-2021: faces of 224 px with one small file a value;
json-2024 (AffectNet+): faces with soft labels and how hard they are. Versions that others made of it (Kaggle) number
the classes by name: read those as class folders, with the command `folder`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from shards.entry import Entry, Rejected
from shards.errors import UserError
from shards.sources.affectnet.arrays import read_arrays
from shards.sources.affectnet.common import LABELS, first_name
from shards.sources.affectnet.lists import AUTOMATIC, TRAINING, VALIDATION, read_lists
from shards.sources.affectnet.plus import PARTS, read_plus
from shards.sources.known import Known, check_options, option
from shards.sources.layout import content, find

CSV, NPY, JSON = "csv-2017", "npy-2021", "json-2024"

# What can be used of it. The list of 2017 has one more happy face, which no copy can decode: 287,651 of eight classes.
TRAIN = (74874, 134415, 25459, 14090, 6378, 3803, 24882, 3750, 33088, 11645, 82415)


@dataclass(frozen=True)
class AffectNet:
    """Splits train and val, and automatic if asked for. Label: the expression, by name.

    Extras: valence, arousal in [-1, 1] where they are known; of AffectNet+ also the soft label and its other data.
    """

    root: Path
    classes: int = option(8, "8 expressions, 7 without contempt, or 11 with none, uncertain and no-face.", (8, 7, 11))
    automatic: bool = option(False, "Also the images that no person has labelled, as split automatic.")

    def __post_init__(self) -> None:
        """Raises UserError for other numbers of classes."""
        check_options(self)

    @property
    def labels(self) -> tuple[str, ...]:
        """The names that count; images of the others are rejected as unknown_label."""
        return LABELS[: self.classes]

    @property
    def release(self) -> str:
        """Which release lies in the root.

        Raises:
            UserError: none of them, or more than one.
        """
        if not self.root.is_dir():
            raise UserError(f"affectnet: {self.root} is not a folder")
        annotations = {first_name(self.root / split / "annotations")[-5:] for split in ("train_set", "val_set")}
        found = {
            CSV: find(self.root, *TRAINING, *VALIDATION) or (self.automatic and find(self.root, *AUTOMATIC)),
            NPY: any(name.endswith(".npy") for name in annotations),
            JSON: find(self.root, *(folder for folder, _ in PARTS)),
        }
        there = [release for release, sign in found.items() if sign]
        if len(there) == 1:
            return there[0]
        if there:
            raise UserError(f"affectnet: {self.root} holds more than one release ({', '.join(there)}); part them")
        if ".json" in annotations:
            raise UserError(f"affectnet: {self.root} is a part of AffectNet+; give the folder that holds it")
        raise UserError(
            f"affectnet: no release of AffectNet in {self.root} (looked for training.csv, train_set/annotations/*.npy "
            f"or human_annotated; found: {content(self.root)})"
        )

    def __iter__(self) -> Iterator[Entry | Rejected]:
        """Everything that the release lists, split by split.

        Raises:
            UserError: not AffectNet, a list with other columns, no images where they should be.
        """
        read = {CSV: read_lists, NPY: read_arrays, JSON: read_plus}[self.release]
        yield from read(self.root, self.automatic)


def expected(source: AffectNet) -> dict[str, dict[str, int]]:
    """The published counts; of the automatic labels there are none."""
    train, val = list(TRAIN), [500] * len(LABELS)
    release = source.release
    if release == NPY:  # without none, uncertain and no-face; one face of contempt is not in it
        train, val = train[:8], val[:8]
        val[7] = 499
    counts = {"train": dict(zip(LABELS, train, strict=False)), "val": dict(zip(LABELS, val, strict=False))}
    names = source.labels
    return {split: {name: found[name] for name in names if name in found} for split, found in counts.items()}


CORPUS = Known(
    name="affectnet",
    title="AffectNet (CSV lists of 2017, npy of 2021, or AffectNet+ of 2024), 8, 7 or 11 classes.",
    source=AffectNet,
    labels=LABELS,
    terms="non-commercial research only, by those to whom its authors gave it; no copies to others",
    expected=expected,
    photos=lambda source: source.release == CSV,
)
