"""COFW: 1,852 faces with occlusions and 29 landmarks; Burgos-Artizzu et al., ICCV 2013.

`COFW_{train,test}_color.mat`, MATLAB 7.3 (HDF5): cells of images `IsTr` or `IsT`, `phisTr` or `phisT` (29 x, 29 y, 29
occlusion flags), `bboxesTr` or `bboxesT` (left, top, width, height). HDF5 reverses MATLAB's axes; some images are
grayscale with two axes. Coordinates are kept as in the file.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from shards.entry import Entry, LazyBytes, Rejected
from shards.errors import UserError
from shards.io.atomic import regular_path
from shards.sources.corpus_files import box, first_existing, require_path
from shards.sources.registry import CorpusSpec

SPLITS = {"train": ("COFW_train_color.mat", "Tr", 1345), "test": ("COFW_test_color.mat", "T", 507)}
LANDMARKS = 29
MOST = 1 << 28  # maximum bytes of a dataset; a small HDF5 file can declare any size


@dataclass(frozen=True)
class COFW:
    """Source: the faces of both files."""

    root: Path

    def __iter__(self) -> Iterator[Entry | Rejected]:
        """Yield faces with landmarks and box; extras: occluded landmarks.

        Raises:
            UserError: If both files are missing, or one lacks these fields.
        """
        require_path("cofw", self.root, "file", *(file for file, _, _ in SPLITS.values()))
        for split, (name, _, _) in SPLITS.items():
            file = first_existing(self.root, name)
            if file is not None:
                yield from _faces(file.absolute(), split)


def _faces(file: Path, split: str) -> Iterator[Entry | Rejected]:
    import h5py
    import numpy as np

    mark = SPLITS[split][1]
    try:
        with regular_path(file) as path, h5py.File(path, "r") as data:
            cells, marks, boxes = (_own(data, f"{field}{mark}") for field in ("Is", "phis", "bboxes"))
            count = cells.size
            marks = _table(np.asarray(marks), 3 * LANDMARKS, count)
            boxes = _table(np.asarray(boxes), 4, count)
    except Exception as error:  # noqa: BLE001 - h5py raises anything for corrupt files
        fields = f"Is{mark}, phis{mark}, bboxes{mark}"
        raise UserError(
            f"cofw: {file} is not MATLAB 7.3 (HDF5) with {fields} ({error}). Fix: use the original, unmodified file."
        ) from None
    for number in range(count):
        source = f"{file.name}/{number}"
        values = tuple(map(float, marks[number]))
        if not np.isfinite(marks[number]).all() or not np.isfinite(boxes[number]).all():
            yield Rejected(source, "bad_row", "a coordinate is not a number")
            continue
        yield Entry(
            key=f"{split}/{number:04d}",
            source=source,
            read=LazyBytes("cofw_image", (f"Is{mark}", number), file),
            split=split,
            box=box(*map(float, boxes[number])),
            landmarks=tuple(zip(values[:LANDMARKS], values[LANDMARKS : 2 * LANDMARKS], strict=True)),
            extras={"occluded": [int(value) for value in values[2 * LANDMARKS :]]},
        )


def _own(data: Any, name: Any) -> Any:
    """Return a dataset of this file; refuse links to other files, as in attacks. Raises ValueError."""
    import h5py

    if isinstance(name, str) and not isinstance(data.get(name, getlink=True), h5py.HardLink):
        raise ValueError(f"{name} is a link")  # noqa: TRY004 - a corrupt file
    found = data[name]
    if not isinstance(found, h5py.Dataset) or found.external or found.is_virtual:
        raise ValueError(f"{name} is not in this file")
    whole = max(found.nbytes, prod(found.chunks or ()) * found.dtype.itemsize)  # chunks are decompressed completely
    if whole > MOST:
        raise ValueError(f"{name} has {whole} bytes")
    if found.dtype.kind not in "fiu" and not h5py.check_ref_dtype(
        found.dtype
    ):  # other types have unbounded data elsewhere in the file
        raise ValueError(f"{name} contains neither numbers nor references")
    return found


def _table(values: Any, columns: int, rows: int) -> Any:
    """Return an array [rows, columns], transposed if necessary."""
    if values.shape == (columns, rows):
        return values.T
    if values.shape != (rows, columns):
        raise ValueError(f"{values.shape} is not {rows} x {columns}")
    return values


def read_image(file: Path, field: str, number: int) -> bytes:
    """Return image `number` of the cells in `field` as PNG; runs in a worker.

    Raises:
        ImageRejected: If the cell is not a byte array with two or three axes.
    """
    import io

    import h5py
    import numpy as np
    from PIL import Image

    from shards.imaging.codec import ImageRejected

    with regular_path(file) as path, h5py.File(path, "r") as data:
        try:
            pixels = np.asarray(_own(data, _own(data, field)[()].ravel()[number])).T  # [H, W] or [H, W, 3]
        except Exception as error:  # h5py raises anything, as above
            if getattr(error, "errno", None) is not None:  # a disk error, not a corrupt file
                raise
            raise ImageRejected("unreadable", str(error)) from None
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (1, 3)):
        raise ImageRejected("unreadable", f"pixels of type {pixels.dtype} and shape {pixels.shape}")
    encoded = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels.squeeze())).save(encoded, "PNG", compress_level=1)
    return encoded.getvalue()


CORPUS = CorpusSpec(
    name="cofw",
    title="COFW: 1,345 + 507 faces with occlusions and 29 landmarks.",
    source=COFW,
    terms="COFW: non-commercial research only; vision.caltech.edu/xpburgos",
    published_counts=lambda source: {
        split: {"": count} for split, (file, _, count) in SPLITS.items() if first_existing(source.root, file)
    },
)
