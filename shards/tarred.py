"""Python's tarfile with bounds: a header says how long the next header is, and tarfile reads all of that into memory.

Headers of one member (long names, pax records, maps of sparse files) may take 1 MiB. xz files say how much memory their
dictionary takes, up to 4 GiB; here it is 128 MiB, twice what `xz -9` needs.
"""

import io
import lzma
import tarfile
from typing import IO, Any, Literal

from shards.files import open_regular

MOST_HEADERS = 1 << 20  # bytes of the headers of one member; names of files have at most 4 kB
MOST_SHARED = 1000  # pax records for all members that follow; tarfile copies them for each
MOST_XZ = 128 << 20  # bytes that decompressing xz may take


class TooLargeHeader(tarfile.TarError):
    """A member whose headers take more memory than any name needs, or tell no size. What follows cannot be found."""


class BoundedTar(tarfile.TarFile):
    """To be opened by `BoundedTar.open(...)` for reading, as any TarFile.

    Raises:
        TooLargeHeader: when it is opened or read.
    """

    def __init__(self, name: Any = None, mode: Any = "r", fileobj: Any = None, **options: Any) -> None:
        """See `tarfile.TarFile`."""
        self._opened = open_regular(name, "rb") if fileobj is None else None  # `close` closes it
        self._meter = _Meter(fileobj or self._opened)
        try:
            super().__init__(name, mode, self._meter, **options)
        except BaseException:
            if self._opened:
                self._opened.close()
            raise

    def next(self) -> tarfile.TarInfo | None:
        """The next member, None at the end."""
        self._meter.left = MOST_HEADERS
        try:
            item = super().next()
        except RecursionError:  # tarfile calls itself for each header of a member
            raise TooLargeHeader("a member has too many headers") from None
        finally:
            self._meter.left = None
        # A pax record may give a member a negative size: what follows it would lie before it, without end.
        if item is not None and (item.size < 0 or self.offset < item.offset_data):
            raise TooLargeHeader("a member has a negative size")
        if len(self.pax_headers) > MOST_SHARED:
            raise TooLargeHeader(f"more than {MOST_SHARED} pax records for all members")
        return item

    def close(self) -> None:
        """Close the file, if it was opened here."""
        super().close()
        if self._opened:
            self._opened.close()

    @classmethod
    def xzopen(cls, name: Any, mode: Any = "r", fileobj: Any = None, *_: Any, **options: Any) -> "BoundedTar":
        """Open a tar that xz has compressed; `open` calls this."""
        packed = fileobj or open_regular(name, "rb")  # belongs to the tar from here on
        try:
            tar = cls.taropen(name, mode, io.BufferedReader(_Xz(packed), 1 << 16), **options)
        except (lzma.LZMAError, EOFError) as error:
            if fileobj is None:
                packed.close()
            raise tarfile.ReadError(f"not an lzma file: {error}") from None
        except BaseException:
            if fileobj is None:
                packed.close()
            raise
        tar._extfileobj = False  # type: ignore[attr-defined] # as tarfile does: closing it closes what it reads
        return tar


class _Meter:
    """A file of which, while `left` is a number, no more bytes than that are read."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.left: int | None = None

    def read(self, size: int = -1) -> bytes:
        """As the file."""
        if self.left is not None:
            if not 0 <= size <= self.left:
                raise TooLargeHeader(f"a member's headers take more than {MOST_HEADERS >> 20} MiB")
            self.left -= size
        return bytes(self._file.read(size))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


class _Xz(io.RawIOBase):
    """What an xz or lzma file holds, to be read from front to back. LZMAFile has no limit of memory."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._place = file, 0
        self._unpacker = lzma.LZMADecompressor(memlimit=MOST_XZ)

    def readable(self) -> Literal[True]:
        """Yes."""
        return True

    def seekable(self) -> Literal[True]:
        """Yes, forwards."""
        return True

    def close(self) -> None:
        """Close the packed file, too."""
        self._file.close()
        super().close()

    def tell(self) -> int:
        """How many bytes have been read."""
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Read as far as `offset`."""
        if whence != io.SEEK_SET or offset < self._place:
            raise io.UnsupportedOperation("an xz file is only read forwards")
        while self._place < offset and self.read(min(offset - self._place, 1 << 16)):
            pass
        return self._place

    def readinto(self, buffer: Any) -> int:
        """Some bytes, 0 at the end. Raises LZMAError, EOFError."""
        found = self._unpacked(len(buffer)) if len(buffer) else b""
        buffer[: len(found)] = found
        self._place += len(found)
        return len(found)

    def _unpacked(self, size: int) -> bytes:
        while True:
            if self._unpacker.eof:
                rest = (self._unpacker.unused_data or self._file.read(1 << 16)).lstrip(b"\0")  # padding between streams
                if not rest:
                    return b""
                self._unpacker = lzma.LZMADecompressor(memlimit=MOST_XZ)
                found = self._unpacker.decompress(rest, size)
            else:
                packed = self._file.read(1 << 16) if self._unpacker.needs_input else b""
                if self._unpacker.needs_input and not packed:
                    raise EOFError("Compressed file ended before the end-of-stream marker was reached")
                found = self._unpacker.decompress(packed, size)
            if found:
                return found
