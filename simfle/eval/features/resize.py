"""Resize complete images before a backbone: bilinearly with antialiasing, as Pillow, timm and torchvision do.

`embed`, evaluations, `load_backbone`, reports and the exported formats all use this rule. Pillow's algorithm is the
reference (Pillow, src/libImaging/Resample.c): a triangle filter, widened by the factor of an axis that shrinks, with
weights of 22 fractional bits. One axis is resized and rounded to 8 bits, then the other. Training views and augmented
crops are resized by separate rules.
"""

# B batch, H x W image, S side
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

RULE = "bilinear, antialiased"  # part of cache keys and results' settings
ONE = 1 << 22  # a weight of 1


def resize(image: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Resize [H, W, 3] to [side, side, 3] uint8, without preserving the aspect ratio."""
    if image.shape[:2] == (side, side):
        return image
    whole = Image.fromarray(np.ascontiguousarray(image))
    return np.array(whole.resize((side, side), Image.Resampling.BILINEAR), dtype=np.uint8)


def resize_tensor(images: Tensor, side: int) -> Tensor:
    """Resize [B, 3, H, W] on its device to [B, 3, side, side] of the same type, uint8 or floats.

    uint8 equals `resize`. Floats are not rounded, so gradients flow; they differ from `resize` by up to a gray level.
    """
    height, width = images.shape[2:]
    if (height, width) == (side, side):
        return images
    if images.is_floating_point():
        return F.interpolate(images, (side, side), mode="bilinear", align_corners=False, antialias=True)
    rows, columns = (_weights(length, side).to(images.device) for length in (height, width))  # [S, H], [S, W]
    pixels = images.double()  # exact: sums are whole numbers below 2**53
    if rows_first(height, width, side):
        pixels = _rounded(rows @ pixels) @ columns.T
    else:
        pixels = rows @ _rounded(pixels @ columns.T)
    return _rounded(pixels).to(torch.uint8)


def rows_first(height: int, width: int, side: int) -> bool:
    """Return whether Pillow 13 resizes the rows of an image first.

    Earlier versions always begin with the columns, which changes some pixels of tall images by one gray level.
    """
    return height > side and 2 * width < height + side


@lru_cache(maxsize=64)
def _weights(length: int, side: int) -> Tensor:
    """Return the weights [side, length] of an axis as whole numbers of 2**-22, in float64."""
    reach = max(length / side, 1.0)
    middle = (np.arange(side) + 0.5)[:, None] * (length / side)
    first, last = (np.trunc(middle - reach + 0.5).clip(0), np.trunc(middle + reach + 0.5).clip(max=length))
    place = np.arange(length)
    weights = np.clip(1 - np.abs((place + 0.5 - middle) / reach), 0, None) * ((place >= first) & (place < last))
    return torch.from_numpy(np.floor(weights / weights.sum(1, keepdims=True) * ONE + 0.5))


def _rounded(sums: Tensor) -> Tensor:
    """Return gray levels from sums in units of 2**-22, halves rounded up."""
    return ((sums + ONE // 2) / ONE).floor().clamp(0, 255)


def fill_resized(pixels: Any, image: Any) -> None:
    """Resize [h, w, 3] into `image` [S, S, 3] uint8, up to one gray level, in loops for FFCV's compiler."""
    h, w, side = pixels.shape[0], pixels.shape[1], image.shape[0]
    wide = np.empty((h, side, 3), np.uint8)
    for j in range(side):
        reach, middle = max(w / side, 1.0), (j + 0.5) * w / side
        first, last = max(int(middle - reach + 0.5), 0), min(int(middle + reach + 0.5), w)
        weights = np.empty(last - first, np.float64)
        for k in range(first, last):
            weights[k - first] = max(0.0, 1.0 - abs((k + 0.5 - middle) / reach))
        total = weights.sum()
        for i in range(h):
            for c in range(3):
                value = 0.0
                for k in range(first, last):
                    value += weights[k - first] * pixels[i, k, c]
                wide[i, j, c] = np.uint8(value / total + 0.5)
    for i in range(side):
        reach, middle = max(h / side, 1.0), (i + 0.5) * h / side
        first, last = max(int(middle - reach + 0.5), 0), min(int(middle + reach + 0.5), h)
        weights = np.empty(last - first, np.float64)
        for k in range(first, last):
            weights[k - first] = max(0.0, 1.0 - abs((k + 0.5 - middle) / reach))
        total = weights.sum()
        for j in range(side):
            for c in range(3):
                value = 0.0
                for k in range(first, last):
                    value += weights[k - first] * wide[k, j, c]
                image[i, j, c] = np.uint8(value / total + 0.5)
