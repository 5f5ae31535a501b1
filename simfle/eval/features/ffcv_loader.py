"""Read a .beton with FFCV's loader, but with simfle's crops instead of FFCV's random crops.

Importing this module needs FFCV; use `simfle.eval.features.ffcv_format.load_ffcv`.
"""

# n rows of a beton, b of a batch, S side
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from queue import Empty
from typing import Any

import numba
import numpy as np
import torch
from ffcv.fields.rgb_image import SimpleRGBImageDecoder
from ffcv.libffcv import imdecode, resize_crop
from ffcv.loader import Loader
from ffcv.pipeline.allocation_query import AllocationQuery
from ffcv.pipeline.compiler import Compiler
from numpy.typing import NDArray
from torch import Tensor

from simfle.errors import UserError
from simfle.eval.features.resize import fill_resized

Ints = NDArray[np.int64]
AHEAD = 2  # batches to prefetch
# Fields of a row that `Crop` reads: location and size of its JPEG; box, flip and completeness in this epoch.
_ROW = np.dtype(
    [("data_ptr", "<u8")] + [(name, "<i8") for name in ("height", "width", "x", "y", "w", "h", "flip", "whole")]
)


class FfcvLoader:
    """Images of a beton, decoded and cropped on `threads` threads in compiled code, `batch` at a time.

    heights, widths: [n], of all images. The code is compiled at the first batch, which takes seconds.
    """

    def __init__(self, file: Path, side: int, batch: int, threads: int) -> None:
        _leave_torch_alone()
        others = dict.fromkeys(("label", "id", "key"))  # not loaded, because evaluation reads the shards
        workers = min(threads, vars(numba.config)["NUMBA_NUM_THREADS"])
        self.file, self.side = file, side
        self._loader = Loader(
            str(file), batch, workers, os_cache=True, drop_last=False, batches_ahead=AHEAD,
            pipelines={"image": [Crop(side)], **others},
        )  # fmt: skip
        known = self._loader.reader.metadata["f0"]
        self._table = np.zeros(len(known), _ROW)
        for name in ("data_ptr", "height", "width"):
            self._table[name] = known[name]

    @property
    def heights(self) -> Ints:
        return self._table["height"]

    @property
    def widths(self) -> Ints:
        return self._table["width"]

    def batches(self, rows: Ints, crops: Ints) -> Iterator[tuple[Tensor, NDArray[np.bool_]]]:
        """Yield images [b, S, S, 3] uint8 of `rows` [m] in order, and a mask [b] of undecodable images.

        crops: [m, 6], x, y, width, height in pixels, flip, and whether the image is complete, not augmented; a repeated
        row has the same crop each time.
        """
        if not len(rows):
            return
        table = self._table.copy()
        for name, values in zip(("x", "y", "w", "h", "flip", "whole"), crops.T, strict=True):
            table[name][rows] = values
        # FFCV passes only rows of the file's table to its compiled decoder, so the crops are stored there.
        self._loader.reader.metadata = {"f0": table}
        self._loader.traversal_order.indices = self._loader.first_traversal_order = np.asarray(rows, np.int64)
        epoch = iter(self._loader)
        try:
            while (made := self._wait(epoch)) is not None:
                images = torch.from_numpy(made[:, :-1].copy())  # FFCV reuses the memory
                yield images.view(-1, self.side, self.side, 3), made[:, -1] > 0
        finally:
            epoch.close()

    def _wait(self, epoch: Any) -> NDArray[np.uint8] | None:
        """Return FFCV's next batch, or None after the last. FFCV itself would wait forever if its thread has failed."""
        while True:
            alive = epoch.is_alive()
            try:
                found = epoch.output_queue.get(timeout=1.0)
            except Empty:
                if alive:
                    continue
                raise UserError(
                    f"ffcv_files: ffcv failed on {self.file}, see its message above. Fix: set decoder=opencv."
                ) from None
            return None if found is None else found[1][0]


