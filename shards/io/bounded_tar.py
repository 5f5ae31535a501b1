"""tarfile with memory limits: a tar header gives the size of the next header, and tarfile reads all of it into memory.

The headers of one member (long names, pax records, maps of sparse files) may take 1 MiB. An xz file can require a
dictionary of up to 4 GiB; the limit here is 128 MiB, twice the need of `xz -9`.
"""

import io
import lzma
import tarfile
from typing import IO, Any, Literal

from shards.io.atomic import open_regular

MAX_HEADERS = 1 << 20  # bytes of headers per member; file names have at most 4 kB
MAX_GLOBAL_RECORDS = 1000  # global pax records; tarfile copies them for each member
MAX_XZ_MEMORY = 128 << 20  # memory limit of xz decompression, bytes


class OversizedHeaderError(tarfile.TarError):
    """Error: a member's headers take too much memory or give an invalid size. The rest of the tar cannot be read."""


class BoundedTar(tarfile.TarFile):
    """A TarFile with limits. Open it for reading with `BoundedTar.open(...)`.

    Raises:
        OversizedHeaderError: If a header takes too much memory or is invalid; raised on opening or reading.
    """

    def __init__(self, name: Any = None, mode: Any = "r", fileobj: Any = None, **options: Any) -> None:
        """See `tarfile.TarFile`."""
        self._opened = open_regular(name, "rb") if fileobj is None else None  # closed by `close`
        self._meter = _Meter(fileobj or self._opened)
        try:
            super().__init__(name, mode, self._meter, **options)
        except BaseException:
            if self._opened:
                self._opened.close()
            raise

    def next(self) -> tarfile.TarInfo | None:
        """Return the next member, or None at the end."""
        self._meter.left = MAX_HEADERS
        try:
            item = super().next()
        except RecursionError:  # tarfile calls itself for each header of a member
            raise OversizedHeaderError("a member has too many headers") from None
        finally:
            self._meter.left = None
        # A pax record can declare a negative size: the next member would precede it, which causes an endless loop.
        if item is not None and (item.size < 0 or self.offset < item.offset_data):
            raise OversizedHeaderError("a member has a negative size")
        if len(self.pax_headers) > MAX_GLOBAL_RECORDS:
            raise OversizedHeaderError(f"more than {MAX_GLOBAL_RECORDS} pax records for all members")
        return item

    def close(self) -> None:
        """Close the tar, and the file if this object opened it."""
        super().close()
        if self._opened:
            self._opened.close()

    @classmethod
    def xzopen(cls, name: Any, mode: Any = "r", fileobj: Any = None, *_: Any, **options: Any) -> "BoundedTar":
        """Open an xz-compressed tar; called by `open`."""
        packed = fileobj or open_regular(name, "rb")  # from here on, the tar owns this file
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
        tar._extfileobj = False  # type: ignore[attr-defined] # as in tarfile: closing the tar closes the file below
        return tar


class _Meter:
    """A file wrapper that limits reads to `left` bytes while `left` is a number."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.left: int | None = None

    def read(self, size: int = -1) -> bytes:
        """Read like the file, within the limit."""
        if self.left is not None:
            if not 0 <= size <= self.left:
                raise OversizedHeaderError(f"a member's headers take more than {MAX_HEADERS >> 20} MiB")
            self.left -= size
        return bytes(self._file.read(size))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


class _Xz(io.RawIOBase):
    """Forward-only reader of an xz or lzma file with a memory limit, which LZMAFile lacks."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._place = file, 0
        self._unpacker = lzma.LZMADecompressor(memlimit=MAX_XZ_MEMORY)

    def readable(self) -> Literal[True]:
        """Return True."""
        return True

    def seekable(self) -> Literal[True]:
        """Return True, although only forward seeks work."""
        return True

    def close(self) -> None:
        """Close the compressed file too."""
        self._file.close()
        super().close()

    def tell(self) -> int:
        """Return the number of bytes read."""
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Read forward to `offset`."""
        if whence != io.SEEK_SET or offset < self._place:
            raise io.UnsupportedOperation("an xz file is only read forwards")
        while self._place < offset and self.read(min(offset - self._place, 1 << 16)):
            pass
        return self._place

    def readinto(self, buffer: Any) -> int:
        """Read some bytes; return 0 at the end. Raises LZMAError, EOFError."""
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
                self._unpacker = lzma.LZMADecompressor(memlimit=MAX_XZ_MEMORY)
                found = self._unpacker.decompress(rest, size)
            else:
                packed = self._file.read(1 << 16) if self._unpacker.needs_input else b""
                if self._unpacker.needs_input and not packed:
                    raise EOFError("Compressed file ended before the end-of-stream marker was reached")
                found = self._unpacker.decompress(packed, size)
            if found:
                return found
