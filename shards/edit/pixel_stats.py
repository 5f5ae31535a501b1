"""Mean and standard deviation of a corpus's pixels per channel, for normalization."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shards.errors import UserError
from shards.reading.dataset import ShardDataset

MAX_IMAGES = 20_000  # image means have a standard deviation of about 0.15, so the error is about 0.001


@dataclass(frozen=True)
class PixelStats:
    """Mean and standard deviation of red, green and blue in [0, 1], equal weight per image; images: image count."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    images: int


def pixel_stats(shards: ShardDataset, max_images: int = MAX_IMAGES) -> PixelStats:
    """Compute the statistics over at most `max_images` images, spread evenly over the shards.

    The computation uses float64 and each image's mean and mean square, so neither the order nor the number of images
    costs precision.

    Raises:
        UserError: If there are no images, or one is corrupt.
    """
    count = min(len(shards), max_images)
    if count < 1:
        raise UserError(f"shards={shards.folder}: contains no images. Fix: pass a folder with samples.")
    sums = np.zeros((2, 3))  # [mean, mean square; channel]
    for number in range(count):
        sums += moments(shards[number * len(shards) // count].image)
    mean, square = sums / count
    std = np.sqrt(np.maximum(square - mean**2, 0))
    red, green, blue = zip(mean.tolist(), std.tolist(), strict=True)
    return PixelStats((red[0], green[0], blue[0]), (red[1], green[1], blue[1]), count)


def moments(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return mean and mean square of each channel [2, 3] in [0, 1] from an image [H, W, 3] uint8."""
    counts = np.stack([np.bincount(image[:, :, channel].ravel(), minlength=256) for channel in range(3)])  # [3, 256]
    values = np.arange(256) / 255
    pixels = image.shape[0] * image.shape[1]
    return np.stack([counts @ values, counts @ values**2]) / pixels
