"""Images and features: decoded on threads, resized or augmented, passed through a frozen backbone, cached on disk."""

# n samples, b of a batch, S side, C channels, h x w feature map
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shards.io.hashing import digest
from simfle.config.schema import ViewsConfig
from simfle.data import views
from simfle.data.backends.base import used_here
from simfle.data.backends.jpeg_header import decode
from simfle.errors import UserError
from simfle.eval.backbones.load import LoadedBackbone
from simfle.eval.data.splits import Split, SplitSource
from simfle.eval.features import feature_cache
from simfle.eval.features.decoders import OPENCV, DecoderPool
from simfle.eval.features.resize import RULE, resize

Ints = NDArray[np.int64]
Image = NDArray[np.uint8]
DRAWN = 8192  # samples whose crops are computed at once
NO_BLUR = 0.01  # sigma in pixels of a Gaussian that leaves pixels unchanged


@dataclass(frozen=True)
class Augment:
    """RandomResizedCrop, flip and color jitter of one epoch, a pure function of (seed, epoch, sample id).

    scale: crop area range as fractions of the image area; jitter j: brightness, contrast and saturation from
    [1 - j, 1 + j], hue up to j / 4 turns (0 = none).
    """

    seed: int
    epoch: int
    scale: tuple[float, float]
    jitter: float = 0.0
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def draw(self, ids: Ints) -> views.ViewParams:
        """Sample the parameters of the samples `ids` [n]."""
        j = self.jitter
        config = ViewsConfig(
            scale=list(self.scale),
            ratio=list(self.ratio),
            color_jitter_prob=float(j > 0),
            brightness=j,
            contrast=j,
            saturation=j,
            hue=j / 4,
            grayscale_prob=0.0,
        )
        return views.sample_view_params(self.seed, self.epoch, ids, config).views[0]

    def box(self, draws: views.ViewParams, place: int, height: int, width: int) -> tuple[int, int, int, int]:
        """Return x, y, width, height of one sample's crop."""
        one = views.ViewParams(**{name: value[place : place + 1] for name, value in vars(draws).items()})
        x, y, w, h = views.crop_boxes(one, [height], [width], self.ratio)[0].tolist()
        return x, y, w, h


