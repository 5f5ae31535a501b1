"""Spot checks: whether a tar and its index are the files that they were, without reading the whole tar.

A spot check reads a few blocks of the tar and all of the index. It notices a replaced file. It does not notice a
change between its blocks: for that `simfle shards verify` hashes every byte.
"""

import hashlib
import os
from pathlib import Path
from typing import NamedTuple

from shards.files import read_bytes

BLOCKS, BLOCK = 4, 4096  # blocks of a tar that are read, and their bytes


class Spots(NamedTuple):
    """16 hexadecimal digits each; idx: "" where the tar has no index file."""

    tar: str
    idx: str


def tar_spots(descriptor: int, size: int) -> str:
    """The digits of an open tar of `size` bytes. Raises OSError."""
    digest = hashlib.blake2b(str(size).encode(), digest_size=8)
    for number in range(BLOCKS):  # never the end: every tar ends in zeros
        digest.update(os.pread(descriptor, BLOCK, number * size // BLOCKS))
    return digest.hexdigest()


def index_spots(path: Path) -> str:
    """The digits of an index file, with or without a last line break; "" where there is none. Raises OSError."""
    try:
        content = read_bytes(path)
    except FileNotFoundError:
        return ""
    return hashlib.blake2b(content.rstrip(), digest_size=8).hexdigest()
