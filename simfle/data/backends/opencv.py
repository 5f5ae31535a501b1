"""Render views on CPU threads with OpenCV: decode once, then crop, resize, flip, color, blur; default without a GPU.

Each stage computes the same as the DALI graph, from the same parameters;
tests/unit/simfle/data/backends/test_parity.py bounds the differences between the two and to torchvision.
"""

# n samples, S side of a view, F side of the face
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from simfle.config.schema import ViewsConfig
from simfle.data.backends.base import CORRUPT, IMAGES, RenderedViews
from simfle.data.backends.jpeg_header import decode_strict, sizes
from simfle.data.views import BatchViewParams, ViewParams, blur_window, crop_boxes

Pixels = NDArray[np.uint8]


class OpenCV:
    """Render micro-batches on `threads` threads. Call `close` to end the threads.

    OpenCV's threads are disabled for the whole process, because samples are the better unit of parallel work.
    pin: allocate views in page-locked memory, from which a GPU copies without waiting. images: the requested outputs.
    """

    def __init__(self, views: ViewsConfig, threads: int, *, pin: bool = False, images: Sequence[str] = IMAGES) -> None:
        cv2.setNumThreads(1)
        self.views, self.pin = views, pin
        sides = zip(IMAGES, (views.size, views.size, views.face_size), strict=True)
        self._sides = [side if name in images else 0 for name, side in sides]
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads - 1, thread_name_prefix="opencv") if threads > 1 else None

    def render(self, images: Sequence[Pixels], draws: BatchViewParams) -> RenderedViews:
        """Render views and faces of n JPEGs [bytes] uint8 with their parameters."""
        n = len(images)
        view1, view2, face = (
            torch.empty((n, side, side, 3), dtype=torch.uint8, pin_memory=self.pin) for side in self._sides
        )
        outputs = view1.numpy(), view2.numpy(), face.numpy()  # the same memory
        shape, good = sizes(images)
        crops = [crop_boxes(view, shape[:, 0], shape[:, 1], self.views.ratio).tolist() for view in draws.views]

        def sample(i: int) -> bool:
            image = decode_strict(images[i]) if good[i] else None
            if image is None:
                for output in outputs:
                    output[i] = CORRUPT
                return False
            for view, crop, output in zip(draws.views, crops, outputs, strict=False):
                if output.size:
                    _view(image, crop[i], view, i, output[i])
            if outputs[2].size:
                _resize(image, self.views.face_size, outputs[2][i])
            return True

        done = [False] * n
        order = iter(range(n))  # each thread takes the next sample; a future per sample would wake this thread

        def work() -> None:
            for i in order:
                done[i] = sample(i)

        helpers = [self._pool.submit(work) for _ in range(self._threads - 1)] if self._pool else []
        work()
        for helper in helpers:
            helper.result()
        return RenderedViews(_nchw(view1), _nchw(view2), _nchw(face), [i for i in range(n) if not done[i]])

    def close(self) -> None:
        """End the threads."""
        if self._pool:
            self._pool.shutdown(wait=True, cancel_futures=True)


def _nchw(images: Tensor) -> Tensor:
    """Permute [n, H, W, 3] -> [n, 3, H, W] in channels_last memory, without a copy."""
    return images.permute(0, 3, 1, 2)


def _view(image: Pixels, box: Sequence[int], view: ViewParams, i: int, output: Pixels) -> None:
    """Render sample i's view of `image` [H, W, 3] into `output` [S, S, 3]."""
    x, y, w, h = box
    pixels = np.empty_like(output)
    _resize(image[y : y + h, x : x + w], len(output), pixels)
    if view.flip[i]:
        cv2.flip(pixels, 1, dst=pixels)
    if view.jitter[i] or view.grayscale[i]:
        pixels = _color(pixels, view.matrix[i], view.mean_matrix[i])
    sigma = float(view.sigma[i])
    taps = blur_window(sigma)
    cv2.GaussianBlur(pixels, (taps, taps), sigma, dst=output, borderType=cv2.BORDER_REFLECT_101)


def _color(pixels: Pixels, matrix: NDArray[np.float64], mean_matrix: NDArray[np.float64]) -> Pixels:
    """Compute M x + A mean(x), rounded and clipped. M has 10 fractional bits, so one in 30 values is off by 1."""
    shift = mean_matrix @ np.array(cv2.mean(pixels)[:3])
    return cv2.transform(pixels, np.column_stack([matrix, shift]))  # type: ignore[return-value]


def _resize(image: Pixels, side: int, output: Pixels) -> None:
    """Resize bilinearly with antialiasing, [H, W, 3] -> [side, side, 3], close to torchvision's.

    An axis that shrinks by a factor r is first blurred by a Gaussian that raises the variance of linear interpolation
    (1/6 pixel on average) to the variance r*r/6 of torchvision's triangle; 1/5 instead of 1/6 fits small factors
    better.
    This is closer to torchvision than INTER_AREA (mean difference 0.2-0.5 against 0.5-0.6 gray levels), and faster.
    """
    sigmas = [math.sqrt(max(0.0, (length / side) ** 2 - 1) / 5) for length in image.shape[:2]]
    if any(sigmas):
        taps_y, taps_x = (2 * math.ceil(2 * sigma) + 1 for sigma in sigmas)
        tiny = 1e-3  # sigma of an axis that does not shrink; OpenCV interprets 0 as "like the other axis"
        sigma_y, sigma_x = (max(sigma, tiny) for sigma in sigmas)
        image = cv2.GaussianBlur(  # type: ignore[assignment]
            image, (taps_x, taps_y), sigma_x, sigmaY=sigma_y, borderType=cv2.BORDER_REPLICATE
        )
    cv2.resize(image, (side, side), dst=output, interpolation=cv2.INTER_LINEAR)