@dataclass(frozen=True)
class Extractor:
    """Feature extractor: image side in pixels, images per forward pass, device, decoding threads.

    cache: folder for features of complete, unaugmented sources (None = no cache); decoders: image decoders.
    """

    size: int
    batch: int
    device: torch.device
    threads: int
    cache: Path | None = None
    decoders: DecoderPool = field(default_factory=DecoderPool)

    def images(
        self, source: SplitSource, rows: Ints, augment: Augment | None = None, batch: int = 0
    ) -> Iterator[Tensor]:
        """Yield the images of `rows` of a source in batches [b, 3, S, S] uint8 on the device; complete or augmented."""
        batch = batch or self.batch
        decode = {"opencv": self._opencv, "ffcv": self._ffcv, "dali": self._dali}[self.decoders.name(source)]
        starts = range(0, len(rows), batch)
        for start, images in zip(starts, decode(source, rows, augment, batch), strict=True):
            if self.device.type == "cuda" and not images.is_cuda:
                images = images.pin_memory()  # noqa: PLW2901 - a copy from pageable memory would block the host
            there = images.permute(0, 3, 1, 2).to(self.device, non_blocking=True)  # [b, 3, S, S], channels_last
            if augment and augment.jitter:
                there = jitter(there, augment.draw(source.ids[rows[start : start + batch]]))
            yield there

    def _opencv(self, source: SplitSource, rows: Ints, augment: Augment | None, batch: int) -> Iterator[Tensor]:
        """Yield batches [b, S, S, 3] decoded with OpenCV, without color changes."""
        with ThreadPoolExecutor(self.threads) as pool:
            waiting: list = []
            for start in range(0, len(rows), batch):
                chosen = rows[start : start + batch]
                draws = augment.draw(source.ids[chosen]) if augment else None
                jobs = [
                    pool.submit(_image, source, int(row), self.size, augment, draws, place)
                    for place, row in enumerate(chosen)
                ]
                if waiting:  # decode the next batch while the backbone processes this one
                    yield torch.from_numpy(np.stack([job.result() for job in waiting]))
                waiting = jobs
            if waiting:
                yield torch.from_numpy(np.stack([job.result() for job in waiting]))

    def _ffcv(self, source: SplitSource, rows: Ints, augment: Augment | None, batch: int) -> Iterator[Tensor]:
        """Yield the same batches, read from a beton."""
        beton = self.decoders.open_ffcv(source, self.size, batch, self.threads)
        heights, widths = beton.heights[rows], beton.widths[rows]
        crops = np.zeros((len(rows), 6), np.int64)
        crops[:, 2], crops[:, 3], crops[:, 5] = widths, heights, augment is None
        if augment:
            for part in (slice(start, start + DRAWN) for start in range(0, len(rows), DRAWN)):
                draws = augment.draw(source.ids[rows[part]])
                crops[part, :4] = views.crop_boxes(draws, heights[part], widths[part], augment.ratio)
                crops[part, 4] = draws.flip
        done = 0
        for images, corrupt in beton.batches(rows, crops):
            if corrupt.any():
                raise _corrupt_error(source, int(rows[done + int(corrupt.argmax())]))
            done += len(images)
            yield images

    def _dali(self, source: SplitSource, rows: Ints, augment: Augment | None, batch: int) -> Iterator[Tensor]:
        """Yield the same batches from DALI's view graph, without colors and blur; complete images as for faces."""
        ratio = augment.ratio if augment else (1.0, 1.0)
        name = "view1" if augment else "face"
        dali, thread = self.decoders.dali(self.size, ratio, self.threads, batch, self.device, name)

        def made(chosen: Ints) -> Tensor:
            files = [source.corpus.read_image(int(source.shards[row]), int(source.samples[row])) for row in chosen]
            drawn = views.sample_view_params(0, 0, source.ids[chosen], dali.views)
            if augment:
                crop = _plain(augment.draw(source.ids[chosen]))
                drawn = replace(drawn, views=(crop, crop))
            rendered = dali.render(files, drawn)
            if rendered.corrupt:
                raise _corrupt_error(source, int(chosen[rendered.corrupt[0]]))
            return rendered.view1 if augment else rendered.face

        waiting = None
        for start in range(0, len(rows), batch):
            job = thread.submit(made, rows[start : start + batch])
            if waiting is not None:  # DALI makes the next batch while the backbone processes this one
                yield _taken(waiting)
            waiting = job
        if waiting is not None:
            yield _taken(waiting)

    def features(self, backbone: LoadedBackbone, split: Split, augment: Augment | None = None) -> Iterator[Tensor]:
        """Yield features of a split in batches [b, C] float32, without caching."""
        for images in self.images(split.source, split.rows, augment):
            with torch.no_grad():  # must not include the yield, where it would also apply to the caller
                found = backbone.module(images).float()
            check_finite(found, backbone, split.source)
            yield found

    def pooled(self, backbone: LoadedBackbone, split: Split, name: str) -> Tensor:
        """Return features [n, C] float32 of a split on the device; `name` identifies the weights."""
        return torch.from_numpy(self._whole(backbone, split, name, maps=False)[split.rows]).to(self.device)

    def maps(self, backbone: LoadedBackbone, split: Split, name: str) -> "Maps":
        """Return feature maps of a split."""
        return Maps(self._whole(backbone, split, name, maps=True), split.rows, self.device)

    def _whole(
        self, backbone: LoadedBackbone, split: Split, name: str, maps: bool
    ) -> "NDArray | feature_cache.FeatureRows":
        """Compute features of the complete source, so that one file serves every subset of it."""
        if self.cache is None:
            return np.concatenate(list(self._compute(backbone, split.source, maps)))
        kind = "maps" if maps else "pooled"
        about = [name, split.source.digest, self.size, kind, RULE]
        if (loader := self.decoders.name(split.source)) != OPENCV:  # pixels differ slightly between decoders
            about.append(loader)
        channels = backbone.card.features
        shape = (len(split.source), channels, None, None) if maps else (len(split.source), channels)
        file = self.cache / f"{digest(about)}.{kind}.npy"
        return feature_cache.cached_features(
            file, shape, np.float16 if maps else np.float32, self._compute(backbone, split.source, maps)
        )

    def _compute(self, backbone: LoadedBackbone, source: SplitSource, maps: bool) -> Iterator[NDArray]:
        for images in self.images(source, np.arange(len(source))):
            with torch.no_grad():
                found = backbone.module.maps(images) if maps else backbone.module(images)
            features = found.half() if maps else found.float()
            check_finite(features, backbone, source)  # half precision also overflows, at 65,504
            yield features.cpu().numpy()