class Crop(SimpleRGBImageDecoder):
    """FFCV operation: decode, crop, resize and mirror with the row's own parameters.

    Output: [b, S * S * 3 + 1] uint8, pixels and a flag for a JPEG that cannot be decoded. Complete images are resized
    as in `features.resize`, crops as in `extractor._image`: area average if both sides shrink (by FFCV's OpenCV),
    otherwise bilinear.
    """

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def declare_state_and_memory(self, previous_state: Any) -> tuple[Any, AllocationQuery]:
        shape, kind = (self.side * self.side * 3 + 1,), np.dtype("<u1")
        return replace(previous_state, jit_mode=True, shape=shape, dtype=kind), AllocationQuery(shape, kind)

    def generate_code(self) -> Any:
        read, side = self.memory_read, self.side
        plane = side * side * 3
        decode_jpeg, average = Compiler.compile(imdecode), Compiler.compile(resize_crop)
        bilinear, mirror = Compiler.compile(_bilinear), Compiler.compile(_mirror)
        antialiased = Compiler.compile(fill_resized)
        each = Compiler.get_iterator()

        def decode(rows, made, table, storage):  # type: ignore[no-untyped-def]
            for place in each(len(rows)):
                row = table[rows[place]]
                height, width = row["height"], row["width"]
                x, y, w, h = row["x"], row["y"], row["w"], row["h"]
                pixels = np.zeros((height, width, 3), np.uint8)
                image = made[place][:plane].reshape(side, side, 3)
                content = read(row["data_ptr"], storage)
                failed = decode_jpeg(content, pixels, height, width, height, width, 0, 0, 1, 1, False, False)
                made[place][plane] = 1 if failed != 0 else 0
                if row["whole"] != 0:
                    antialiased(pixels, image)
                elif h >= side and w >= side:
                    average(pixels, y, y + h, x, x + w, image)
                else:
                    bilinear(pixels[y : y + h, x : x + w], image)
                if row["flip"] != 0:
                    mirror(image)
            return made[: len(rows)]

        decode.is_parallel = True  # type: ignore[attr-defined]
        return decode


def _bilinear(pixels, image):  # type: ignore[no-untyped-def]
    """Resize [h, w, 3] to [S, S, 3] uint8 with pixel centers at halves: first rows, then columns. Compiled."""
    h, w, side = pixels.shape[0], pixels.shape[1], image.shape[0]
    wide = np.empty((h, side, 3), np.float32)
    for j in range(side):
        at = min(max((j + 0.5) * w / side - 0.5, 0.0), w - 1.0)
        left = int(at)
        right, share = min(left + 1, w - 1), np.float32(at - left)
        for i in range(h):
            for c in range(3):
                first = np.float32(pixels[i, left, c])
                wide[i, j, c] = first + share * (np.float32(pixels[i, right, c]) - first)
    for i in range(side):
        at = min(max((i + 0.5) * h / side - 0.5, 0.0), h - 1.0)
        top = int(at)
        below, share = min(top + 1, h - 1), np.float32(at - top)
        for j in range(side):
            for c in range(3):
                first = wide[top, j, c]
                image[i, j, c] = np.uint8(first + share * (wide[below, j, c] - first) + np.float32(0.5))


def _mirror(image):  # type: ignore[no-untyped-def]
    """Flip [S, S, 3] horizontally in place. Compiled."""
    side = image.shape[1]
    for i in range(image.shape[0]):
        for j in range(side // 2):
            for c in range(3):
                image[i, j, c], image[i, side - 1 - j, c] = image[i, side - 1 - j, c], image[i, j, c]


def _leave_torch_alone() -> None:
    """Keep torch's number of threads, which two of FFCV's threads set at each epoch. Only numba's number may be set."""

    def set_num_threads(cls: Any, count: int) -> None:
        cls.num_threads = count
        numba.set_num_threads(count)

    Compiler.set_num_threads = classmethod(set_num_threads)
