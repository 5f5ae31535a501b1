"""SFEW 2.0: aligned faces from films (PNG, 143 x 181), in class folders that the archives nest in several ways."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from shards.entry import Entry, Rejected
from shards.sources.corpus_files import first_existing, list_dir, require_path
from shards.sources.generic.folder import EXTENSIONS, walk
from shards.sources.registry import CorpusSpec

LABELS = ("angry", "disgust", "fear", "happy", "neutral", "sad", "surprise")
SPLITS = {
    "train": ("Train_Aligned_Faces", "Train/Train_Aligned_Faces"),
    "val": ("Val_Aligned_Faces_new", "Val/Val_Aligned_Faces_new", "Val_Aligned_Faces", "Val/Val_Aligned_Faces"),
    "test": ("Test_Aligned_Faces", "Test/Test_Aligned_Faces"),
}
FRAME = re.compile(r"(.+)_\d{4,}_\d{4,}$")  # film, time, number of the face
MOST_NESTED = 3


@dataclass(frozen=True)
class SFEW:
    """Splits train and val; test, if present, has no labels. Group: the film, the prefix of the names."""

    root: Path

    def __iter__(self) -> Iterator[Entry | Rejected]:
        """Yield faces by split and path.

        Raises:
            UserError: If the root contains neither the training nor the validation faces.
        """
        require_path("sfew", self.root, "folder of aligned faces", *SPLITS["train"], *SPLITS["val"])
        for split, places in SPLITS.items():
            folder = first_existing(self.root, *places)
            if folder is None:
                continue
            base = _descend(folder)
            prefix = base.relative_to(self.root).as_posix()
            for relative in walk(base):
                path = PurePosixPath(relative)
                if path.suffix.lower() not in EXTENSIONS:
                    continue
                film = FRAME.match(path.stem)
                yield Entry(
                    key=f"{split}/{relative}",
                    source=f"{prefix}/{relative}",
                    read=base / relative,
                    label=path.parts[0] if len(path.parts) > 1 and split != "test" else None,
                    split=split,
                    group=film.group(1) if film else None,
                )


def _descend(folder: Path) -> Path:
    """Return the folder of the classes: archives nest a folder of the same name, or of the name without _new."""
    for _ in range(MOST_NESTED):
        below = list_dir(folder)
        inner = next((name for name in below if "_aligned_faces" in name.lower() and (folder / name).is_dir()), None)
        if inner is None:
            break
        folder = folder / inner
    return folder


CORPUS = CorpusSpec(
    name="sfew",
    title="SFEW 2.0, the aligned faces of its training and validation films.",
    source=SFEW,
    labels=LABELS,
    terms="academic research only, by those who signed its agreement; no copies to others",
    published_counts=lambda source: {"train": {"": 891}, "val": {"": 431}},
)
