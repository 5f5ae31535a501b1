"""Feature cache on disk: NAME.npy with NAME.json (shape, type and hash), verified before use.

Files are not memory-mapped: if a disk is full or fails, or a file is truncated meanwhile, a mapping kills the process
(SIGBUS).
"""

# n rows
import hashlib
import io
import json
import logging
import math
import os
import re
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import DTypeLike, NDArray

from shards.io.atomic import allocate, open_regular, read_bytes, replacing, write_atomic
from shards.io.hashing import hash_file
from shards.io.jsonl import dataclass_from_json
from shards.io.locks import flock
from simfle.errors import UserError

log = logging.getLogger(__name__)

FORMAT = 1
Ints = NDArray[np.int64]
# Names of temporary files, also of earlier versions: <digest>.<kind>.<process>.tmp
_TEMPORARY = re.compile(r"\.?(?P<name>[0-9a-f]{16}\.(maps|pooled))\.((npy|json)\.)?\d+\.tmp")
_verified: dict[Path, tuple[int, ...]] = {}  # file -> inode facts at the time of its successful hash check


@dataclass(frozen=True)
class FeatureFileMetadata:
    """Expected contents of an array file. shape: text such as 40x512. sha256: SHA-256 of the whole .npy file."""

    format: int
    shape: str
    dtype: str
    sha256: str


class FeatureRows:
    """An array [n, ...] in a file. Indexing with positions [m] reads these rows [m, ...] one by one."""

    def __init__(self, path: Path, file: IO[bytes], shape: tuple[int, ...], dtype: np.dtype, start: int) -> None:
        self.path, self.shape, self.dtype, self.start = path, shape, dtype, start
        self._number = file.fileno()
        weakref.finalize(self, file.close)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Ints) -> NDArray:
        size = math.prod(self.shape[1:]) * self.dtype.itemsize
        content = bytearray(len(rows) * size)
        whole = memoryview(content)
        name = f"cache_dir={self.path.parent}: {self.path.name}"
        for place, row in enumerate(rows.tolist()):
            try:
                read = os.preadv(self._number, [whole[place * size : (place + 1) * size]], self.start + row * size)
            except OSError as error:
                raise UserError(f"{name} cannot be read: {error.strerror}. Fix: check this disk.") from None
            if read != size:
                raise UserError(f"{name} was truncated while it was read. Fix: rerun the command.")
        return np.frombuffer(content, self.dtype).reshape(len(rows), *self.shape[1:])


def cached_features(
    path: Path, shape: tuple[int | None, ...], dtype: DTypeLike, compute: Iterable[NDArray]
) -> FeatureRows:
    """Return the array in the file `path`; compute and write it if the file is missing or invalid.

    shape: None for a side that only the computation knows; compute: yields the rows in parts.

    Raises:
        UserError: If the disk is full or the folder is not writable. Partial files are deleted.
    """
    delete_incomplete(path.parent)
    with _writing(path), _locked(path.with_suffix(".lock")):
        found = _open(path, shape, np.dtype(dtype))
        if found is None:
            _write(path, shape[0] or 0, np.dtype(dtype), compute)
            found = _open(path, shape, np.dtype(dtype))
    if found is None:
        raise UserError(
            f"cache_dir={path.parent}: {path.name} does not contain the written data. Fix: check this disk."
        )
    return found


def delete_incomplete(folder: Path) -> None:
    """Delete temporary files of killed processes, whose locks are free."""
    with suppress(OSError):
        for path in folder.iterdir():
            if match := _TEMPORARY.fullmatch(path.name):
                with suppress(OSError), _locked(folder / f"{match['name']}.lock", wait=False):
                    path.unlink()


@contextmanager
def _locked(path: Path, wait: bool = True) -> Iterator[None]:
    """Hold a lock, because several processes may compute the same features. Raises OSError if there are no locks."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as lock:
        flock(lock, wait=wait)
        yield


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cache_dir={path.parent}: features cannot be written: {error.strerror or error}. "
            "Fix: check this disk, or choose another folder with cache_dir=FOLDER."
        ) from None


def _open(path: Path, shape: tuple[int | None, ...], dtype: np.dtype) -> FeatureRows | None:
    """Return the array, or None if it is missing or corrupt. A corrupt array is logged."""
    try:
        file = open_regular(path, "rb")
    except FileNotFoundError:
        return None
    try:
        found = _verify(path, file, shape, dtype)
    except (ValueError, OSError) as error:
        file.close()
        log.warning("%s is corrupt (%s); recomputing it", path, error)
        return None
    return found


def _verify(path: Path, file: IO[bytes], shape: tuple[int | None, ...], dtype: np.dtype) -> FeatureRows:
    try:
        about = dataclass_from_json(FeatureFileMetadata, read_bytes(path.with_suffix(".json")))
    except FileNotFoundError:
        raise ValueError("no .json beside it") from None
    facts = os.fstat(file.fileno())
    inode = facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns
    if _verified.get(path) != inode:
        if hash_file(file) != about.sha256:
            raise ValueError("its hash differs from its .json")
        file.seek(0)
    np.lib.format.read_magic(file)
    actual, by_columns, kind = np.lib.format.read_array_header_1_0(file)
    told = FORMAT, _words(actual), np.dtype(kind).str, about.sha256
    if told != (about.format, about.shape, about.dtype, about.sha256) or by_columns or kind != dtype:
        raise ValueError("its shape or type differs from its .json")
    if len(actual) != len(shape) or any(want not in (None, side) for want, side in zip(shape, actual, strict=True)):
        raise ValueError(f"its shape is {_words(actual)}, not {_words(shape)}")
    start = file.tell()
    if facts.st_size != start + math.prod(actual) * dtype.itemsize:
        raise ValueError(f"it has {facts.st_size} bytes")
    _verified[path] = inode
    return FeatureRows(path, file, actual, dtype, start)


def _words(shape: tuple[int | None, ...]) -> str:
    return "x".join("?" if side is None else str(side) for side in shape)


def _write(path: Path, rows: int, dtype: np.dtype, compute: Iterable[NDArray]) -> None:
    digest = hashlib.sha256()
    whole: tuple[int, ...] = ()
    path.with_suffix(".json").unlink(missing_ok=True)
    with replacing(path) as file:
        for part in compute:
            if not whole:
                whole = (rows, *part.shape[1:])
                head = _header(whole, dtype)
                allocate(file, len(head) + math.prod(whole) * dtype.itemsize)
                file.write(head)
                digest.update(head)
            content = np.ascontiguousarray(part, dtype).tobytes()
            file.write(content)
            digest.update(content)
    about = {"format": FORMAT, "shape": _words(whole), "dtype": dtype.str, "sha256": digest.hexdigest()}
    write_atomic(path.with_suffix(".json"), json.dumps(about).encode())


def _header(shape: tuple[int, ...], dtype: np.dtype) -> bytes:
    content = io.BytesIO()
    described = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(content, described)
    return content.getvalue()
