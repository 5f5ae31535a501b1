"""Source of FFHQ: 70,000 faces from Flickr, aligned, 1024 x 1024 or as thumbnails of 128 x 128; Karras et al., CVPR
2019.

`images1024x1024/00000/00000.png`, `thumbnails128x128/00000/00000.png` (flat in some copies); `ffhq-dataset-v2.json`
lists for each image the author, the license (which differs), 68 landmarks in pixels of the large image, and the split.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from shards.entry import Entry, Rejected
from shards.errors import UserError
from shards.io.atomic import open_regular
from shards.sources.corpus_files import TEXT, describe_dir, first_existing, require_path, safe_relative_path
from shards.sources.generic.folder import EXTENSIONS, walk
from shards.sources.registry import CorpusSpec, option

LARGE, SMALL = "images1024x1024", "thumbnails128x128"
LISTS = ("ffhq-dataset-v2.json", "ffhq-dataset-v1.json")
SPLITS = {"training": "train", "validation": "val"}
CREDIT = ("license", "license_url", "author", "photo_url", "photo_title")
COLON = re.compile(r"\s*:\s*")
GAP = re.compile(r"[\s,]*")
CHUNK = 1 << 20  # characters
LONGEST = 1 << 22  # maximum characters of a member; those of the list have about 3,000
DECODER = json.JSONDecoder()


@dataclass(frozen=True)
class FFHQ:
    """Source: the aligned faces in the JSON, or all images without JSON."""

    root: Path
    thumbnails: bool = option(False, "use the thumbnails of 128 x 128 even if the large images exist")

    def __iter__(self) -> Iterator[Entry | Rejected]:
        """Yield faces with landmarks; extras: license, author and URL of the photo. There are no labels or identities.

        Raises:
            UserError: If the image folder is missing or empty, or the JSON is corrupt.
        """
        folder = require_path("ffhq", self.root, "images", *((SMALL,) if self.thumbnails else (LARGE, SMALL)))
        listed = first_existing(self.root, *LISTS)
        if listed is None:
            yield from self._unlisted(folder)
            return
        flat = not any(Path(folder, f"{number:05d}").is_dir() for number in range(0, 70_000, 1000))
        for number, item in members(listed):
            yield self._entry(folder, flat, number, item)

    @property
    def release(self) -> str:
        """Kind of images that the source reads."""
        return require_path("ffhq", self.root, "images", *((SMALL,) if self.thumbnails else (LARGE, SMALL))).name

    def notes(self) -> list[str]:
        """Return a note about missing files."""
        absent = first_existing(self.root, *LISTS) is None
        return [f"{self.root} has no {LISTS[0]}: licenses, authors and splits are unknown"] if absent else []

    def _unlisted(self, folder: Path) -> Iterator[Entry]:
        found = False
        for relative in walk(folder):
            if PurePosixPath(relative).suffix.lower() in EXTENSIONS:
                found = True
                yield Entry(PurePosixPath(relative).stem, f"{folder.name}/{relative}", folder.absolute() / relative)
        if not found:
            raise UserError(f"ffhq: no images in {folder} (found: {describe_dir(folder)}). Fix: unpack the images.")

    def _entry(self, folder: Path, flat: bool, number: str, item: Any) -> Entry | Rejected:
        kind, scale = ("thumbnail", 128 / 1024) if folder.name == SMALL else ("image", 1.0)
        try:
            path = str(item[kind]["file_path"])
            split = SPLITS[item["category"]]
            credit = {name: str(item["metadata"][name]) for name in CREDIT if name in item["metadata"]}
            landmarks = tuple((float(x) * scale, float(y) * scale) for x, y in item["image"]["face_landmarks"])
        except (KeyError, TypeError, ValueError) as error:
            return Rejected(f"{number} of the JSON", "bad_row", f"{type(error).__name__}: {error}")
        source = safe_relative_path(path)
        if source is None:
            return Rejected(path, "outside")
        below = PurePosixPath(*PurePosixPath(source).parts[1:])
        file = folder.absolute() / (below.name if flat else below)
        return Entry(below.stem, source, file, split=split, landmarks=landmarks, extras=credit)


def members(file: Path) -> Iterator[tuple[str, Any]]:
    """Yield name and value of each member of the object in a JSON file of any size.

    Raises:
        UserError: If the file is corrupt or truncated.
    """
    with open_regular(file, **TEXT) as text:
        buffer, place = text.read(CHUNK), 0
        if not buffer.lstrip().startswith("{"):
            raise UserError(f"ffhq: {file} does not start with an object. Fix: use the original, unmodified file.")
        place = buffer.index("{") + 1
        while True:
            try:
                name, value, end = _member(buffer, place)
            except (ValueError, RecursionError) as error:
                more = "" if len(buffer) - place > LONGEST else text.read(CHUNK)
                if not more:
                    raise UserError(
                        f"ffhq: {file} is corrupt or truncated ({error}). Fix: download it again."
                    ) from None
                buffer, place = buffer[place:] + more, 0
            else:
                if name is None:
                    return
                yield name, value
                place = end


def _member(buffer: str, place: int) -> tuple[str | None, Any, int]:
    """Return the member at a position and its end, or None at the end of the object. Raises ValueError if truncated."""
    place = GAP.match(buffer, place).end()  # type: ignore[union-attr]
    if buffer.startswith("}", place):
        return None, None, place
    name, end = DECODER.raw_decode(buffer, place)
    colon = COLON.match(buffer, end)
    if colon is None:
        raise ValueError("no colon")
    value, end = DECODER.raw_decode(buffer, colon.end())
    return name, value, end


def expected(source: FFHQ) -> dict[str, dict[str, int]]:
    """Return the published counts."""
    if first_existing(source.root, *LISTS) is None:
        return {"train": {"": 70_000}}
    return {"train": {"": 60_000}, "val": {"": 10_000}}


CORPUS = CorpusSpec(
    name="ffhq",
    title="FFHQ: 70,000 aligned faces from Flickr, large or as thumbnails; without identities or expressions.",
    source=FFHQ,
    terms="FFHQ: CC BY-NC-SA 4.0 as a whole, not for face recognition; each image under its own license (in its json)",
    published_counts=expected,
)
