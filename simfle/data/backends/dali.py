"""Render views with NVIDIA DALI: one graph, on a GPU (which also decodes JPEGs) or on the CPU (for tests).

The graph uses no random numbers: boxes, color matrices and sigmas are inputs. Each stage computes the same as
simfle/data/backends/opencv.py.
"""

# n samples, S side of a view, F side of the face
import importlib
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from simfle.config.schema import ViewsConfig
from simfle.data.backends.base import CORRUPT, IMAGES, RenderedViews
from simfle.data.backends.jpeg_header import sizes
from simfle.data.views import BatchViewParams, ViewParams, blur_window, crop_boxes
from simfle.errors import UserError

Pixels = NDArray[np.uint8]
# Parts of error messages about exhausted GPU or host memory. Such errors are not caused by an image.
OUT_OF_MEMORY = ("out of memory", "allocat", "cudaerror", "cuda runtime", "cuda driver")
BLANK = 8  # side of the placeholder for a corrupt image, pixels


class Dali:
    """Render micro-batches of up to `batch` samples on `device`, with `threads` CPU threads.

    On a GPU, the views are stored in memory that torch has allocated. images: the requested outputs.

    Raises:
        UserError: If DALI is not installed.
    """

    def __init__(
        self,
        views: ViewsConfig,
        threads: int,
        batch: int,
        device: torch.device,
        *,
        images: Sequence[str] = IMAGES,
    ) -> None:
        _import()
        self.views, self.threads, self.batch = views, threads, batch
        self.images = [name for name in IMAGES if name in images]
        self.gpu = None  # index of the GPU
        if device.type == "cuda":
            self.gpu = torch.cuda.current_device() if device.index is None else device.index
            self._stream = torch.cuda.Stream(self.gpu)
            self._done = torch.cuda.Event(blocking=True)  # otherwise the wait would keep a core busy
        self._pipeline = self._build()

    def render(self, images: Sequence[Pixels], draws: BatchViewParams) -> RenderedViews:
        """Render views and faces of n JPEGs [bytes] uint8 with their parameters."""
        shape, good = sizes(images)
        try:
            return self._run(images, shape, draws, good)
        except RuntimeError as error:
            if any(word in str(error).lower() for word in OUT_OF_MEMORY):
                raise
            # One image that DALI cannot decode fails the whole batch and makes the pipeline unusable.
            self.close()
            decodable = self._decodable(images, good)
            if (decodable == good).all():
                raise
            self._pipeline = self._build()
        return self._run(images, shape, draws, decodable)

    def close(self) -> None:
        """Free the pipeline and its device memory."""
        self._pipeline = None

    def _build(self) -> Any:
        dali = _import()
        pipeline = dali.Pipeline(self.batch, self.threads, self.gpu, prefetch_queue_depth=1)
        with pipeline:
            pipeline.set_outputs(*_graph(self.views, self.images, on_gpu=self.gpu is not None))
        pipeline.build()
        return pipeline

    def _run(
        self, images: Sequence[Pixels], shape: NDArray[np.int64], draws: BatchViewParams, good: NDArray[np.bool_]
    ) -> RenderedViews:
        blank = _blank()
        self._pipeline.feed_input("jpegs", [image if ok else blank for image, ok in zip(images, good, strict=True)])
        shape = np.where(good[:, None], shape, BLANK)  # DALI does not clamp boxes to the image
        for number, view in enumerate(draws.views):
            if IMAGES[number] not in self.images:
                continue
            box = crop_boxes(view, shape[:, 0], shape[:, 1], self.views.ratio)
            for name, value in _parameters(view, box).items():
                self._pipeline.feed_input(f"{name}{number}", value)
        corrupt = np.flatnonzero(~good).tolist()
        made = self._take(corrupt)
        none = torch.empty((len(images), 3, 0, 0), dtype=torch.uint8, device=next(iter(made.values())).device)
        view1, view2, face = (made.get(name, none) for name in IMAGES)
        return RenderedViews(view1, view2, face, corrupt)

    def _take(self, corrupt: list[int]) -> dict[str, Tensor]:
        """Run the pipeline; return images [n, 3, H, W] by name, as tensors that outlive its next run."""
        if self.gpu is None:  # no copy is needed: DALI keeps the memory until the tensor is freed
            made = [torch.from_dlpack(output.as_tensor()) for output in self._pipeline.run()]
        else:
            # DALI may reuse its memory when the host drops it, while the GPU still reads it. Copy on the stream of the
            # outputs, and wait once, without a busy loop, before dropping them.
            with torch.cuda.device(self.gpu), torch.cuda.stream(self._stream):
                outputs = self._pipeline.run(self._stream)
                made = [torch.from_dlpack(output.as_tensor()).clone() for output in outputs]
        for images in made if corrupt else []:
            with torch.cuda.stream(self._stream) if self.gpu is not None else nullcontext():
                images[corrupt] = CORRUPT
        if self.gpu is not None:
            self._done.record(self._stream)
            self._done.synchronize()
        return {name: images.permute(0, 3, 1, 2) for name, images in zip(self.images, made, strict=True)}

    def _decodable(self, images: Sequence[Pixels], good: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return which images [n] DALI can decode, tested one by one after a batch has failed."""
        found, pipeline = good.copy(), None
        for place in np.flatnonzero(good).tolist():
            try:
                pipeline = pipeline or self._decoder()
                pipeline.feed_input("jpegs", [images[place]])
                pipeline.run()
            except RuntimeError:
                found[place], pipeline = False, None  # a pipeline is unusable after an error
        return found

    def _decoder(self) -> Any:
        """Build a pipeline that only decodes one image."""
        pipeline = _import().Pipeline(1, 1, self.gpu, prefetch_queue_depth=1)
        with pipeline:
            pipeline.set_outputs(_decoded(on_gpu=self.gpu is not None))
        pipeline.build()
        return pipeline


def _import(name: str = "nvidia.dali") -> Any:
    """Import a module of DALI; typed as Any, because its operators and types are created on import."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(
            "data.backend=dali: not installed. Fix: pip install 'simfle[dali]', or set data.backend=opencv."
        ) from None


