"""Digests of files and of plain values."""

import hashlib
import json
from pathlib import Path
from typing import IO, Any

from shards.io.atomic import CHUNK, open_regular


def hash_file(source: str | Path | IO[bytes], algorithm: str = "sha256") -> str:
    """Return the digest of a file's bytes in hexadecimal digits. An open file is read from its position to its end.

    Raises:
        RefusedFileError, OSError: See `open_regular`.
    """
    if isinstance(source, str | Path):
        with open_regular(source, "rb") as file:
            return hash_file(file, algorithm)
    found = hashlib.new(algorithm)
    while part := source.read(CHUNK):
        found.update(part)
    return found.hexdigest()


def short_hash(data: bytes, size: int = 8) -> bytes:
    """Return `size` bytes that identify `data`."""
    return hashlib.blake2b(data, digest_size=size).digest()


def digest(values: Any) -> str:
    """Return 16 hexadecimal digits that identify values of JSON, independent of the order of keys."""
    return short_hash(json.dumps(values, sort_keys=True).encode()).hex()
