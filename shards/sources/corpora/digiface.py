"""DigiFace-1M: 1.22 million synthetic faces of 110,000 subjects; Bae et al., WACV 2023.

`<subject>/<number>.png`, optionally below the names of the archives (`subjects_0-1999_72_imgs` ...).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from shards.entry import Entry, Rejected
from shards.errors import UserError
from shards.sources.corpus_files import describe_dir, list_dir
from shards.sources.generic.folder import EXTENSIONS, walk
from shards.sources.registry import CorpusSpec

ARCHIVE = re.compile(r"subjects_(\d+)-(\d+)_(\d+)_imgs")
FIRST_PART, SECOND_PART = 720_000, 499_995  # 10,000 subjects x 72 images; 99,999 subjects (from number 100,000) x 5


@dataclass(frozen=True)
class DigiFace:
    """Source: all images below the subject folders."""

    root: Path

    def __iter__(self) -> Iterator[Entry | Rejected]:
        """Yield images with group = subject. There are no labels or splits.

        Raises:
            UserError: If the folder or its subject folders are missing.
        """
        if not self.root.is_dir():
            raise UserError(f"digiface={self.root}: not a folder. Fix: pass the corpus folder.")
        found = False
        for relative in walk(self.root):
            file = Path(relative)
            if file.suffix.lower() not in EXTENSIONS or file.stem.endswith("_seg"):
                continue
            if file.parent.name.isdigit():
                found = True
                yield Entry(relative, relative, self.root.absolute() / relative, group=file.parent.name)
            else:
                yield Rejected(relative, "bad_row", "not in the folder of a subject, such as 0/0.png")
        if not found:
            raise UserError(
                f"digiface: no <subject>/<number>.png such as 0/0.png in {self.root} (found: "
                f"{describe_dir(self.root)}). Fix: pass the folder that contains the subjects."
            )


def expected(source: DigiFace) -> dict[str, dict[str, int]]:
    """Return the number of images of the archive folders present; without them, of the parts present."""
    root = source.root
    found = [name for name in (list_dir(root) if root.is_dir() else ()) if (root / name).is_dir()]
    archives = [list(map(int, match.groups())) for name in found if (match := ARCHIVE.fullmatch(name))]
    if archives:
        return {"train": {"": sum((last - first + 1) * images for first, last, images in archives)}}
    subjects = [int(name) for name in found if name.isdigit()]
    count = FIRST_PART * any(number < 100_000 for number in subjects)
    count += SECOND_PART * any(number >= 100_000 for number in subjects)
    return {"train": {"": count}} if count else {}


CORPUS = CorpusSpec(
    name="digiface",
    title="DigiFace-1M: 1.22 million synthetic faces of 110,000 subjects; no expressions.",
    source=DigiFace,
    terms="DigiFace-1M: non-commercial research only; github.com/microsoft/DigiFace1M",
    published_counts=expected,
)
