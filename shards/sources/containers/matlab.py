"""Read variables of MATLAB 5 files: real numeric arrays and cells of text only.

After "MAT-File Format" (MathWorks). scipy also reads these files, but one with invalid tags crashes the process.
"""

import struct
import zlib
from collections.abc import Collection, Iterator
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shards.io.atomic import read_bytes

MOST = 32 << 20  # maximum bytes of a file and of a decompressed variable; AFLW-19's are 15 MB by shape
MOST_NUMBERS = 1 << 22  # maximum numbers per variable: one byte in a file can become 8; AFLW-19 has 0.9 million
_HEADER = 128
_MATRIX, _PACKED, _UINT32, _INT32, _INT8 = 14, 15, 6, 5, 1  # element types
_NUMBERS = {1: "i1", 2: "u1", 3: "<i2", 4: "<u2", 5: "<i4", 6: "<u4", 7: "<f4", 9: "<f8", 12: "<i8", 13: "<u8"}
_TEXTS = {1: "latin-1", 2: "latin-1", 4: "utf-16-le", 16: "utf-8", 17: "utf-16-le"}
_CELL, _CHAR = 1, 4  # array classes
_NUMERIC = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}
_COMPLEX = 0x800


def read_variables(
    file: Path, numbers: Collection[str], texts: Collection[str]
) -> tuple[dict[str, NDArray[np.generic]], dict[str, list[str]]]:
    """Read the variables that exist: `numbers` as arrays of their shape, cells of `texts` as lists.

    Raises:
        ValueError: If the file is not a little-endian MATLAB 5 file, corrupt or too large, or a variable has another
            type.
        OSError: If the file cannot be read.
    """
    if file.stat().st_size > MOST:
        raise ValueError(f"larger than {MOST >> 20} MiB")
    data = read_bytes(file)
    if data[124:_HEADER] != b"\x00\x01IM":
        raise ValueError("not a little-endian MATLAB 5 file")
    arrays: dict[str, NDArray[np.generic]] = {}
    lists: dict[str, list[str]] = {}
    for kind, content in _elements(memoryview(data)[_HEADER:]):
        matrix = _unpack(content) if kind == _PACKED else content
        if kind not in (_PACKED, _MATRIX):
            raise ValueError(f"an element of type {kind} instead of a variable")
        flags, shape, name, rest = _head(matrix)
        if name in numbers:
            arrays[name] = _numbers(rest, flags, shape)
        elif name in texts:
            lists[name] = _texts(rest, flags, shape)
    return arrays, lists


def _elements(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yield type and content of each element."""
    at = 0
    while at < len(data):
        if len(data) - at < 8:
            raise ValueError("ends within a tag")
        kind, size = struct.unpack_from("<II", data, at)
        if kind >> 16:  # a small element: the tag holds its size and up to 4 bytes of content
            kind, size, start, step = kind & 0xFFFF, kind >> 16, at + 4, 8
            if size > 4:
                raise ValueError(f"a small element of {size} bytes")
        else:
            start, step = at + 8, 8 + (size if kind == _PACKED else -(-size // 8) * 8)
        if start + size > len(data):
            raise ValueError("an element is longer than its container")
        yield kind, data[start : start + size]
        at += step


def _unpack(content: memoryview) -> memoryview:
    """Decompress the matrix in a compressed element."""
    unpacking = zlib.decompressobj()
    try:
        data = unpacking.decompress(content, MOST)
    except zlib.error as error:
        raise ValueError(f"a compressed variable cannot be decompressed: {error}") from None
    if unpacking.unconsumed_tail:
        raise ValueError(f"a variable is larger than {MOST >> 20} MiB")
    for kind, matrix in _elements(memoryview(data)):
        if kind == _MATRIX:
            return matrix
    raise ValueError("a compressed element contains no variable")


def _head(matrix: memoryview) -> tuple[int, tuple[int, ...], str, Iterator[tuple[int, memoryview]]]:
    """Return flags, shape and name of a matrix, and the following elements."""
    elements = _elements(matrix)
    parts = [next(elements, (0, memoryview(b""))) for _ in range(3)]
    if [kind for kind, _ in parts] != [_UINT32, _INT32, _INT8]:
        raise ValueError("a variable without flags, shape and name")
    (flags, shape, name) = (content for _, content in parts)
    sides = tuple(np.frombuffer(shape, "<i4").tolist())
    if len(flags) != 8 or len(sides) < 2 or min(sides) < 0:
        raise ValueError("a variable with corrupt flags or shape")
    return struct.unpack_from("<I", flags)[0], sides, bytes(name).decode("latin-1"), elements


def _numbers(elements: Iterator[tuple[int, memoryview]], flags: int, shape: tuple[int, ...]) -> NDArray[np.generic]:
    kind, content = next(elements, (0, memoryview(b"")))
    if flags & 0xFF not in _NUMERIC or flags & _COMPLEX or kind not in _NUMBERS:
        raise ValueError("a variable that is not a real numeric array")
    values = np.frombuffer(content, _NUMBERS[kind])  # the stored type can be smaller than the array's
    if len(values) != prod(shape) or len(values) > MOST_NUMBERS:
        raise ValueError(f"a variable has {len(values)} numbers for shape {shape}; the maximum is {MOST_NUMBERS}")
    return values.astype(_NUMERIC[flags & 0xFF]).reshape(shape, order="F")


def _texts(elements: Iterator[tuple[int, memoryview]], flags: int, shape: tuple[int, ...]) -> list[str]:
    if flags & 0xFF != _CELL:
        raise ValueError("a variable that is not a cell array of texts")
    texts = []
    for kind, cell in elements:
        if kind != _MATRIX:
            raise ValueError("a cell that is not an array")
        class_, _, _, rest = _head(cell)
        coding, content = next(rest, (0, memoryview(b"")))
        if class_ & 0xFF != _CHAR or coding not in _TEXTS:
            raise ValueError("a cell that is not a text")
        texts.append(bytes(content).decode(_TEXTS[coding]))
    if len(texts) != prod(shape):
        raise ValueError(f"a variable has {len(texts)} cells for shape {shape}")
    return texts
