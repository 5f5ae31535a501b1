"""Time several variants of making three views of the same JPEGs with the same parameters."""

# n images
import io
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from shards.errors import UserError
from simfle.bench.timing import Variant
from simfle.config.schema import ViewsConfig
from simfle.data.backends.base import ViewBackend
from simfle.data.backends.dali import Dali
from simfle.data.backends.opencv import OpenCV
from simfle.data.loader import has_dali
from simfle.data.views import ViewParams, crop_boxes, sample_view_params

Pixels = NDArray[np.uint8]
_process: dict[str, Variant] = {}  # variants in a process of `_apart`
TAPS = 23  # taps of the paper's Gaussian blur
REFERENCE = "plain"


def read_images(folder: Path | None, count: int) -> list[Pixels]:
    """Read files of a folder as bytes [size] uint8, evenly spread; without a folder, synthetic faces."""
    if folder is None:
        from shards.sources.synthetic.procedural import draw as draw_face

        drawn = [np.frombuffer(draw_face(0, person, 0, 224), dtype=np.uint8) for person in range(min(count, 64))]
        return [drawn[number % len(drawn)] for number in range(count)]
    from shards.sources.generic.folder import walk

    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder. Fix: pass a folder of JPEGs.")
    names = [name for name in walk(folder) if Path(name).suffix.lower() in (".jpg", ".jpeg")]
    if not names:
        raise UserError(f"no JPEGs in {folder}. Fix: pass a folder of JPEGs.")
    chosen = [names[number * len(names) // count] for number in range(count)]
    return [np.frombuffer((folder / name).read_bytes(), dtype=np.uint8) for name in chosen]


def variants(
    images: Sequence[Pixels], views: ViewsConfig, threads: Sequence[int], device: torch.device
) -> dict[str, Variant]:
    """Return all variants, including the backends' limits. Each repetition makes the views of all images."""
    usual = "PIL decoding and torchvision's operations on PIL images, one thread"
    found = {REFERENCE: Variant(usual, len(images), lambda: reference_views(images, views))}
    for number in threads:
        text = f"{number} thread{'s' * (number > 1)}"
        found[f"opencv {number}"] = _backend(f"the default without a GPU, {text}", images, views, OpenCV(views, number))
        if number > 1:
            found[f"apart {number}"] = _apart(images, views, number)
        if has_dali():
            dali = Dali(views, number, len(images), torch.device("cpu"))
            found[f"dali {number}"] = _backend(f"DALI in CPU mode, {text}", images, views, dali)
        found[f"decode {number}"] = Variant(
            f"libjpeg-turbo (simplejpeg) alone, {text}", len(images), _decoding(images, number)
        )
    if has_dali() and device.type == "cuda":
        dali = Dali(views, max(threads), len(images), device)
        found["dali gpu"] = _backend("DALI on the GPU", images, views, dali)
    found["copy"] = Variant("copy of bytes of the three views' size", len(images), _copying(images, views))
    return found


def _backend(what: str, images: Sequence[Pixels], views: ViewsConfig, backend: ViewBackend) -> Variant:
    """Work like the loader: sample parameters, then render."""

    def run() -> None:
        backend.render(images, sample_view_params(0, 0, range(len(images)), views))

    return Variant(what, len(images), run)


def _apart(images: Sequence[Pixels], views: ViewsConfig, number: int) -> Variant:
    """Use as many independent processes as threads, which is the upper bound for threads on this machine."""
    pools = [ProcessPoolExecutor(1, get_context("spawn"), _begin, (images[k::number], views)) for k in range(number)]

    def run() -> None:
        for done in [pool.submit(_turn) for pool in pools]:
            done.result()

    return Variant(f"the default without a GPU, {number} processes of 1 thread", len(images), run, apart=True)


def _begin(images: Sequence[Pixels], views: ViewsConfig) -> None:
    torch.set_num_threads(1)
    _process["way"] = _backend("", images, views, OpenCV(views, 1))


def _turn() -> None:
    _process["way"].run()


def reference_views(images: Sequence[Pixels], views: ViewsConfig) -> list[tuple[torch.Tensor, ...]]:
    """Work like a typical data set's __getitem__, with the same crops, factors and sigmas; tensors uint8 [3, S, S]."""
    draws = sample_view_params(0, 0, range(len(images)), views)
    made = []
    for i, data in enumerate(images):
        with Image.open(io.BytesIO(data.tobytes()), formats=["JPEG"]) as file:
            image = file.convert("RGB")
        views_of = [_reference_view(image, view, i, views) for view in draws.views]
        made.append((*views_of, _reference_face(image, views.face_size)))
    return made


def _reference_view(image: Image.Image, view: ViewParams, i: int, views: ViewsConfig) -> torch.Tensor:
    from torchvision.transforms import functional as F

    one = ViewParams(**{name: value[i : i + 1] for name, value in vars(view).items()})
    x, y, w, h = crop_boxes(one, [image.height], [image.width], views.ratio)[0].tolist()
    out: Any = F.resized_crop(image, y, x, h, w, [views.size, views.size])
    if view.flip[i]:
        out = F.hflip(out)
    adjust = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)
    for operation in view.order[i] if view.jitter[i] else ():
        out = adjust[operation](out, float(view.factors[i, operation]))
    if view.grayscale[i]:
        out = F.rgb_to_grayscale(out, num_output_channels=3)
    return F.pil_to_tensor(F.gaussian_blur(out, [TAPS, TAPS], [float(view.sigma[i])] * 2))


def _reference_face(image: Image.Image, side: int) -> torch.Tensor:
    from torchvision.transforms import functional as F

    return F.pil_to_tensor(F.resize(image, [side, side]))


def _decoding(images: Sequence[Pixels], threads: int) -> Callable[[], object]:
    import simplejpeg

    pool = ThreadPoolExecutor(threads) if threads > 1 else None

    def one(image: Pixels) -> None:
        simplejpeg.decode_jpeg(image, "GRAY" if simplejpeg.decode_jpeg_header(image)[2] == "Gray" else "RGB")

    return lambda: list(pool.map(one, images) if pool else map(one, images))


def _copying(images: Sequence[Pixels], views: ViewsConfig) -> Callable[[], object]:
    size = 3 * (2 * views.size**2 + views.face_size**2)
    source = np.ones(size, dtype=np.uint8)
    target = np.zeros((len(images), size), dtype=np.uint8)

    def run() -> None:
        for row in target:
            np.copyto(row, source)

    return run
