"""Spot checks: detect whether a tar or its index was replaced, without reading the whole tar.

A spot check reads a few blocks of the tar and the whole index. It detects a replaced file, but not a change between
its blocks: `simfle shards verify` hashes every byte.
"""

import hashlib
import os
from pathlib import Path
from typing import NamedTuple

from shards.io.atomic import read_bytes
from shards.io.hashing import short_hash

BLOCKS, BLOCK = 4, 4096  # number of blocks read per tar, and their size in bytes


class SpotCheck(NamedTuple):
    """Digests of 16 hexadecimal digits; idx: "" if the tar has no index file."""

    tar: str
    idx: str


def check_tar(descriptor: int, size: int) -> str:
    """Return the digest of an open tar of `size` bytes. Raises OSError."""
    digest = hashlib.blake2b(str(size).encode(), digest_size=8)
    for number in range(BLOCKS):  # the end is never read, because all tars end in zeros
        digest.update(os.pread(descriptor, BLOCK, number * size // BLOCKS))
    return digest.hexdigest()


def check_index(path: Path) -> str:
    """Return the digest of an index file, ignoring a final line break, or "" if the file is missing. Raises OSError."""
    try:
        content = read_bytes(path)
    except FileNotFoundError:
        return ""
    return short_hash(content.rstrip()).hex()