def _decoded(*, on_gpu: bool) -> Any:
    """Decode the bytes of input "jpegs" to RGB images [H, W, 3]: libjpeg upsampling, orientation tags ignored."""
    fn, types = _import("nvidia.dali.fn"), _import("nvidia.dali.types")
    # Otherwise the hardware decoder, whose pixels differ, decodes a part of each batch: pixels depend on the batch.
    where = {"device": "mixed", "hw_decoder_load": 0.0} if on_gpu else {"device": "cpu"}
    return fn.decoders.image(
        _input("jpegs", 1, types.UINT8),
        output_type=types.RGB,
        adjust_orientation=False,
        jpeg_fancy_upsampling=True,
        **where,
    )


def _graph(views: ViewsConfig, wanted: Sequence[str], *, on_gpu: bool) -> list[Any]:
    """Return the graph's outputs, those `wanted` of two views [S, S, 3] and the face [F, F, 3]."""
    fn, types = _import("nvidia.dali.fn"), _import("nvidia.dali.types")
    images = _decoded(on_gpu=on_gpu)
    outputs = []
    for number in range(2):
        if IMAGES[number] not in wanted:
            continue
        view = fn.resize(
            images,
            size=[views.size, views.size],
            roi_start=_input(f"start{number}", 1),
            roi_end=_input(f"end{number}", 1),
            antialias=True,
        )
        mean_matrix = _input(f"mean_matrix{number}", 2)  # A [3, 3]
        mean = fn.reductions.mean(view, axes=[0, 1])  # [S, S, 3] -> [3]
        shift = fn.reductions.sum((mean_matrix.gpu() if on_gpu else mean_matrix) * mean, axes=[1])  # A m [3], by rows
        # The shift is computed from pixels. The operator's argument T lies in host memory: using it would leave the
        # GPU.
        view = fn.coord_transform(view, M=_input(f"matrix{number}", 2), dtype=types.FLOAT) + shift
        view = fn.cast(view, dtype=types.UINT8)  # rounded, and clamped to 0 and 255
        taps = _input(f"taps{number}", 0, types.INT32)
        outputs.append(fn.gaussian_blur(view, sigma=_input(f"sigma{number}", 0), window_size=taps))
    if IMAGES[2] in wanted:
        outputs.append(fn.resize(images, size=[views.face_size, views.face_size], antialias=True))
    return outputs


def _input(name: str, ndim: int, dtype: Any = None) -> Any:
    fn, types = _import("nvidia.dali.fn"), _import("nvidia.dali.types")
    return fn.external_source(name=name, ndim=ndim, dtype=dtype or types.FLOAT)


def _parameters(view: ViewParams, box: NDArray[np.int64]) -> dict[str, NDArray]:
    """Return the inputs of `_graph` for one view, [n, ...] each. A flipped view is read from right to left."""
    x, y, w, h = box.T
    left, right = np.where(view.flip, x + w, x), np.where(view.flip, x, x + w)
    floats = {
        "start": np.stack([y, left], axis=1),
        "end": np.stack([y + h, right], axis=1),
        "matrix": view.matrix,
        "mean_matrix": view.mean_matrix,
        "sigma": view.sigma,
    }
    taps = np.array([blur_window(sigma) for sigma in view.sigma.tolist()], dtype=np.int32)
    return {"taps": taps} | {name: np.ascontiguousarray(value, dtype=np.float32) for name, value in floats.items()}


def _blank() -> Pixels:
    """Encode a placeholder JPEG for an unreadable image."""
    return cv2.imencode(".jpg", np.zeros((BLANK, BLANK, 3), np.uint8))[1]
