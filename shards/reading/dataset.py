"""Python access to shards: length, samples by position or key, iteration, a dataset for PyTorch data loaders."""

import bisect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.errors import UserError
from shards.format.external_tars import image_extension
from shards.format.index import Index
from shards.format.manifest import Manifest, read_manifest
from shards.format.samples import StoredSample, label_number, select_shards
from shards.format.shard_reader import open_tar, shard_index
from shards.imaging.codec import ImageRejected, decode_rgb
from shards.io.atomic import expand_home
from shards.io.urls import is_url
from shards.redact import redact_url


@dataclass(frozen=True)
class Sample:
    """One sample.

    label: label name ("" without label); label_id: position in `ShardDataset.labels`, or None; split: split of its
    shard;
    metadata: content of its json (source, group, box ...); image_bytes: bytes of the image.
    """

    key: str
    split: str
    label: str
    label_id: int | None
    metadata: dict[str, Any] = field(hash=False)  # the key is sufficient, because equal items have equal keys
    image_bytes: bytes = field(repr=False)

    @cached_property
    def image(self) -> NDArray[np.uint8]:
        """Pixels [H, W, 3] uint8 RGB, decoded on first access. Raises UserError if the image is corrupt."""
        try:
            return decode_rgb(self.image_bytes)
        except ImageRejected as error:
            raise UserError(
                f"shards: the image of {self.key} is corrupt ({error.reason}). "
                "Fix: run simfle shards verify on the folder."
            ) from None


class ShardDataset(Sequence[Sample]):
    """Folder of shards, read-only. Samples are in the order of the tars and are read on access.

    It is a map-style dataset: `torch.utils.data.DataLoader(shards, collate_fn=...)` accepts it; `as_torch_dataset`
    returns a dataset of (image, label) pairs. It can be pickled.
    """

    def __init__(self, folder: str | Path, splits: str | Sequence[str] | None = None) -> None:
        """See `open`."""
        if is_url(folder):
            raise UserError(f"shards: {redact_url(str(folder))} is a URL. Fix: copy the shards to this machine.")
        place = expand_home(folder)
        self.manifest: Manifest = read_manifest(place)
        self.folder = place.absolute()  # tars are opened later, when the working folder may differ
        self._shards = select_shards(self.manifest, split_names(splits), "splits")
        self._ends = list(accumulate(info.samples for info in self._shards))
        self._indexes: dict[int, Index] = {}
        self._locations: dict[str, int] = {}

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the labels, in the order of their numbers."""
        return self.manifest.labels

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, which: Any) -> Any:
        """Return the sample at a position (negative: from the end) or with a key; for a slice, a list of samples.

        Raises:
            IndexError, KeyError: If there is no such sample.
            UserError: If the tar or its index is corrupt.
        """
        if isinstance(which, slice):
            return [self[position] for position in range(*which.indices(len(self)))]
        if isinstance(which, str):
            return self[self._keys[which]]
        position = which + len(self) if which < 0 else which
        if not 0 <= position < len(self):
            raise IndexError(f"{self.folder} has {len(self)} samples; index {which} is out of range")
        shard = bisect.bisect_right(self._ends, position)
        return self._read(shard, position - (self._ends[shard] - self._shards[shard].samples))

    def __contains__(self, what: object) -> bool:
        """Return whether the dataset contains this key or this sample."""
        if isinstance(what, Sample):
            return what.key in self._keys and self[what.key] == what
        return isinstance(what, str) and what in self._keys

    def __iter__(self) -> Iterator[Sample]:
        return (self[position] for position in range(len(self)))

    def __repr__(self) -> str:
        return f"Shards({str(self.folder)!r}, {len(self)} samples)"

    def keys(self) -> list[str]:
        """Return the keys of all samples, in order."""
        return list(self._keys)

    def as_torch_dataset(self, transform: Callable[[Any], Any] | None = None) -> Any:
        """Return a torch.utils.data.Dataset of (image, label number, or -1 without label).

        The image is a PIL image, or the result of `transform` (for example torchvision's) on one.
        """
        from shards.reading.torch_dataset import ImageLabelDataset  # imported lazily: it imports torch

        return ImageLabelDataset(self, transform)

    @property
    def _keys(self) -> dict[str, int]:
        """Map key -> position. The first access reads all indexes."""
        if not self._locations and len(self):
            every = (key for shard in range(len(self._shards)) for key in self._index(shard).keys)
            self._locations = {key: position for position, key in enumerate(every)}
        return self._locations

    def _index(self, shard: int) -> Index:
        if shard not in self._indexes:
            self._indexes[shard] = shard_index(self.folder, self._shards[shard])
        return self._indexes[shard]

    def _read(self, shard: int, number: int) -> Sample:
        info, index = self._shards[shard], self._index(shard)
        tar = self.folder / info.file
        try:
            with open_tar(tar) as opened:
                members = opened.read_members(index, number)
        except OSError as error:
            raise UserError(f"shards: cannot read {tar}: {error.strerror}. Fix: copy it again.") from None
        sample = StoredSample(index.keys[number], members)
        image = image_extension(members)
        if image is None:
            raise UserError(
                f"shards: {tar}: {sample.key} has no image, only: {', '.join(members) or 'none'}. "
                "Fix: rebuild the shards."
            )
        content = members.get("cls")
        label = None if content is None else label_number(content, len(self.labels), f"{tar}: {sample.key}")
        name = "" if label is None or not self.labels else self.labels[label]
        return Sample(sample.key, info.split, name, label, sample.metadata, members[image])


def split_names(splits: str | Sequence[str] | None) -> tuple[str, ...]:
    """Return one or several split names as a tuple; an empty tuple means all splits."""
    return (splits,) if isinstance(splits, str) else tuple(splits or ())


def open(folder: str | Path, splits: str | Sequence[str] | None = None) -> ShardDataset:
    """Open a folder of shards. splits: one name or several; None or empty: all.

    >>> faces = shards.open("shards/mine")
    >>> len(faces), faces[0].key, faces["some-key"].image.shape

    Raises:
        UserError: If the folder or its manifest is missing or corrupt, or a split is unknown.
    """
    return ShardDataset(folder, splits)
