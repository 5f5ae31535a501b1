"""AffectNet in its three releases, recognized by their files; one numbering, 0 neutral to 10 no-face.

csv-2017: lists of full photos with boxes and landmarks; npy-2021: faces of 224 px with one small file per value;
json-2024 (AffectNet+): faces with soft labels and their difficulty. Third-party versions (Kaggle) number the classes by
name: read them as class folders with the command `folder`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from shards.entry import Entry, Rejected
from shards.errors import UserError
from shards.sources.corpora.affectnet.arrays import read_arrays
from shards.sources.corpora.affectnet.common import LABELS, first_name
from shards.sources.corpora.affectnet.lists import AUTOMATIC, TRAINING, VALIDATION, read_lists
from shards.sources.corpora.affectnet.plus import PARTS, read_plus
from shards.sources.corpus_files import describe_dir, first_existing
from shards.sources.registry import CorpusSpec, check_options, option

CSV, NPY, JSON = "csv-2017", "npy-2021", "json-2024"

# Number of usable faces. The list of 2017 has one more happy face that no copy can decode: 287,651 in eight classes.
TRAIN = (74874, 134415, 25459, 14090, 6378, 3803, 24882, 3750, 33088, 11645, 82415)


@dataclass(frozen=True)
class AffectNet:
    """Splits train and val, optionally automatic. Label: expression name.

    Extras: valence and arousal in [-1, 1] if known; for AffectNet+ also the soft label and its other data.
    """

    root: Path
    classes: int = option(
        8, "number of classes: 8, 7 (without contempt) or 11 (with none, uncertain and no-face)", (8, 7, 11)
    )
    automatic: bool = option(False, "also read the automatically labeled images, as split automatic")

    def __post_init__(self) -> None:
        """Raise UserError for another number of classes."""
        check_options(self)

    @property
    def labels(self) -> tuple[str, ...]:
        """Label names in use; images with other labels are rejected as unknown_label."""
        return LABELS[: self.classes]

    @property
    def release(self) -> str:
        """Release found in the root.

        Raises:
            UserError: If the root contains no release or several releases.
        """
        if not self.root.is_dir():
            raise UserError(f"affectnet={self.root}: not a folder. Fix: pass the corpus folder.")
        annotations = {first_name(self.root / split / "annotations")[-5:] for split in ("train_set", "val_set")}
        found = {
            CSV: first_existing(self.root, *TRAINING, *VALIDATION)
            or (self.automatic and first_existing(self.root, *AUTOMATIC)),
            NPY: any(name.endswith(".npy") for name in annotations),
            JSON: first_existing(self.root, *(folder for folder, _ in PARTS)),
        }
        there = [release for release, sign in found.items() if sign]
        if len(there) == 1:
            return there[0]
        if there:
            raise UserError(
                f"affectnet: {self.root} contains several releases ({', '.join(there)}). "
                "Fix: move them to separate folders."
            )
        if ".json" in annotations:
            raise UserError(f"affectnet: {self.root} is a part of AffectNet+. Fix: pass its parent folder.")
        raise UserError(
            f"affectnet: no release of AffectNet in {self.root} (searched: training.csv, train_set/annotations/*.npy, "
            f"human_annotated; found: {describe_dir(self.root)}). Fix: pass the corpus folder."
        )

    def __iter__(self) -> Iterator[Entry | Rejected]:
        """Yield all entries that the release lists, split by split.

        Raises:
            UserError: If the folder is not AffectNet, a list has other columns, or images are missing.
        """
        read = {CSV: read_lists, NPY: read_arrays, JSON: read_plus}[self.release]
        yield from read(self.root, self.automatic)


def expected(source: AffectNet) -> dict[str, dict[str, int]]:
    """Return the published counts; for the automatic labels, no counts are published."""
    train, val = list(TRAIN), [500] * len(LABELS)
    release = source.release
    if release == NPY:  # this release lacks none, uncertain, no-face and one contempt face
        train, val = train[:8], val[:8]
        val[7] = 499
    counts = {"train": dict(zip(LABELS, train, strict=False)), "val": dict(zip(LABELS, val, strict=False))}
    names = source.labels
    return {split: {name: found[name] for name in names if name in found} for split, found in counts.items()}


CORPUS = CorpusSpec(
    name="affectnet",
    title="AffectNet (CSV lists of 2017, npy of 2021, or AffectNet+ of 2024), 8, 7 or 11 classes.",
    source=AffectNet,
    labels=LABELS,
    terms="non-commercial research only, by those to whom its authors gave it; no copies to others",
    published_counts=expected,
    needs_crop=lambda source: source.release == CSV,
)
