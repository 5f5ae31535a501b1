"""Labeled Faces in the Wild: 13,233 photos of 5,749 people; Huang et al., 2007.

`Name/Name_0001.jpg` below `lfw`, `lfw_funneled` or `lfw-deepfunneled`; archives may nest that folder twice.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from shards.entry import Entry, Rejected
from shards.errors import UserError
from shards.sources.corpus_files import describe_dir, list_dir
from shards.sources.generic.folder import EXTENSIONS, walk
from shards.sources.registry import CorpusSpec

RELEASES = ("lfw", "lfw_funneled", "lfw-funneled", "lfw-deepfunneled", "lfw_deepfunneled")


@dataclass(frozen=True)
class LFW:
    """Source: all photos of one release."""

    root: Path

    def __iter__(self) -> Iterator[Entry | Rejected]:
        """Yield photos with group = person. There are no labels or splits; LFW's pair lists are for face recognition.

        Raises:
            UserError: If there are no person folders, or there is more than one release.
        """
        folder = self._folder()
        for relative in walk(folder):
            person, _, name = relative.rpartition("/")
            if person and Path(name).suffix.lower() in EXTENSIONS:
                yield Entry(relative, relative, folder.absolute() / relative, group=person)

    @property
    def release(self) -> str:
        """Name of the release folder."""
        return self._folder().name

    def _folder(self) -> Path:
        if not self.root.is_dir():
            raise UserError(f"lfw={self.root}: not a folder. Fix: pass the corpus folder.")
        if _has_people(self.root):
            return self.root
        found = [
            folder
            for name in RELEASES
            for folder in (self.root / name, self.root / name / name)
            if folder.is_dir() and _has_people(folder)
        ]
        if len(found) > 1:
            both = ", ".join(str(folder.relative_to(self.root)) for folder in found)
            raise UserError(
                f"lfw: {self.root} contains the same photos more than once ({both}). Fix: pass one of these folders."
            )
        if not found:
            raise UserError(
                f"lfw: no person folders in {self.root} (searched: Name/Name_0001.jpg, also below "
                f"{', '.join(RELEASES)}; found: {describe_dir(self.root)}). Fix: pass the corpus folder."
            )
        return found[0]


def _has_people(folder: Path) -> bool:
    return any((folder / name / f"{name}_0001.jpg").is_file() for name in list_dir(folder))


CORPUS = CorpusSpec(
    name="lfw",
    title="LFW: 13,233 photos of 5,749 people; no expressions.",
    source=LFW,
    terms="LFW: research on face recognition; photos from news agencies, rights with their owners; "
    "vis-www.cs.umass.edu/lfw",
    published_counts=lambda source: {"train": {"": 13_233}},
)
