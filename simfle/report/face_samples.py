"""Faces for the images of a report, and the parts of its figures."""

# N faces
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shards.format.manifest import Manifest, read_manifest
from shards.sources.synthetic.procedural import draw, list_entry
from simfle.data.backends.jpeg_header import decode
from simfle.data.dataset import ShardCorpus
from simfle.errors import UserError
from simfle.eval.features.resize import resize

Image = NDArray[np.uint8]
QUERIES, GALLERY, HELDOUT = 6, 600, 400  # number of query, searched and held-out faces
TILE = 96  # pixels
SYNTHETIC = "procedural"  # corpus whose faces are no personal data
SIDE = 128  # of synthetic faces, in pixels


@dataclass(frozen=True)
class TileImage:
    """PNG or JPEG with its text alternative."""

    data: bytes
    alt: str

    @property
    def kind(self) -> str:
        """Return the file's type: png or jpeg."""
        return "png" if self.data.startswith(b"\x89PNG") else "jpeg"


@dataclass(frozen=True)
class Tile:
    """Images side by side with one caption. wide: use the full width of the page."""

    images: list[TileImage]
    caption: str
    wide: bool = False


@dataclass(frozen=True)
class Chart:
    """Chart with its caption. svg: markup; small: of a baseline."""

    title: str
    svg: str
    caption: str
    small: bool = False


@dataclass(frozen=True)
class ReportFigure:
    """Images or charts of one kind of one run; about: explanation for the reader."""

    title: str
    about: str
    tiles: list[Tile] = field(default_factory=list)
    charts: list[Chart] = field(default_factory=list)


@dataclass(frozen=True)
class FaceBatch:
    """Decoded images [H, W, 3] RGB with their metadata from the shards. groups: people, "" if unknown."""

    images: list[Image]
    labels: list[int | None]
    groups: list[str]
    classes: tuple[str, ...]

    @cached_property
    def digests(self) -> list[bytes]:
        """Return a hash of each image, by which exact copies are found."""
        return [sha256(image.tobytes() + repr(image.shape).encode()).digest() for image in self.images]

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
    """Faces for the images.

    queries: a few; gallery: many to search and to fit classifiers on, empty for synthetic faces; heldout: many of the
    queries' split; manifests: of the shards.
    """

    queries: FaceBatch
    gallery: FaceBatch
    heldout: FaceBatch
    manifests: list[Manifest]

    @property
    def is_synthetic(self) -> bool:
        """Return whether all faces were drawn by this program."""
        return all(each.corpus == SYNTHETIC for each in self.manifests)

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
    heldout = _read(shards, asked, HELDOUT)
    queries = pick_faces(heldout, _one_of_each(heldout))
    gallery = _read(shards, searched, GALLERY)
    if not queries.images:
        raise UserError(
            f"report: {', '.join(map(str, shards))} contain no decodable image. Fix: run simfle shards verify."
        )
    return FaceSet(queries, gallery, heldout, manifests)


def synthetic_faces() -> FaceSet:
    """Draw query faces of the procedural corpus, each of another person and expression; nothing to search."""
    entries = [list_entry(0, person, person, SIDE) for person in range(QUERIES)]
    names = tuple(sorted({str(entry.label) for entry in entries}))
    images = [decode(np.frombuffer(draw(0, person, person, SIDE), np.uint8)) for person in range(QUERIES)]
    labels: list[int | None] = [names.index(str(entry.label)) for entry in entries]
    groups = [entry.group or "" for entry in entries]
    batch = FaceBatch([image for image in images if image is not None], labels, groups, names)
    return FaceSet(batch, pick_faces(batch, []), batch, [])


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


def png(image: Image, alt: str) -> TileImage:
    return TileImage(_encode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, 9]), alt)


def jpeg(image: Image, alt: str) -> TileImage:
    return TileImage(_encode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 88]), alt)


def _encode(ending: str, image: Image, options: list[int]) -> bytes:
    done, data = cv2.imencode(ending, cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)
    if not done:
        raise RuntimeError(f"OpenCV could not encode an image as {ending}")
    return data.tobytes()
