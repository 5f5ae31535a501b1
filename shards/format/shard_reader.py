"""Read members of an open tar by their position in its index: the only reader of the content of shards.

Members are read with pread. A memory map would kill the process (SIGBUS) if a disk fails or a tar is truncated while
the process reads it.
"""

import os
import weakref
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from shards.errors import UserError
from shards.format.external_tars import IMAGES
from shards.format.index import Index, index_tar, read_index
from shards.format.manifest import ShardInfo, index_name
from shards.io.atomic import open_regular

MAX_MEMBER = 2 << 30  # maximum bytes of a member, which is read whole; a build accepts images up to 1 GiB
HEADER, SIZE_AT = 512, 124  # bytes of a tar member's header, and the position of the size field in it


class TarTooShortError(UserError):
    """Error: a tar ends before a member. truncated: whether the tar was long enough when it was opened."""

    def __init__(self, words: str, *, truncated: bool) -> None:
        super().__init__(words)
        self.truncated = truncated


class OpenTar:
    """Tar that is open for reading. Safe for concurrent threads.

    The file is closed by `close`, or after its last use: one thread may drop it from a cache while another thread
    reads.
    """

    def __init__(self, file: IO[bytes], place: object) -> None:
        """Open the tar. place: path or URL, for messages. Raises OSError and closes the file."""
        self.place = place
        self._number = file.fileno()
        self.close = weakref.finalize(self, file.close)
        self.size = os.fstat(self._number).st_size

    def __enter__(self) -> "OpenTar":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self, offset: int, size: int) -> bytes:
        """Read a byte range.

        Raises:
            TarTooShortError: If the range exceeds the tar; raised before memory is allocated.
            OSError: If the disk fails.
        """
        if offset + size > self.size:
            raise TarTooShortError(
                f"shards: {self.place} is shorter than its index says. Fix: copy it again.", truncated=False
            )
        content = os.pread(self._number, size, offset)
        while len(content) < size and (more := os.pread(self._number, size - len(content), offset + len(content))):
            content += more
        if len(content) < size:
            raise TarTooShortError(
                f"shards: {self.place} was truncated while it was read. Fix: copy it again.", truncated=True
            )
        return content

    def read_members(self, index: Index, sample: int, only: Collection[str] = ()) -> dict[str, bytes]:
        """Read the members of a sample by extension, in tar order; only: lower-case extensions, empty = all.

        Raises:
            TarTooShortError, OSError: See `read`.
        """
        return {
            name: self.read(member.offset, member.size)
            for name, member in index.members(sample).items()
            if not only or name.lower() in only
        }

    def has_member(self, offset: int, size: int) -> bool:
        """Return whether the header before `offset` has the size from the index; True if reading the header fails."""
        try:
            field = os.pread(self._number, 12, offset - HEADER + SIZE_AT).strip(b"\0 ")
        except OSError:
            return True  # a failing disk only affects single samples
        try:
            return len(field) == 0 or field[0] >= 0x80 or int(field, 8) == size  # a size above 8 GiB is a binary number
        except ValueError:
            return False


def open_tar(path: Path) -> OpenTar:
    """Open a local tar. Raises OSError."""
    return OpenTar(open_regular(path, "rb"), path)


def image_table(index: Index) -> NDArray[np.int64]:
    """Return offset and size of each sample's image, [samples, 2], or -1 for samples without an image.

    If a sample has several images, the one whose extension comes first in `IMAGES` is chosen, as in `image_extension`.
    """
    table = np.full((len(index), 2), -1, dtype=np.int64)
    for wanted in reversed(IMAGES):  # the first extension wins
        for name in (name for name in index.extensions if name.lower() == wanted):
            column = np.stack(index.column(name), axis=1)
            table = np.where(column[:, :1] >= 0, column, table)
    return table


def shard_index(folder: Path, info: ShardInfo) -> Index:
    """Read the index of a shard; compute it if there is no index file.

    Raises:
        UserError: If the index is corrupt, or its number of samples differs from the manifest's.
    """
    path = folder / index_name(info.file)
    index = read_index(path) if path.exists() else index_tar(folder / info.file)
    if len(index) != info.samples:
        raise UserError(
            f"shards: {path} lists {len(index)} samples, the manifest {info.samples}. Fix: rebuild the shards."
        )
    largest = int(index.sizes.max(initial=0))
    # Check each size first: the sum of sizes near 2**63 would overflow.
    if largest > min(info.bytes, MAX_MEMBER) or int(np.maximum(index.sizes, 0).sum()) > info.bytes:
        raise UserError(
            f"shards: {folder / info.file} is shorter than its index says, or a member has more than "
            f"{MAX_MEMBER >> 30} GiB. Fix: copy the shards again from a trusted source."
        )
    return index


def check_sizes(folder: Path, shards: Iterable[ShardInfo]) -> None:
    """Raise UserError if a tar's size differs from the manifest, before memory is allocated for its samples."""
    for info in shards:
        path = folder / info.file
        try:
            size = path.stat().st_size
        except OSError as error:
            raise UserError(f"shards: {path} cannot be read ({error}). Fix: copy it again.") from None
        check_size(path, size, info)


def check_size(path: Path, size: int, info: ShardInfo) -> None:
    """Raise UserError if a tar's size differs from the manifest."""
    if size != info.bytes:
        raise UserError(f"shards: {path} has {size} bytes, the manifest says {info.bytes}. Fix: copy it again.")
