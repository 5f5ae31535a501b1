"""Count exact copies of an image across splits: training images in a test split inflate its accuracy."""

from collections.abc import Iterable
from functools import reduce
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shards.io.atomic import read_bytes, write_atomic

ENDING = ".images"


def write_hashes(work: Path, shard: str, hashes: bytes) -> None:
    """Save the 8-byte hashes of a shard's images for the duration of a build."""
    write_atomic(work / f"{shard}{ENDING}", hashes)


def copies_across_splits(work: Path, shards: Iterable[tuple[str, str]]) -> int:
    """Count images of a split that also occur in an earlier split. `shards` are split and name of each shard."""
    by_split: dict[str, list[NDArray[np.uint64]]] = {}
    for split, name in shards:
        file = work / f"{name}{ENDING}"
        if file.is_file():
            by_split.setdefault(split, []).append(np.frombuffer(read_bytes(file), np.uint64))
    each = [np.unique(np.concatenate(parts)) for parts in by_split.values()]
    if len(each) < 2:
        return 0
    return sum(len(part) for part in each) - len(reduce(np.union1d, each))
