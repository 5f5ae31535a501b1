"""Scale pixels of more than 8 bits to 8 bits if their range is known.

Cameras with 10 or 12 bits write 16-bit files, sometimes with unscaled values, which would be nearly black as 16-bit
values. PNG declares the maximum value in sBIT, TIFF in MaxSampleValue.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shards.imaging import png_chunks

FULL = 65535
DARK = 16383  # 14 bits: an image of unknown range without larger values may have fewer bits
MAX_SAMPLE_VALUE = (281, 341)  # TIFF tags


class UnknownRangeError(Exception):
    """Error: the pixel range of an image is unknown."""


def declared_white(image: Image.Image, data: bytes) -> int | None:
    """Return the white value that the file of `image` declares, or None if it declares none."""
    if image.format == "PPM":  # Pillow has scaled it by the file's maximum
        return FULL
    if (bits := png_chunks.significant_bits(data)) is not None:
        return int((1 << bits) - 1)
    tags = getattr(image, "tag_v2", {})
    for tag in MAX_SAMPLE_VALUE:
        found = tags.get(tag)
        values = found if isinstance(found, tuple) else (found,)
        if all(isinstance(value, int) and value > 0 for value in values):
            return int(max(values))
    return None


def eight_bit(values: NDArray[np.integer], white: int | None) -> NDArray[np.uint8]:
    """Scale integers of any shape to 8 bits. white: the white value that the file declares, or None.

    Raises:
        UnknownRangeError: If values are below 0 or above 65535, or so small that they may have fewer bits.
    """
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > FULL:
        raise UnknownRangeError("32-bit pixels without a known range")
    if white is None and high <= DARK:
        raise UnknownRangeError(
            f"16-bit or 32-bit pixels whose largest value is {high}: unknown range; convert them to 8 bits"
        )
    top = white if white is not None and high <= white <= FULL else FULL  # otherwise already scaled to 16 bits
    return ((values.astype(np.uint32) * 255 + top // 2) // top).astype(np.uint8)


def is_unknown_range(image: Image.Image, data: bytes) -> bool:
    """Return whether Pillow truncated 16-bit colors to their upper 8 bits, which leaves a nearly black image."""
    bits = getattr(image, "tag_v2", {}).get(258, ())
    deep = png_chunks.is_deep(data) or (isinstance(bits, tuple) and 16 in bits)
    if not deep or image.mode not in ("RGB", "RGBA"):
        return False
    return max(high for _, high in image.getextrema()[:3]) <= DARK >> 8  # type: ignore[misc]


def reduce_bit_depth(image: Image.Image, data: bytes) -> NDArray[np.uint8]:
    """Return a dark image of 16-bit colors as [H, W, 3]. Raises UnknownRangeError if their range is unknown."""
    import cv2

    white = declared_white(image, data)
    found = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) if png_chunks.is_deep(data) else None
    if white is None or found is None or found.ndim != 3 or found.shape[2] != 3 or found.dtype != np.uint16:
        raise UnknownRangeError("nearly black 16-bit colors of unknown range; convert them to 8 bits")
    return eight_bit(found[:, :, ::-1].astype(np.uint16), white)
