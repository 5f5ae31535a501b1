"""AffectNet's releases since 2021: faces of 224 px, and for each face one .npy file per value."""

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shards.entry import Entry, Rejected
from shards.errors import UserError
from shards.io.atomic import open_regular
from shards.sources.corpora.affectnet.common import affect, named, pair
from shards.sources.corpus_files import points

MOST = 1 << 20  # maximum bytes of a file; 68 points take 1,216
FOLDERS = (("train_set", "train"), ("val_set", "val"))


def read_arrays(root: Path, automatic: bool) -> Iterator[Entry | Rejected]:
    """Yield all entries below train_set and val_set by name; a number means a different face in each of them."""
    if automatic:
        raise UserError("affectnet: the release of 2021 has no automatically labeled images. Fix: remove --automatic.")
    for folder, split in FOLDERS:
        annotations = root / folder / "annotations"
        for ident, image, annotated in pair(root / folder / "images", annotations, "_exp.npy"):
            source = f"{folder}/images/{image or ident + '.jpg'}"
            if not image:
                yield Rejected(source, "missing")
                continue
            label = None
            if annotated:
                label = named(str(_value(annotations / f"{ident}_exp.npy")))
                if label is None:
                    yield Rejected(source, "bad_row", f"{folder}/annotations/{ident}_exp.npy contains no expression")
                    continue
            marks = _array(annotations / f"{ident}_lnd.npy")
            yield Entry(
                key=f"{folder}/{ident}",
                source=source,
                read=root / source,
                label=label,
                split=split,
                landmarks=points(tuple(marks.tolist())) if marks is not None and marks.size == 2 * 68 else None,
                extras=affect(*(_number(annotations / f"{ident}_{name}.npy") for name in ("val", "aro"))),
            )


def _value(file: Path) -> Any:
    """Return the only element of an array (a text in this release), or "" if missing or corrupt."""
    array = _read(file)
    return array.reshape(-1)[0] if array is not None and array.size == 1 else ""


def _number(file: Path) -> float | None:
    try:
        return float(_value(file))
    except (ValueError, TypeError):
        return None


def _array(file: Path) -> Any:
    """Return numbers [N] as float64, or None if missing or corrupt."""
    import numpy as np

    array = _read(file)
    try:
        return None if array is None else array.reshape(-1).astype(np.float64)
    except (ValueError, TypeError):
        return None


def _read(file: Path) -> Any:
    """Return an array of any shape and type except objects (pickles), or None if missing or corrupt."""
    import numpy as np

    try:
        with open_regular(file, "rb") as data:
            if os.fstat(data.fileno()).st_size > MOST:
                return None
            array = np.lib.format.read_array(data, allow_pickle=False)  # numpy.load would also accept an archive
            if math.prod(max(side, 1) for side in array.shape) > MOST:  # also limits items of zero bytes
                return None
            array.tolist()  # text with invalid code points fails on access
            return array
    except Exception:  # noqa: BLE001 - numpy parses headers as Python and raises anything
        return None
