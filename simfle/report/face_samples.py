"""Faces for the images of a report, and layout of these images."""

# N faces
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shards.format.manifest import Manifest, read_manifest
from simfle.data.backends.jpeg_header import decode
from simfle.data.dataset import ShardCorpus
from simfle.errors import UserError
from simfle.eval.features.resize import resize

Image = NDArray[np.uint8]
QUERIES, GALLERY = 6, 600  # numbers of query faces and of searched faces
TILE, GAP, PER_ROW = 96, 4, 8  # side of a tile and gap in pixels, tiles per row


@dataclass(frozen=True)
class Tile:
    """Image with its caption. data: PNG or JPEG; wide: use the full width of the page."""

    data: bytes
    caption: str
    wide: bool = False

    @property
    def kind(self) -> str:
        """Return the file's type: png or jpeg."""
        return "png" if self.data.startswith(b"\x89PNG") else "jpeg"


@dataclass(frozen=True)
class ReportFigure:
    """Images of one kind of one run; about: explanation for the reader."""

    title: str
    about: str
    tiles: list[Tile]


@dataclass(frozen=True)
class FaceBatch:
    """Decoded images [H, W, 3] RGB with their metadata from the shards. groups: people, "" if unknown."""

    images: list[Image]
    labels: list[int | None]
    groups: list[str]
    classes: tuple[str, ...]

    def named(self, place: int) -> str:
        """Return the label of one face as text."""
        label = self.labels[place]
        return "no label" if label is None else self.classes[label]

    def tensor(self, side: int) -> Tensor:
        """Return [N, 3, side, side] uint8."""
        resized = [resize(image, side) for image in self.images]
        return torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).contiguous()


@dataclass(frozen=True)
class FaceSet:
    """Faces for the images: a few as queries, and many to search and to fit classifiers on."""

    queries: FaceBatch
    gallery: FaceBatch
    manifests: list[Manifest]

    def source(self) -> str:
        """Return the corpora and their terms."""
        return "; ".join(f"{each.corpus} (terms: {each.terms or 'none stated'})" for each in self.manifests)


def read_face_set(shards: Sequence[str]) -> FaceSet:
    """Select the same faces for every run: queries from test or validation, the gallery from training.

    Raises:
        UserError: If shards are missing or corrupt, or contain no decodable image.
    """
    manifests = [read_manifest(folder) for folder in shards]
    splits = list(dict.fromkeys(name for each in manifests for name in each.splits))
    asked = next((name for name in ("test", "val") if name in splits), splits[0])
    searched = "train" if "train" in splits else splits[0]
    candidates = _read(shards, asked, QUERIES * 8)
    queries = pick_faces(candidates, _one_of_each(candidates))
    gallery = _read(shards, searched, GALLERY)
    if not queries.images:
        raise UserError(
            f"report: {', '.join(map(str, shards))} contain no decodable image. Fix: run simfle shards verify."
        )
    return FaceSet(queries, gallery, manifests)


def _read(shards: Sequence[str], split: str, most: int) -> FaceBatch:
    """Select up to `most` images, evenly spaced over a split."""
    corpus = ShardCorpus(list(shards), [split])
    images, labels, groups = [], [], []
    for number in np.unique(np.linspace(0, len(corpus) - 1, min(most, len(corpus))).astype(int)):
        shard = int(np.searchsorted(np.cumsum(corpus.counts), number, side="right"))
        sample = int(number - sum(corpus.counts[:shard]))
        pixels = decode(corpus.read_image(shard, sample))
        if pixels is not None:
            images.append(pixels)
            labels.append(corpus.label(shard, sample))
            groups.append(str(corpus.metadata(shard, sample).get("group") or ""))
    return FaceBatch(images, labels, groups, corpus.labels)


def _one_of_each(faces: FaceBatch) -> list[int]:
    """Select up to QUERIES positions, spread over the classes."""
    by_class: dict[int | None, list[int]] = {}
    for place, label in enumerate(faces.labels):
        by_class.setdefault(label, []).append(place)
    rounds = [(turn, place) for places in by_class.values() for turn, place in enumerate(places)]
    return [place for _, place in sorted(rounds)][:QUERIES]


def pick_faces(faces: FaceBatch, places: Sequence[int]) -> FaceBatch:
    images, labels, groups = faces.images, faces.labels, faces.groups
    return FaceBatch(
        [images[place] for place in places],
        [labels[place] for place in places],
        [groups[place] for place in places],
        faces.classes,
    )


def enlarge(image: Image, height: int = TILE) -> Image:
    """Enlarge to at least `height` pixels by an integer factor, which keeps patch edges sharp."""
    factor = max(1, round(height / image.shape[0]))
    return image.repeat(factor, 0).repeat(factor, 1)


def grid(images: Sequence[Image]) -> Image:
    """Arrange images of equal size on white, PER_ROW per row."""
    side = images[0].shape[0]
    columns = min(PER_ROW, len(images))
    rows = -(-len(images) // columns)
    sheet = np.full((rows * (side + GAP) - GAP, columns * (side + GAP) - GAP, 3), 255, np.uint8)
    for place, image in enumerate(images):
        top, left = (place // columns) * (side + GAP), (place % columns) * (side + GAP)
        sheet[top : top + side, left : left + side] = image
    return sheet


def beside(first: Image, sheet: Image) -> Image:
    """Place an image left of another one, with twice the gap between them."""
    column = np.full((len(sheet), first.shape[1] + 2 * GAP, 3), 255, np.uint8)
    column[: len(first), : first.shape[1]] = first
    return np.concatenate([column, sheet], axis=1)


def png(image: Image) -> bytes:
    return _encode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, 9])


def jpeg(image: Image) -> bytes:
    return _encode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 88])


def _encode(ending: str, image: Image, options: list[int]) -> bytes:
    done, data = cv2.imencode(ending, cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)
    if not done:
        raise RuntimeError(f"OpenCV could not encode an image as {ending}")
    return data.tobytes()
