"""Index of the members of each sample in a tar, in DALI's wds2idx text format v1.2.

First line `v1.2 SAMPLES`, then one line per sample: `extension offset size name` for each member. A sample's name ends
at the first dot of its base name; the rest is the extension. Offsets refer to the content, in bytes.
"""

import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shards.errors import UserError
from shards.io.atomic import open_regular, read_bytes, write_atomic
from shards.io.bounded_tar import BoundedTar
from shards.io.file_names import leads_outside

VERSION = "v1.2"
MAX_CELLS = 1 << 24  # samples times extensions, 16 bytes each


class Member(NamedTuple):
    """A file in a tar: offset and size of its content in bytes, and its name."""

    offset: int
    size: int
    name: str


@dataclass(frozen=True)
class Index:
    """Index of N samples with up to E extensions, as arrays: 40 bytes per sample plus its key.

    keys: N names without extension; extensions: E names, for example ("jpg", "cls", "json");
    offsets, sizes: [N, E] int64, -1 if a sample has no such member.
    """

    keys: tuple[str, ...]
    extensions: tuple[str, ...]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.keys)

    def column(self, extension: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return offsets [N] and sizes [N] of the members with one extension; -1 where absent."""
        if extension not in self.extensions:
            absent = np.full(len(self), -1, np.int64)
            return absent, absent
        place = self.extensions.index(extension)
        return self.offsets[:, place], self.sizes[:, place]

    def members(self, sample: int) -> dict[str, Member]:
        """Return the members of one sample by extension, in tar order."""
        row = [
            (extension, Member(int(offset), int(size), f"{self.keys[sample]}.{extension}"))
            for extension, offset, size in zip(self.extensions, self.offsets[sample], self.sizes[sample], strict=True)
            if offset >= 0
        ]
        return dict(sorted(row, key=lambda item: item[1].offset))


def make_index(members: Iterable[tuple[str, int, int]], repeated: Callable[[str], object] | None = None) -> Index:
    """Build an index from (name, offset, size) of a tar's files, in order; skip hidden files, like DALI.

    Of consecutive members with the same name, the first is kept. repeated: called with the names of the others.
    """
    keys: list[str] = []
    places: dict[str, int] = {}
    rows: list[dict[int, tuple[int, int]]] = []
    for name, offset, size in members:
        key, extension = split_name(name)
        if not key or key.endswith("/"):
            continue
        if not keys or keys[-1] != key:
            keys.append(key)
            rows.append({})
        place = places.setdefault(extension, len(places))
        if place not in rows[-1]:
            rows[-1][place] = (offset, size)
        elif repeated is not None:
            repeated(name)
    # Each extension is a column over all samples: as many extensions as samples would make a quadratic table.
    if len(keys) * len(places) > max(MAX_CELLS, 64 * sum(map(len, rows))):
        raise ValueError(f"{len(keys)} samples with {len(places)} different extensions")
    table = np.full((2, len(keys), len(places)), -1, np.int64)
    for number, row in enumerate(rows):
        for place, pair in row.items():
            table[:, number, place] = pair
    return Index(tuple(keys), tuple(places), table[0], table[1])


def split_name(name: str) -> tuple[str, str]:
    """Split 'dir/key.seg.png' into ('dir/key', 'seg.png')."""
    folder, slash, base = name.rpartition("/")
    key, _, extension = base.partition(".")
    return folder + slash + key, extension


def is_same_index(first: Index, second: Index) -> bool:
    """Return whether two indexes are equal."""
    return (
        first.keys == second.keys
        and first.extensions == second.extensions
        and np.array_equal(first.offsets, second.offsets)
        and np.array_equal(first.sizes, second.sizes)
    )


def index_tar(
    tar: Path, left_out: Callable[[str], object] | None = None, repeated: Callable[[str], object] | None = None
) -> Index:
    """Read the index of any tar from its headers. repeated: see `make_index`.

    left_out: called with the name of each member that leads outside the folder; the member is skipped. If None, such a
    member raises an error.

    Raises:
        UserError: If the tar is missing or invalid, or a member's name leads outside the folder.
    """
    try:
        with open_regular(tar, "rb") as file, BoundedTar.open(fileobj=file, mode="r:") as archive:
            return make_index(_inside(_files(archive), tar, left_out), repeated)
    except (tarfile.TarError, OSError, ValueError) as error:
        raise UserError(f"shards: {tar} cannot be indexed ({error}). Fix: copy it again.") from None


def _files(archive: tarfile.TarFile) -> Iterable[tuple[str, int, int]]:
    """Yield name, offset and size of each regular file."""
    while (item := archive.next()) is not None:
        archive.members.clear()  # type: ignore[attr-defined] # otherwise tarfile keeps every header
        if item.isreg() and not item.issparse():  # a sparse file is stored in parts
            yield item.name, item.offset_data, item.size


def write_index(path: Path, index: Index) -> None:
    """Write `index` in DALI's format, atomically."""
    lines = [f"{VERSION} {len(index)}"]
    for sample in range(len(index)):
        members = index.members(sample).items()
        lines.append(" ".join(f"{extension} {item.offset} {item.size} {item.name}" for extension, item in members))
    write_atomic(path, ("\n".join(lines) + "\n").encode("utf-8", "surrogateescape"))


def read_index(path: Path) -> Index:
    """Read an index in DALI's format.

    Raises:
        UserError: If the index is missing, corrupt or of another version.
    """
    try:
        lines = read_bytes(path).decode("utf-8", "surrogateescape").split("\n")
    except OSError as error:
        raise UserError(f"shards: index {path} cannot be read ({error}). Fix: copy it again.") from None
    version, _, count = lines[0].partition(" ")
    if version != VERSION:
        raise UserError(f"shards: index {path} has version {version!r}, not {VERSION}. Fix: rebuild the shards.")
    try:
        index = make_index(_inside(_members(lines[1 : int(count) + 1]), path))
    except (ValueError, OverflowError) as error:
        raise UserError(f"shards: index {path} is corrupt ({error}). Fix: rebuild the shards.") from None
    if len(index) != int(count):
        raise UserError(f"shards: index {path} lists {len(index)} of {count} samples. Fix: rebuild the shards.")
    return index


def _inside(
    members: Iterable[tuple[str, int, int]], path: Path, left_out: Callable[[str], object] | None = None
) -> Iterator[tuple[str, int, int]]:
    """Yield the members whose names stay inside the folder into which the tar is extracted."""
    for member in members:
        if not leads_outside(member[0]):
            yield member
        elif left_out is None:
            raise UserError(
                f"shards: {path}: the member {member[0]!r} leads outside its folder. "
                "Fix: use shards from a source that you trust."
            )
        else:
            left_out(member[0])


def _members(lines: Iterable[str]) -> Iterator[tuple[str, int, int]]:
    for line in lines:
        words = line.split(" ")
        if len(words) % 4:
            raise ValueError(f"{line[:60]!r} is not a list of extension, offset, size, name")
        for start in range(0, len(words), 4):
            offset, size = int(words[start + 1]), int(words[start + 2])
            if offset < 0 or size < 0:
                raise ValueError(f"{line[:60]!r} has a negative number")
            yield words[start + 3], offset, size