@dataclass(frozen=True)
class Maps:
    """Feature maps of n samples, in half precision and, with a cache, on disk."""

    array: "NDArray[np.float16] | feature_cache.FeatureRows"
    rows: Ints
    device: torch.device

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, chosen: Ints) -> Tensor:
        """Return [b, C, h, w] float32 of the samples at the positions `chosen` [b], on the device."""
        return torch.from_numpy(self.array[self.rows[chosen]]).to(self.device).float()


def check_finite(features: Tensor, backbone: LoadedBackbone, source: SplitSource) -> None:
    """Raise UserError if a backbone's features [b, ...] are not finite, because no score would be valid."""
    if not torch.isfinite(features).all():
        raise UserError(
            f"backbone: {backbone.card.name} computes non-finite features on split {source.name!r}. "
            "Fix: use a backbone from a checkpoint with finite losses."
        )


def jitter(images: Tensor, draws: views.ViewParams) -> Tensor:
    """Change the colors of uint8 images [b, 3, S, S] to M x + A mean(x) each; see simfle.data.views."""
    matrix, mean_matrix = (
        torch.from_numpy(values).to(images.device, torch.float32) for values in (draws.matrix, draws.mean_matrix)
    )  # [b, 3, 3]
    pixels = images.float()
    shift = torch.einsum("bij,bj->bi", mean_matrix, pixels.mean((2, 3)))  # [b, 3]
    colored = torch.einsum("bij,bjhw->bihw", matrix, pixels) + shift[:, :, None, None]
    return colored.round_().clamp_(0, 255).to(torch.uint8)


def _taken(job: "Future[Tensor]") -> Tensor:
    """Make [b, S, S, 3] available to the current stream."""
    found = job.result()
    used_here(found)
    return found.permute(0, 2, 3, 1)


def _plain(crop: views.ViewParams) -> views.ViewParams:
    """Return the same crop and flip without color changes and with a blur that has no effect."""
    n = len(crop.flip)
    keep, drop = np.tile(np.eye(3), (n, 1, 1)), np.zeros((n, 3, 3))
    return replace(crop, matrix=keep, mean_matrix=drop, sigma=np.full(n, NO_BLUR))


def _corrupt_error(source: SplitSource, row: int) -> UserError:
    shard, sample = int(source.shards[row]), int(source.samples[row])
    name = f"{source.corpus.shard_location(shard)}: {source.corpus.key(shard, sample)}"
    return UserError(f"shards: {name} cannot be decoded. Fix: run simfle shards verify.")


def _image(
    source: SplitSource, row: int, size: int, augment: Augment | None, draws: views.ViewParams | None, place: int
) -> Image:
    """Return one image [S, S, 3] RGB uint8."""
    shard, sample = int(source.shards[row]), int(source.samples[row])
    image = decode(source.corpus.read_image(shard, sample))
    if image is None:
        raise _corrupt_error(source, row)
    if augment is None or draws is None:
        return resize(image, size)
    x, y, w, h = augment.box(draws, place, *image.shape[:2])
    image, flip = image[y : y + h, x : x + w], bool(draws.flip[place])
    shrinks = image.shape[0] >= size and image.shape[1] >= size
    resized = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return np.ascontiguousarray(resized[:, ::-1] if flip else resized, dtype=np.uint8)
