"""Deterministic tars: the bytes that webdataset's TarWriter writes with a fixed time and owner.

webdataset itself would be imported in every worker, and torch with it: 1.7 s and 540 MB each. Its TarWriter is a thin
layer over the standard library's tarfile, whose headers are used here the same way; a test holds both to equal bytes.
"""

import hashlib
import os
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from shards.files import sync_folder
from shards.index import Index, make_index

OWNER = "shards"
MODE = 0o444


@dataclass(frozen=True)
class Written:
    """A finished tar: bytes, sha256 in hexadecimal digits, index."""

    bytes: int
    sha256: str
    index: Index


class TarShard:
    """One tar, written to a temporary name beside `path`, hashed on the way, renamed by `finish`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        self._file: IO[bytes] = self._temporary.open("wb", buffering=1 << 20)
        self._hash = hashlib.sha256()
        self._offset = 0
        self._members: list[tuple[str, int, int]] = []

    def add(self, key: str, members: Mapping[str, bytes]) -> None:
        """Write one sample: extension -> content, in this order."""
        for extension, content in members.items():
            header = tarfile.TarInfo(f"{key}.{extension}")
            header.size, header.mode, header.uname, header.gname = len(content), MODE, OWNER, OWNER
            self._put(header.tobuf(tarfile.USTAR_FORMAT))
            self._members.append((header.name, self._offset, len(content)))
            self._put(content)
            self._put(bytes(-len(content) % tarfile.BLOCKSIZE))

    def finish(self) -> Written:
        """Close the archive, make it durable and give it its name."""
        end = self._offset + 2 * tarfile.BLOCKSIZE
        self._put(bytes(end + -end % tarfile.RECORDSIZE - self._offset))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._temporary.replace(self._path)
        sync_folder(self._path.parent)
        return Written(self._offset, self._hash.hexdigest(), make_index(self._members))

    def drop(self) -> None:
        """Leave nothing behind."""
        self._file.close()
        self._temporary.unlink(missing_ok=True)

    def _put(self, data: bytes) -> None:
        self._file.write(data)
        self._hash.update(data)
        self._offset += len(data)
