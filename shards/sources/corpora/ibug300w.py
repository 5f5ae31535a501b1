"""300-W: faces of AFW, iBUG, Helen and LFPW with 68 landmarks; Sagonas et al., ICCV 2013 workshops.

`afw/`, `ibug/`, `helen/{trainset,testset}/`, `lfpw/{trainset,testset}/`: for each face a .jpg or .png and a .pts (lines
with version, count, `{`, x and y of each point, `}`). The files' coordinates start at 1 (as in iBUG's menpo), here at
0. dlib's copy also contains mirrored images (`_mirror`).

Other sets in this format (AFLW, Helen, AFW as one folder) are read with `--points`; files may lack the header.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from shards.entry import Entry, Rejected
from shards.errors import UserError
from shards.sources.corpus_files import box, describe_dir, first_existing, lines, list_dir, numbers
from shards.sources.generic.folder import EXTENSIONS
from shards.sources.registry import CorpusSpec, option

PARTS = {  # folder: split, faces
    "afw": ("train", 337),
    "helen/trainset": ("train", 2000),
    "lfpw/trainset": ("train", 811),
    "helen/testset": ("test", 330),
    "ibug": ("test", 135),
    "lfpw/testset": ("test", 224),
}
NESTED = ("", "300W/", "300w/", "ibug_300W_large_face_landmark_dataset/")
MIRRORED = "_mirror"
HEADER = ("version", "n_points")
LANDMARKS = 68


@dataclass(frozen=True)
class IBug300W:
    """Source: the faces of all parts present; without any part, the faces of one folder."""

    root: Path
    points: int = option(68, "Number of points of a face, such as 21 (AFLW) or 194 (Helen).")

    def __iter__(self) -> Iterator[Entry | Rejected]:
        """Yield faces with landmarks; box: around the landmarks (the photos are not cropped); extras: part of the set.

        Raises:
            UserError: If no part and no .pts file is present.
        """
        if self.points < 1:
            raise UserError(f"--points={self.points}: must be at least 1. Fix: count the lines between the braces.")
        parts = self._parts() or self._flat()
        if not parts:
            found = describe_dir(self.root) if self.root.is_dir() else "no folder"
            raise UserError(
                f"300w: none of {', '.join(PARTS)}, and no .pts file in {self.root} (found: {found}). "
                "Fix: pass the corpus folder, or the folder of the images and .pts files."
            )
        for part, folder in parts.items():
            images: dict[str, str] = {}
            for name in list_dir(folder):
                file = Path(name)
                if file.suffix.lower() in EXTENSIONS or file.suffix == ".pts":
                    images[file.stem] = images.get(file.stem) or ("" if file.suffix == ".pts" else name)
            for stem, name in sorted(images.items()):
                if stem.endswith(MIRRORED) and stem.removesuffix(MIRRORED) in images:
                    yield Rejected(f"{part}/{name or stem}", "repeated", "a mirrored copy")
                else:
                    yield self._entry(part, folder, stem, name)

    def _parts(self) -> dict[str, Path]:
        places = {part: first_existing(self.root, *(f"{nest}{part}" for nest in NESTED)) for part in PARTS}
        return {part: folder for part, folder in places.items() if folder is not None}

    def _flat(self) -> dict[str, Path]:
        """Return the root as the only part if it holds .pts files."""
        found = self.root.is_dir() and any(name.lower().endswith(".pts") for name in list_dir(self.root))
        return {self.root.resolve().name.lower(): self.root} if found else {}

    def _entry(self, part: str, folder: Path, stem: str, name: str) -> Entry | Rejected:
        file = folder.absolute() / f"{stem}.pts"
        if not name:
            return Rejected(f"{part}/{stem}", "missing", "an image for this .pts")
        source = f"{part}/{name}"
        if not file.is_file():
            return Rejected(source, "bad_row", f"no {stem}.pts beside it")
        landmarks = read_pts(file, self.points)
        if landmarks is None:
            return Rejected(source, "bad_row", f"{stem}.pts does not contain {self.points} points")
        left, top = (min(axis) for axis in zip(*landmarks, strict=True))
        right, bottom = (max(axis) for axis in zip(*landmarks, strict=True))
        return Entry(
            key=source,
            source=source,
            read=folder.absolute() / name,
            split=PARTS[part][0] if part in PARTS else "train",
            box=box(left, top, right - left, bottom - top),
            landmarks=landmarks,
            extras={"part": part.partition("/")[0]},
        )


def read_pts(file: Path, count: int = LANDMARKS) -> tuple[tuple[float, float], ...] | None:
    """Return the points of a .pts file (with or without header), starting at 0; None unless there are `count`."""
    rows = [line for _, line in lines(file)]
    if "{" in rows and "}" in rows:
        rows = rows[rows.index("{") + 1 : rows.index("}")]
    elif "{" in rows or "}" in rows:
        return None
    points = [numbers(row.replace(",", " "), 2) for row in rows if not row.lower().startswith(HEADER)]
    if len(points) != count:
        return None
    return tuple((point[0] - 1, point[1] - 1) for point in points if point) if all(points) else None


def expected(source: IBug300W) -> dict[str, dict[str, int]]:
    """Return the number of faces of the parts present: 3,148 and 689 in total."""
    counts: dict[str, dict[str, int]] = {}
    for part in source._parts():
        split, count = PARTS[part]
        counts[split] = {"": counts.get(split, {}).get("", 0) + count}
    return counts


CORPUS = CorpusSpec(
    name="300w",
    title="300-W: 3,148 + 689 faces with 68 landmarks.",
    source=IBug300W,
    terms="300-W: non-commercial research only; rights of the photos with their owners; ibug.doc.ic.ac.uk",
    published_counts=expected,
    needs_crop=lambda source: True,
)
