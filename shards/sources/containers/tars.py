"""Stream the members of a tar in constant memory; members that can be located later are not read."""

import gzip
import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from shards.entry import LazyBytes, Rejected
from shards.io.atomic import open_regular, regular_path
from shards.io.bounded_tar import BoundedTar, OversizedHeaderError

TAR_ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
ENDINGS = (*TAR_ENDINGS, ".zip")
DAMAGE = (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile)
MAX_UNPACKED = 256 << 20  # maximum bytes of a compressed member, whose compressed size can be a thousandth
TOO_LARGE = f"more than {MAX_UNPACKED >> 20} MiB in a compressed archive; unpack the archive first"


@dataclass(frozen=True, slots=True)
class ArchiveMember:
    """A file in an archive.

    size: bytes; read: content or its location; rejection: why it cannot be read, else (); guessed: whether the
    archive does not state the encoding of its name.
    """

    name: str
    size: int
    read: bytes | LazyBytes
    rejection: tuple[str, ...] = ()
    guessed: bool = False

    def content(self) -> bytes:
        """Read the bytes.

        Raises:
            ValueError: If the bytes cannot be read.
        """
        from shards.imaging.codec import ImageRejected

        try:
            return self.read if isinstance(self.read, bytes) else self.read()
        except ImageRejected as fate:
            raise ValueError(f"{self.name}: {fate.detail or fate.reason}") from None


def read_tar(file: Path, wanted: Callable[[str], bool] = bool) -> Iterator[ArchiveMember | Rejected]:
    """Yield all files of a tar in order; yield a Rejected (source "") if the tar is corrupt or truncated.

    A compressed tar has no random access: members come with their bytes, and members that are not `wanted` without
    bytes.

    Raises:
        OSError: If the tar cannot be read at all.
    """
    try:
        plain = _opens(file, "r:")
        readable = plain or _opens(file, "r:*")
    except OversizedHeaderError as error:
        yield Rejected("", "unreadable", str(error))
        return
    if not readable:
        empty = file.stat().st_size == 0
        yield Rejected("", "empty" if empty else "unreadable", "" if empty else "not a tar, compressed or not")
        return
    with regular_path(file) as path, BoundedTar.open(path, "r:" if plain else "r:*") as archive:
        yield from _members(archive, file, None if plain else wanted)


def stem(name: str) -> str:
    """Return 'a/train' for 'a/train.tar.gz' or 'a/train.zip'."""
    ending = max((ending for ending in ENDINGS if name.lower().endswith(ending)), key=len, default="")
    return name[: len(name) - len(ending)]


def _opens(file: Path, mode: Literal["r:", "r:*"]) -> bool:
    """Return whether the first header can be read."""
    try:
        with regular_path(file) as path:
            BoundedTar.open(path, mode).close()
    except OversizedHeaderError:
        raise
    except DAMAGE:
        return False
    return True


def _members(
    archive: tarfile.TarFile, file: Path, wanted: Callable[[str], bool] | None
) -> Iterator[ArchiveMember | Rejected]:
    """Yield the members; wanted: None for an uncompressed tar."""
    try:
        while (item := archive.next()) is not None:
            archive.members.clear()  # type: ignore[attr-defined] # otherwise tarfile keeps every header
            if item.isreg():
                yield _placed(item, file) if wanted is None else _packed(archive, item, wanted(item.name))
            elif item.issym() or item.islnk():
                yield ArchiveMember(item.name, 0, b"", ("missing", f"a link to {item.linkname}"))
    except (*DAMAGE, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # a disk error, not a corrupt archive
            raise
        reason = "unreadable" if isinstance(error, OversizedHeaderError) else "truncated"
        yield Rejected("", reason, f"{error}; the rest is lost")
        return
    if wanted is None:
        with open_regular(file, "rb", buffering=0) as data:
            data.seek(archive.offset)
            block = data.read(tarfile.BLOCKSIZE)
            if block.strip(b"\0"):  # neither a header nor the zeros at the end
                reason = "truncated" if len(block) < tarfile.BLOCKSIZE else "unreadable"
                yield Rejected("", reason, f"no member at byte {archive.offset}; the rest is lost")


def _placed(item: tarfile.TarInfo, file: Path) -> ArchiveMember:
    if item.issparse():
        return ArchiveMember(item.name, item.size, b"", ("unreadable", "a sparse file"))
    return ArchiveMember(
        item.name,
        item.size,
        LazyBytes("byte_range", (item.offset_data, item.size), file),
    )


def _packed(archive: tarfile.TarFile, item: tarfile.TarInfo, wanted: bool) -> ArchiveMember:
    if item.size > MAX_UNPACKED:
        return ArchiveMember(item.name, item.size, b"", ("too_large", TOO_LARGE))
    opened = archive.extractfile(item) if wanted else None
    return ArchiveMember(item.name, item.size, opened.read() if opened else b"")
