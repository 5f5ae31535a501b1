"""Count exact copies of an image: training images in a test split inflate its accuracy."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shards.io.atomic import read_bytes, write_atomic

ENDING = ".copies"
SEEN = np.dtype([("image", "<u8"), ("label", "<i4")])  # hash of the stored file; number of its label, -1 without one


@dataclass(frozen=True)
class Copies:
    """Numbers of copies. across: images of a split that also occur in an earlier split; within: images that repeat
    another image of their split; relabeled: distinct images with several labels."""

    across: int
    within: int
    relabeled: int


def write_hashes(work: Path, shard: str, images: list[tuple[int, int]]) -> None:
    """Save hash and label number of a shard's images for the duration of a build."""
    write_atomic(work / f"{shard}{ENDING}", np.array(images, SEEN).tobytes())


def count_copies(work: Path, shards: Iterable[tuple[str, str]]) -> Copies:
    """Count the exact copies in a build. shards: split and name of each shard."""
    by_split: dict[str, list[NDArray[np.void]]] = {}
    for split, name in shards:
        file = work / f"{name}{ENDING}"
        if file.is_file():
            by_split.setdefault(split, []).append(np.frombuffer(read_bytes(file), SEEN))
    if not by_split:
        return Copies(0, 0, 0)
    every = [np.concatenate(parts) for parts in by_split.values()]
    each = [np.unique(part["image"]) for part in every]
    kinds = np.unique(np.concatenate(every))  # distinct pairs of image and label
    labels = np.unique(kinds["image"], return_counts=True)[1]
    return Copies(
        across=sum(map(len, each)) - len(reduce(np.union1d, each)),
        within=sum(map(len, every)) - sum(map(len, each)),
        relabeled=int((labels > 1).sum()),
    )
