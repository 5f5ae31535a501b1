"""View parameters: crop, flip, color and blur of each sample, a pure function of (seed, epoch, sample id, view).

Backends (OpenCV, DALI) use no random numbers. They apply these parameters, so all backends compute the same views, for
any batch size and any number of processes.

Crop, flip and ranges are torchvision's RandomResizedCrop, RandomHorizontalFlip and ColorJitter. The color operations
(brightness, contrast, saturation, hue, in a random order, then grayscale) are each linear in the pixel and in the mean
color of the view, so their chain is one affine transform: with x a pixel and m the mean pixel of the resized crop,

    out = M x + A m,   rounded and clipped to 0 ... 255 once, at the end.

Unlike torchvision, nothing is clipped between the operations, and hue rotates the I-Q plane of YIQ (as DALI's hue does)
instead of the hue of HSV.
"""

# n samples
import itertools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from simfle.config.schema import ViewsConfig
from simfle.config.validate import validate
from simfle.data.philox import GROUP, VIEW, key, philox, uniform

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]

ATTEMPTS = 10  # number of RandomResizedCrop's attempts before it falls back to a central crop
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
LUMA = np.array([0.299, 0.587, 0.114])  # weights of red, green, blue in luma (ITU-R BT.601), Y of YIQ
YIQ = np.array([LUMA, [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
_TO_GRAY = np.tile(LUMA, (3, 1))  # [3, 3], every row is GRAY
_FROM_YIQ = np.linalg.inv(YIQ)
_ORDERS = np.array(list(itertools.permutations(range(4))))  # [24, 4]
_BLOCKS = 8  # blocks of four words; the words of one view, by position:
_AREA, _RATIO, _PLACE, _FLIP, _JITTER, _ORDER, _FACTORS, _GRAYSCALE, _SIGMA = 0, 10, 20, 22, 23, 24, 25, 29, 30


@dataclass(frozen=True)
class ViewParams:
    """Parameters of one view of n samples.

    areas, ratios: [n, 10], the crop's fraction of the image area and its width/height, one per attempt;
    place: [n, 2] in [0, 1), position of the crop in the free space to its right and below; flip: [n];
    jitter: [n], whether factors [n, 4] (brightness, contrast, saturation; hue in turns) are applied, in the order
    `order` [n, 4] (of BRIGHTNESS ... HUE); grayscale: [n]; matrix M, mean_matrix A: [n, 3, 3], the combined transform;
    sigma: [n], sigma of the Gaussian blur in pixels.
    """

    areas: Floats
    ratios: Floats
    place: Floats
    flip: Flags
    jitter: Flags
    factors: Floats
    order: Ints
    grayscale: Flags
    matrix: Floats
    mean_matrix: Floats
    sigma: Floats


@dataclass(frozen=True)
class BatchViewParams:
    """All random parameters of n samples: their two views, and group [n] in [0, 1) (`Batch.mask_uniform`)."""

    views: tuple[ViewParams, ViewParams]
    group: Floats


def check(views: ViewsConfig) -> None:
    """Raise UserError for the first field out of range."""
    validate(views, "views")


def sample_view_params(seed: int, epochs: ArrayLike, ids: ArrayLike, views: ViewsConfig) -> BatchViewParams:
    """Sample the view parameters of the samples `ids` [n] in `epochs` ([n] or one for all).

    Args:
        seed: seed of the run.
        epochs: epoch of each sample, or one for all.
        ids: global sample ids [n].
        views: ranges and probabilities.

    Raises:
        UserError: If the seed or a field of `views` is out of range.
    """
    check(views)
    samples = np.asarray(ids, dtype=np.int64).astype(np.uint64)
    counter = np.zeros((len(samples), 2, _BLOCKS, 4), dtype=np.uint32)
    counter[..., 0] = samples.astype(np.uint32)[:, None, None]  # the lower 32 bits
    counter[..., 1] = (samples >> np.uint64(32)).astype(np.uint32)[:, None, None]
    counter[..., 2] = np.broadcast_to(np.asarray(epochs), samples.shape)[:, None, None]
    counter[..., 3] = (np.arange(2)[:, None] << 16) + np.arange(_BLOCKS)
    words = uniform(philox(counter.reshape(-1, 4), key(seed, VIEW)))
    words = words.reshape(len(samples), 2, 4 * _BLOCKS)  # [n, view, word]
    group = uniform(philox(counter[:, 0, 0], key(seed, GROUP))[:, 0])
    return BatchViewParams((_view(words[:, 0], views), _view(words[:, 1], views)), group)


def crop_boxes(view: ViewParams, heights: ArrayLike, widths: ArrayLike, ratio: ArrayLike) -> Ints:
    """Return crop boxes [n, 4] (x, y, width, height) in images of these sizes [n]; `ratio` is `ViewsConfig.ratio`.

    A box is the first of the ten attempts that fits, or the largest central crop with a ratio in range, as in
    torchvision.
    """
    height = np.asarray(heights, dtype=np.int64)[:, None]
    width = np.asarray(widths, dtype=np.int64)[:, None]
    area = view.areas * (height * width)  # [n, 10]
    tried_w = np.rint(np.sqrt(area * view.ratios)).astype(np.int64)
    tried_h = np.rint(np.sqrt(area / view.ratios)).astype(np.int64)
    fits = (tried_w > 0) & (tried_w <= width) & (tried_h > 0) & (tried_h <= height)
    first = fits.argmax(axis=1)[:, None]
    found = fits.any(axis=1)
    height, width = height[:, 0], width[:, 0]
    low, high = np.asarray(ratio, dtype=np.float64)
    central_w = np.where(width / height > high, np.rint(height * high).astype(np.int64), width)
    central_h = np.where(width / height < low, np.rint(width / low).astype(np.int64), height)
    w = np.where(found, np.take_along_axis(tried_w, first, 1)[:, 0], central_w)
    h = np.where(found, np.take_along_axis(tried_h, first, 1)[:, 0], central_h)
    x = np.where(found, np.floor(view.place[:, 0] * (width - w + 1)).astype(np.int64), (width - w) // 2)
    y = np.where(found, np.floor(view.place[:, 1] * (height - h + 1)).astype(np.int64), (height - h) // 2)
    return np.stack([x, y, w, h], axis=1)


def blur_window(sigma: float) -> int:
    """Return the number of taps of a Gaussian: three sigmas to each side contain 99.7 % of it."""
    return 2 * math.ceil(3 * sigma) + 1


def _view(words: Floats, views: ViewsConfig) -> ViewParams:
    """Map uniform words [n, 32] to the parameters of one view."""

    def between(limits: ArrayLike, word: Floats) -> Floats:
        low, high = np.asarray(limits, dtype=np.float64)
        return low + (high - low) * word

    spread = np.array([views.brightness, views.contrast, views.saturation])
    factors = np.empty((len(words), 4))
    factors[:, :HUE] = between([np.maximum(0, 1 - spread), 1 + spread], words[:, _FACTORS : _FACTORS + HUE])
    factors[:, HUE] = between([-views.hue, views.hue], words[:, _FACTORS + HUE])
    jitter = words[:, _JITTER] < views.color_jitter_prob
    order = _ORDERS[np.floor(words[:, _ORDER] * len(_ORDERS)).astype(np.int64)]
    grayscale = words[:, _GRAYSCALE] < views.grayscale_prob
    matrix, mean_matrix = color_matrices(jitter, factors, order, grayscale)
    return ViewParams(
        areas=between(views.scale, words[:, _AREA : _AREA + ATTEMPTS]),
        ratios=np.exp(between(np.log(views.ratio), words[:, _RATIO : _RATIO + ATTEMPTS])),
        place=words[:, _PLACE : _PLACE + 2],
        flip=words[:, _FLIP] < views.flip_prob,
        jitter=jitter,
        factors=factors,
        order=order,
        grayscale=grayscale,
        matrix=matrix,
        mean_matrix=mean_matrix,
        sigma=between(views.blur_sigma, words[:, _SIGMA]),
    )


def color_matrices(jitter: Flags, factors: Floats, order: Ints, grayscale: Flags) -> tuple[Floats, Floats]:
    """Return M and A, both [n, 3, 3], of the chain of color operations: out = M x + A m, pixel x, mean pixel m.

    One operation is S y + P mean(y). On y = M x + A m, whose mean is (M + A) m, it gives S M x + (S A + P (M + A)) m.
    """
    n = len(jitter)
    f = factors[:, :, None, None]  # [n, 4, 1, 1]
    eye = np.eye(3)
    pixel = np.empty((n, 4, 3, 3))  # S of each operation
    pixel[:, BRIGHTNESS] = f[:, BRIGHTNESS] * eye
    pixel[:, CONTRAST] = f[:, CONTRAST] * eye
    pixel[:, SATURATION] = f[:, SATURATION] * eye + (1 - f[:, SATURATION]) * _TO_GRAY
    pixel[:, HUE] = _hue(factors[:, HUE])
    mean = np.zeros((n, 4, 3, 3))  # P of each operation: only contrast uses the mean
    mean[:, CONTRAST] = (1 - f[:, CONTRAST]) * _TO_GRAY
    pixel[~jitter], mean[~jitter] = eye, 0
    matrix, mean_matrix = np.tile(eye, (n, 1, 1)), np.zeros((n, 3, 3))
    each = np.arange(n)
    for turn in range(4):
        s, p = pixel[each, order[:, turn]], mean[each, order[:, turn]]
        matrix, mean_matrix = s @ matrix, s @ mean_matrix + p @ (matrix + mean_matrix)
    last = np.where(grayscale[:, None, None], _TO_GRAY, eye)
    return last @ matrix, last @ mean_matrix


def _hue(turns: Floats) -> Floats:
    """Return rotations [n, 3, 3] of the I-Q plane by hue shifts [n]; positive turns red towards green, as in HSV."""
    turn = np.zeros((len(turns), 3, 3))
    turn[:, 0, 0] = 1
    turn[:, 1, 1] = turn[:, 2, 2] = np.cos(2 * np.pi * turns)
    turn[:, 1, 2] = np.sin(2 * np.pi * turns)
    turn[:, 2, 1] = -turn[:, 1, 2]
    return _FROM_YIQ @ turn @ YIQ
