"""AFLW-19: 24,386 faces of AFLW with 19 revised landmarks; Zhu et al., CVPR 2016.

`AFLWinfo_release.mat` (MATLAB 5): `nameList` (0/image00002.jpg), `data` (19 x, then 19 y), `mask_new` (visible or not),
`bbox` (xmin xmax ymin ymax), `ra` (a permutation from 1: the first 20,000 are train, the others test); AFLW's photos
are in `data/flickr/{0,2,3}/`. Coordinates are kept as in the file.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from shards.entry import Entry, Rejected
from shards.errors import UserError
from shards.sources.corpus_files import box, describe_dir, first_existing, require_path, safe_relative_path
from shards.sources.registry import CorpusSpec

LIST = "AFLWinfo_release.mat"
TRAIN = 20_000
LANDMARKS = 19
FIELDS = {"data": 2 * LANDMARKS, "mask_new": LANDMARKS, "bbox": 4}  # number of columns
NAMES, ORDER = "nameList", "ra"
IMAGE_FOLDERS = ("data/flickr", "flickr", "aflw/data/flickr", "images", ".")


@dataclass(frozen=True)
class AFLW19:
    """Source: the faces listed in the file."""

    root: Path

    def __iter__(self) -> Iterator[Entry | Rejected]:
        """Yield faces with landmarks, box, group = photo (it may show several faces); extras: visible landmarks.

        Raises:
            UserError: If the list, its variables or the photos are missing.
        """
        file = require_path("aflw19", self.root, "list", LIST, f"data/{LIST}", f"aflw/{LIST}")
        table = _read(file)
        first = table[NAMES][0].partition("/")[0]
        images = first_existing(self.root, *(f"{folder}/{first}" for folder in IMAGE_FOLDERS))
        if images is None:
            places = ", ".join(f"{folder}/{first}" for folder in IMAGE_FOLDERS)
            raise UserError(
                f"aflw19: no photos in {self.root} (searched: {places}; found: {describe_dir(self.root)}). "
                "Fix: pass the corpus folder as downloaded."
            )
        train = set(table[ORDER][:TRAIN].tolist())
        faces: Counter[str] = Counter()
        for number in range(len(table[ORDER])):
            yield self._entry(images.parent.absolute(), table, number, "train" if number in train else "test", faces)

    def _entry(
        self, images: Path, table: dict[str, Any], number: int, split: str, faces: Counter[str]
    ) -> Entry | Rejected:
        name = table[NAMES][number].strip()
        path = safe_relative_path(name)
        if path is None:
            return Rejected(name, "outside")
        values = tuple(map(float, table["data"][number]))
        left, right, top, bottom = map(float, table["bbox"][number])
        if not all(abs(value) < float("inf") for value in (*values, left, right, top, bottom)):
            return Rejected(path, "bad_row", f"row {number + 1}: a coordinate is not a number")
        faces[path] += 1
        return Entry(
            key=f"{PurePosixPath(path).with_suffix('')}/{faces[path]}",
            source=path,
            read=images / path,
            split=split,
            group=path,
            box=box(left, top, right - left, bottom - top),
            landmarks=tuple(zip(values[:LANDMARKS], values[LANDMARKS:], strict=True)),
            extras={"visible": [int(flag) for flag in table["mask_new"][number]]},
        )


def _read(file: Path) -> dict[str, Any]:
    """Return the fields as arrays with one row per face, nameList as a list; `ra` is converted to start at 0."""
    import numpy as np

    from shards.sources.containers.matlab import read_variables

    try:
        arrays, lists = read_variables(file, [*FIELDS, ORDER], [NAMES])
        absent = [name for name in (NAMES, *FIELDS, ORDER) if name not in {*arrays, *lists}]
        if absent:
            raise ValueError(f"no variable {', '.join(absent)}")  # noqa: TRY301
        order = arrays[ORDER].astype(np.int64).ravel() - 1
        count = len(order)
        if count < TRAIN or not np.array_equal(np.sort(order), np.arange(count)):
            raise ValueError(f"{ORDER} is not a permutation of at least {TRAIN} faces")  # noqa: TRY301
        for field, columns in FIELDS.items():
            if arrays[field].shape != (count, columns):
                raise ValueError(f"{field} is not {count} x {columns}")  # noqa: TRY301
        if len(lists[NAMES]) != count:
            raise ValueError(f"{NAMES} is not {count} x 1")  # noqa: TRY301
    except (ValueError, OSError) as error:
        raise UserError(f"aflw19: {file} cannot be read ({error}). Fix: use the original, unmodified file.") from None
    return {**arrays, **lists, ORDER: order}


CORPUS = CorpusSpec(
    name="aflw19",
    title="AFLW-19: 20,000 + 4,386 faces with 19 landmarks.",
    source=AFLW19,
    terms="AFLW: non-commercial research only, by agreement; no redistribution of the photos; tugraz.at",
    published_counts=lambda source: {"train": {"": TRAIN}, "test": {"": 4386}},
    needs_crop=lambda source: True,
)
