"""Write tensors to a safetensors file in pieces: hashed during the write, without a copy, with a rate limit.

The library's own writer first copies all tensors, and writes at full speed. The format is the same: the header's length
in 8 little-endian bytes; the header, JSON padded to a multiple of 8 bytes; then all tensors.
"""

import hashlib
import json
import threading
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from shards.io.atomic import regular_path
from simfle.train.checkpointing.state_dict import State

PIECE = 4 << 20  # bytes
DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


class RateLimiter:
    """Limit a writer to `bandwidth` MB/s (0 = no limit), until `hurry` is set."""

    def __init__(self, bandwidth: float, hurry: threading.Event) -> None:
        self._rate, self._unlimited = bandwidth * 1e6, hurry
        self._began, self._bytes = time.monotonic(), 0

    def throttle(self, count: int) -> None:
        """Wait until `count` more bytes may be written."""
        self._bytes += count
        if self._rate:
            ahead = self._bytes / self._rate - (time.monotonic() - self._began)
            if ahead > 0:
                self._unlimited.wait(ahead)


def read_tensors(path: Path) -> State:
    """Read a file written by `write_tensors`. Raises OSError or SafetensorError."""
    with regular_path(path) as same:
        return load_file(same)


def write_tensors(path: Path, tensors: State, pace: RateLimiter | None = None) -> dict[str, Any]:
    """Write CPU tensors by name, readable with the safetensors library; return the file's bytes and SHA-256.

    Raises:
        OSError: If the disk is full or fails.
    """
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))  # keeps all tensors aligned
    header, place = {}, 0
    for name in names:
        end = place + tensors[name].nbytes
        shape = list(tensors[name].shape)
        header[name] = {"dtype": DTYPES[tensors[name].dtype], "shape": shape, "data_offsets": [place, end]}
        place = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    start = len(text).to_bytes(8, "little") + text
    digest = hashlib.sha256(start)
    with path.open("wb", buffering=0) as file:
        _write(file, memoryview(start))
        for name in names:
            data = tensors[name].contiguous().view(-1).view(torch.uint8).numpy().data
            for begin in range(0, len(data), PIECE):
                piece = data[begin : begin + PIECE]
                _write(file, piece)
                digest.update(piece)
                if pace is not None:
                    pace.throttle(len(piece))
    return {"bytes": len(start) + place, "sha256": digest.hexdigest()}


def _write(file: Any, data: memoryview) -> None:
    """Write all of `data`: an unbuffered write may write only a part."""
    while data:
        data = data[file.write(data) :]
