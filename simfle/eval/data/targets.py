"""Targets in shards other than expression labels: landmarks, votes, valence and arousal."""

# n samples, P points, K classes
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simfle.errors import UserError
from simfle.eval.data.splits import Split

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


class NoTargetsError(UserError):
    """Error: no sample of a split has the targets of a protocol."""


def votes(split: Split) -> tuple[Ints, Floats]:
    """Return positions [n] of the samples with votes, and their distributions over the split's classes [n, K].

    Votes for other classes (unknown, no face) are ignored.
    """

    def read(meta: dict[str, Any]) -> list[float] | None:
        counts = meta.get("extras", {}).get("votes")
        if not isinstance(counts, dict):
            return None
        found = [float(counts.get(name, 0)) for name in split.classes]
        return [count / sum(found) for count in found] if sum(found) > 0 else None

    return _gather(split, read, "votes", "build them with simfle shards build ferplus")


def affect(split: Split) -> tuple[Ints, Floats]:
    """Return positions [n] of the samples with valence and arousal, and both values [n, 2], from -1 to 1."""

    def read(meta: dict[str, Any]) -> list[float] | None:
        extras = meta.get("extras", {})
        return [extras["valence"], extras["arousal"]] if {"valence", "arousal"} <= extras.keys() else None

    return _gather(split, read, "valence and arousal", "build them with simfle shards build affectnet")


def landmarks(split: Split, points: Sequence[int]) -> tuple[Ints, Floats]:
    """Return positions [n] of the samples with landmarks, and all or the selected points [n, P, 2] in pixels."""

    def read(meta: dict[str, Any]) -> list[list[float]] | None:
        found = meta.get("landmarks")
        if not found:
            return None
        if points and max(points) >= len(found):
            raise UserError(
                f"points: {max(points)} is out of range, split {split.name!r} has {len(found)} points. "
                "Fix: choose lower numbers."
            )
        return [found[place] for place in points] if points else found

    return _gather(split, read, "landmarks", "use a data set with landmarks, such as 300w")


def sizes(split: Split) -> Floats:
    """Return width and height [n, 2] of the images in pixels."""
    return _gather(split, lambda meta: [meta["width"], meta["height"]], "sizes", "rebuild the shards")[1]


def boxes(split: Split) -> Floats | None:
    """Return width and height [n, 2] of the faces' boxes in pixels, or None unless all samples have a box."""
    found = [split.metadata(place).get("box") for place in range(len(split))]
    return None if None in found else np.array(found, dtype=np.float64)[:, 2:]


def _gather(split: Split, read: Callable[[dict[str, Any]], Any], what: str, advice: str) -> tuple[Ints, Floats]:
    rows, values = [], []
    for place in range(len(split)):
        value = read(split.metadata(place))
        if value is not None:
            rows.append(place)
            values.append(value)
    if not rows:
        raise NoTargetsError(f"shards: split {split.name!r} has no {what}. Fix: {advice}.")
    try:
        found = np.array(values, dtype=np.float64)
    except (ValueError, TypeError):
        found = np.full(1, np.nan)
    if len(found) != len(rows) or not np.isfinite(found).all():
        raise UserError(
            f"shards: split {split.name!r} has invalid {what}: their number differs, or not all are numbers. "
            "Fix: rebuild the shards."
        )
    return np.array(rows, dtype=np.int64), found
