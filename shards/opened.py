"""Shards as Python sees them: a length, samples by position or by key, iteration, a dataset for PyTorch's loaders."""

import bisect
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.encode import Unusable, decode_rgb
from shards.errors import UserError
from shards.files import at_home, open_regular
from shards.foreign import image_of
from shards.index import Index
from shards.manifest import Manifest, read_manifest
from shards.redact import shown
from shards.remote import is_url
from shards.samples import Sample, chosen_shards, label_number, shard_index


@dataclass(frozen=True)
class Item:
    """One sample. label: its name, "" where there is none; number: the label's position in `Shards.labels`, else None;
    split: of the shard it lies in; known: what its json says (source, group, box ...); file: the image's bytes."""

    key: str
    split: str
    label: str
    number: int | None
    known: dict[str, Any] = field(hash=False)  # equal items have equal keys: those do
    file: bytes = field(repr=False)

    @cached_property
    def image(self) -> NDArray[np.uint8]:
        """Pixels [H, W, 3] uint8 RGB, decoded when first asked for. Raises UserError: damaged."""
        try:
            return decode_rgb(self.file)
        except Unusable as error:
            raise UserError(f"shards: the image of {self.key} is damaged ({error.reason}); verify the shards") from None


class Shards(Sequence[Item]):
    """A folder of shards, read only. Samples are in the order of the tars; each is read when it is asked for.

    It is a map-style dataset as it is: `torch.utils.data.DataLoader(shards, collate_fn=...)` takes it; `dataset` gives
    one of (image, label) pairs. It may be handed to other processes.
    """

    def __init__(self, folder: str | Path, splits: str | Sequence[str] | None = None) -> None:
        """See `open`."""
        if is_url(folder):
            raise UserError(f"shards: {shown(str(folder))} is a URL; shards.open reads folders of this machine")
        place = at_home(folder)
        self.manifest: Manifest = read_manifest(place)
        self.folder = place.absolute()  # tars are opened when they are asked for, wherever the process is then
        self._shards = chosen_shards(self.manifest, split_names(splits), "splits")
        self._ends = list(accumulate(info.samples for info in self._shards))
        self._indexes: dict[int, Index] = {}
        self._places: dict[str, int] = {}

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the labels, in the order of their numbers."""
        return self.manifest.labels

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, which: Any) -> Any:
        """The sample at a position (negative: from the end) or of a key; of a slice a list.

        Raises:
            IndexError, KeyError: there is none.
            UserError: the tar or its index is damaged.
        """
        if isinstance(which, slice):
            return [self[position] for position in range(*which.indices(len(self)))]
        if isinstance(which, str):
            return self[self._keys[which]]
        position = which + len(self) if which < 0 else which
        if not 0 <= position < len(self):
            raise IndexError(f"{self.folder} has {len(self)} samples, there is no number {which}")
        shard = bisect.bisect_right(self._ends, position)
        return self._read(shard, position - (self._ends[shard] - self._shards[shard].samples))

    def __contains__(self, what: object) -> bool:
        """Whether there is a sample of this key, or this item."""
        if isinstance(what, Item):
            return what.key in self._keys and self[what.key] == what
        return isinstance(what, str) and what in self._keys

    def __iter__(self) -> Iterator[Item]:
        return (self[position] for position in range(len(self)))

    def __repr__(self) -> str:
        return f"Shards({str(self.folder)!r}, {len(self)} samples)"

    def keys(self) -> list[str]:
        """The keys of all samples, in order."""
        return list(self._keys)

    def dataset(self, transform: Callable[[Any], Any] | None = None) -> Any:
        """A torch.utils.data.Dataset of (image, number of the label, -1 where there is none).

        The image is a PIL image, or what `transform` (such as torchvision's) makes of one.
        """
        from shards.pairs import Pairs  # not at the top: it imports torch

        return Pairs(self, transform)

    @property
    def _keys(self) -> dict[str, int]:
        """Key -> position. The first use reads all indexes."""
        if not self._places and len(self):
            every = (key for shard in range(len(self._shards)) for key in self._index(shard).keys)
            self._places = {key: position for position, key in enumerate(every)}
        return self._places

    def _index(self, shard: int) -> Index:
        if shard not in self._indexes:
            self._indexes[shard] = shard_index(self.folder, self._shards[shard])
        return self._indexes[shard]

    def _read(self, shard: int, number: int) -> Item:
        info, index = self._shards[shard], self._index(shard)
        tar = self.folder / info.file
        members = {}
        try:
            with open_regular(tar, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                for name, place in index.members(number).items():
                    if place.offset + place.size > size:  # before memory for so many bytes is reserved
                        raise UserError(f"shards: {tar} is shorter than its index says; copy it again")
                    members[name] = os.pread(file.fileno(), place.size, place.offset)
                    if len(members[name]) < place.size:
                        raise UserError(f"shards: {tar} is shorter than its index says; copy it again")
        except OSError as error:
            raise UserError(f"shards: cannot read {tar}: {error.strerror}") from None
        sample = Sample(index.keys[number], members)
        image = image_of(members)
        if image is None:
            raise UserError(f"shards: {tar}: {sample.key} has no image; there are: {', '.join(members) or 'none'}")
        content = members.get("cls")
        label = None if content is None else label_number(content, len(self.labels), f"{tar}: {sample.key}")
        name = "" if label is None or not self.labels else self.labels[label]
        return Item(sample.key, info.split, name, label, sample.known, members[image])


def split_names(splits: str | Sequence[str] | None) -> tuple[str, ...]:
    """One name or several, as several; none for all splits."""
    return (splits,) if isinstance(splits, str) else tuple(splits or ())


def open(folder: str | Path, splits: str | Sequence[str] | None = None) -> Shards:
    """Open a folder of shards. splits: one name or several; none given: all of them.

    >>> faces = shards.open("shards/mine")
    >>> len(faces), faces[0].key, faces["some-key"].image.shape

    Raises:
        UserError: no such folder, no manifest in it or a damaged one, an unknown split.
    """
    return Shards(folder, splits)
