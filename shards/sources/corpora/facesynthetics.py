"""Face Synthetics: 100,000 synthetic faces, 512 x 512, with 70 landmarks; Wood et al., ICCV 2021.

`000000.png`, its segmentation `000000_seg.png`, its landmarks `000000_ldmks.txt` (lines of x and y), below
`dataset_100000` (all), `dataset_1000` or `dataset_100` (samples), or in the folder itself.
"""

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from shards.entry import Entry, Rejected
from shards.errors import UserError
from shards.sources.corpus_files import describe_dir, first_existing, lines, list_dir, numbers
from shards.sources.registry import CorpusSpec

RELEASES = {"dataset_100000": 100_000, "dataset_1000": 1000, "dataset_100": 100}
FILE = re.compile(r"(\d{6})(\.png|_ldmks\.txt)")
LANDMARKS = 70


@dataclass(frozen=True)
class FaceSynthetics:
    """Source: all images, including those known only from their other files."""

    root: Path

    def __iter__(self) -> Iterator[Entry | Rejected]:
        """Yield faces with landmarks: the 68 of 300-W, projected from 3D, and the pupils; no labels or splits.

        Raises:
            UserError: If the folder or its images are missing.
        """
        folder = self._folder()
        kinds: defaultdict[str, set[str]] = defaultdict(set)
        for name in list_dir(folder):
            match = FILE.fullmatch(name)
            if match:
                kinds[match[1]].add(match[2])
        if not any(".png" in found for found in kinds.values()):
            raise UserError(
                f"facesynthetics: no images such as 000000.png in {folder} (found: {describe_dir(folder)}). "
                "Fix: pass the corpus folder."
            )
        for number, found in kinds.items():
            yield self._entry(folder.absolute(), number, found)

    @property
    def release(self) -> str:
        """Name of the folder."""
        return self._folder().name

    def _folder(self) -> Path:
        if not self.root.is_dir():
            raise UserError(f"facesynthetics={self.root}: not a folder. Fix: pass the corpus folder.")
        return first_existing(self.root, *RELEASES) or self.root

    def _entry(self, folder: Path, number: str, found: set[str]) -> Entry | Rejected:
        source = f"{number}.png"
        if ".png" not in found:
            return Rejected(source, "missing")
        landmarks = None
        if "_ldmks.txt" in found:
            rows = [numbers(line, 2) for _, line in lines(folder / f"{number}_ldmks.txt")]
            landmarks = tuple((row[0], row[1]) for row in rows if row is not None)
            if len(rows) != LANDMARKS or len(landmarks) != LANDMARKS:
                return Rejected(source, "bad_row", f"{number}_ldmks.txt does not contain {LANDMARKS} points")
        return Entry(number, source, folder / source, landmarks=landmarks)


def expected(source: FaceSynthetics) -> dict[str, dict[str, int]]:
    """Return the number of images that the folder's name implies."""
    count = RELEASES.get(source.release)
    return {"train": {"": count}} if count else {}


CORPUS = CorpusSpec(
    name="facesynthetics",
    title="Face Synthetics: 100,000 synthetic faces with 70 landmarks; no expressions.",
    source=FaceSynthetics,
    terms="Face Synthetics: non-commercial research only; github.com/microsoft/FaceSynthetics",
    published_counts=expected,
)
