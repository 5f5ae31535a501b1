"""Pixels of more than 8 bits -> 8 bits, where their range is known.

Cameras of 10 or 12 bits write 16-bit files, some of them with the values as they are: taken for 16 bits they would be
nearly black. A PNG says in sBIT, a TIFF in MaxSampleValue how large a value may be.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shards import png

FULL = 65535
DARK = 16383  # of 14 bits: an image whose range is unknown and that has no larger value may be one of fewer bits
MAX_SAMPLE_VALUE = (281, 341)  # TIFF tags


class UnknownRangeError(Exception):
    """Nothing says which value is white."""


def declared_white(image: Image.Image, data: bytes) -> int | None:
    """The value that the file of `image` says is white; None where it does not."""
    if image.format == "PPM":  # Pillow has scaled it by the file's own maximum
        return FULL
    if (bits := png.significant_bits(data)) is not None:
        return int((1 << bits) - 1)
    tags = getattr(image, "tag_v2", {})
    for tag in MAX_SAMPLE_VALUE:
        found = tags.get(tag)
        values = found if isinstance(found, tuple) else (found,)
        if all(isinstance(value, int) and value > 0 for value in values):
            return int(max(values))
    return None


def eight_bit(values: NDArray[np.integer], white: int | None) -> NDArray[np.uint8]:
    """Scale integers of any shape to 8 bits. white: what the file says is white, None where it does not.

    Raises:
        UnknownRangeError: values below 0 or above 65535, or so small that they may be of fewer bits.
    """
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > FULL:
        raise UnknownRangeError("32-bit pixels without a known range")
    if white is None and high <= DARK:
        raise UnknownRangeError(
            f"16-bit or 32-bit pixels whose largest value is {high}: their range is unknown; convert them to 8 bits"
        )
    top = white if white is not None and high <= white <= FULL else FULL  # else they are scaled to 16 bits already
    return ((values.astype(np.uint32) * 255 + top // 2) // top).astype(np.uint8)


def is_dark_colour(image: Image.Image, data: bytes) -> bool:
    """Whether Pillow has cut 16-bit colours, of which it keeps the upper 8 bits, to an image that is nearly black."""
    bits = getattr(image, "tag_v2", {}).get(258, ())
    deep = png.is_deep(data) or (isinstance(bits, tuple) and 16 in bits)
    if not deep or image.mode not in ("RGB", "RGBA"):
        return False
    return max(high for _, high in image.getextrema()[:3]) <= DARK >> 8  # type: ignore[misc]


def deep_colours(image: Image.Image, data: bytes) -> NDArray[np.uint8]:
    """[H, W, 3] of a dark image of 16-bit colours. Raises UnknownRangeError: their range is not known."""
    import cv2

    white = declared_white(image, data)
    found = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) if png.is_deep(data) else None
    if white is None or found is None or found.ndim != 3 or found.shape[2] != 3 or found.dtype != np.uint16:
        raise UnknownRangeError("16-bit colours that are nearly black: their range is unknown; convert them to 8 bits")
    return eight_bit(found[:, :, ::-1].astype(np.uint16), white)
