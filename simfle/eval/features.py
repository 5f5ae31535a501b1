"""Features of images: decoded on threads, resized (or cropped and flipped), through a frozen backbone."""

# n samples, b of a batch, S side, C channels
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from simfle.config import ViewsConfig
from simfle.data import views
from simfle.errors import UserError
from simfle.eval.backbones import Backbone
from simfle.eval.splits import Split

Ints = NDArray[np.int64]
Image = NDArray[np.uint8]


@dataclass(frozen=True)
class Extractor:
    """How images become features: side in pixels, images per forward pass, where, on how many decoding threads."""

    size: int
    batch: int
    device: torch.device
    threads: int

    def images(self, split: Split, rows: Ints, crop: "Crop | None" = None) -> Iterator[Tensor]:
        """The images of `rows` of a split in batches [b, 3, S, S] uint8; whole, or cropped and flipped."""
        with ThreadPoolExecutor(self.threads) as pool:
            waiting = None
            for start in range(0, len(rows), self.batch):
                chosen = rows[start : start + self.batch]
                draws = crop.draw(split.ids[chosen]) if crop else None
                jobs = [
                    pool.submit(_image, split, int(row), self.size, crop, draws, place)
                    for place, row in enumerate(chosen)
                ]
                if waiting is not None:  # the threads decode the next batch while the backbone works on this one
                    yield self._stack(waiting)
                waiting = jobs
            if waiting is not None:
                yield self._stack(waiting)

    def _stack(self, jobs: list) -> Tensor:
        batch = np.stack([job.result() for job in jobs])  # [b, S, S, 3]
        return torch.from_numpy(batch).permute(0, 3, 1, 2).to(self.device)  # [b, 3, S, S], channels_last

    def features(self, backbone: Backbone, split: Split, rows: Ints, crop: "Crop | None" = None) -> Iterator[Tensor]:
        """Features of `rows` in batches [b, C] float32."""
        for images in self.images(split, rows, crop):
            yield backbone.module(images).float()

    def all(self, backbone: Backbone, split: Split) -> Tensor:
        """Features [n, C] float32 of the whole, un-augmented split, on the device."""
        found = torch.cat(list(self.features(backbone, split, np.arange(len(split)))))
        if not torch.isfinite(found).all():
            raise UserError(
                f"backbone: {backbone.card.name} gives features that are not finite on split {split.name!r}"
            )
        return found


@dataclass(frozen=True)
class Crop:
    """RandomResizedCrop and flip of one epoch, a pure function of (seed, epoch, sample id)."""

    seed: int
    epoch: int
    scale: tuple[float, float]
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def draw(self, ids: Ints) -> views.View:
        """Parameters of the samples `ids` [n]."""
        config = ViewsConfig(scale=list(self.scale), ratio=list(self.ratio))
        return views.draw(self.seed, self.epoch, ids, config).views[0]

    def box(self, draws: views.View, place: int, height: int, width: int) -> tuple[int, int, int, int]:
        """x, y, width, height of one sample's crop."""
        one = views.View(**{name: value[place : place + 1] for name, value in vars(draws).items()})
        x, y, w, h = views.boxes(one, [height], [width], self.ratio)[0].tolist()
        return x, y, w, h


def _image(split: Split, row: int, size: int, crop: Crop | None, draws: views.View | None, place: int) -> Image:
    """One image [S, S, 3] RGB uint8."""
    shard, sample = int(split.shards[row]), int(split.samples[row])
    image = cv2.imdecode(split.corpus.image(shard, sample), cv2.IMREAD_COLOR_RGB)
    if image is None:
        raise UserError(f"shards: {split.corpus.tar(shard)}: {split.keys[row]} cannot be decoded; verify the shards")
    flip = False
    if crop is not None and draws is not None:
        x, y, w, h = crop.box(draws, place, *image.shape[:2])
        image, flip = image[y : y + h, x : x + w], bool(draws.flip[place])
    shrinks = image.shape[0] >= size and image.shape[1] >= size
    resized = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return np.ascontiguousarray(resized[:, ::-1] if flip else resized, dtype=np.uint8)
