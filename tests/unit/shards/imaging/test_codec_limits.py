"""Small files that unpack to gigabytes: every reader refuses them within the memory that docs/reliability.md states."""

import gzip
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest
from helpers.bombs import Hole, limited
from helpers.corpus_fixtures import encoded, picture

from shards.entry import Entry, Rejected
from shards.errors import UserError
from shards.format.index import index_tar
from shards.sources.containers.tars import MAX_UNPACKED, read_tar
from shards.sources.containers.zips import read_zip
from shards.sources.generic.archive import Archive
from simfle.config.schema import DataConfig
from simfle.data.storage.resampled import MAX_IMAGE, ResampledStream

pytestmark = pytest.mark.slow

JPEG = encoded(picture(1))
MIB = 1 << 20
BIG = 128 * MIB  # what a bomb unpacks to
LIMIT = 64 * MIB  # what its reader may take


def header(kind: bytes, size: int, name: str = "long") -> bytes:
    """The header of a tar's member, without what follows."""
    item = tarfile.TarInfo(name)
    item.type, item.size = kind, size
    return item.tobuf(tarfile.GNU_FORMAT)


def member(name: str, content: bytes) -> bytes:
    return header(tarfile.REGTYPE, len(content), name) + content + bytes(-len(content) % 512)


def write(file: Path, parts: list[bytes | Hole], pack: str = "") -> Path:
    """A tar of `parts`. A hole is of zeros, which take no room on the disk or are packed once and repeated."""
    packer: Callable[[bytes], bytes] = {"": bytes, "gz": gzip.compress, "xz": lzma.compress}[pack]
    with file.open("wb") as raw:
        for part in [*parts, bytes(1024)]:
            if not isinstance(part, Hole):
                raw.write(packer(part))
            elif pack:
                raw.write(packer(bytes(MIB)) * (part.size // MIB))
            else:
                raw.seek(part.size, 1)
    return file


GOOD = member("good.jpg", JPEG)
BEHIND = [member("x.jpg", JPEG)]


@pytest.mark.parametrize("pack", ["", "gz", "xz"])
@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK])
def test_a_header_of_128_megabytes_is_not_read(tmp_path: Path, kind: bytes, pack: str) -> None:
    file = write(tmp_path / "a.tar", [GOOD, header(kind, BIG), Hole(BIG), *BEHIND], pack)
    with limited(LIMIT):
        good, rejected = read_tar(file)
    assert not isinstance(good, Rejected)
    assert good.content() == JPEG
    assert isinstance(rejected, Rejected)
    assert rejected.reason == "unreadable"
    assert "headers take more than 1 MiB" in rejected.detail
    first = write(tmp_path / "b.tar", [header(kind, BIG), Hole(BIG), *BEHIND], pack)
    with limited(LIMIT):
        (rejected,) = read_tar(first)
    assert isinstance(rejected, Rejected)
    assert "headers take more than 1 MiB" in rejected.detail


def test_many_headers_of_one_member_and_for_all_members(tmp_path: Path) -> None:
    """tarfile calls itself for each header, and copies all records for each member."""
    chain = header(tarfile.XHDTYPE, 0) * 1500
    (rejected,) = read_tar(write(tmp_path / "a.tar", [chain, *BEHIND]))
    assert isinstance(rejected, Rejected)
    assert "too many headers" in rejected.detail
    records = [b"%d k%06d=v\n" % (13, number) for number in range(2000)]
    shared = b"".join(records)
    block = header(tarfile.XGLTYPE, len(shared)) + shared + bytes(-len(shared) % 512)
    (rejected,) = read_tar(write(tmp_path / "b.tar", [block, *BEHIND]))
    assert isinstance(rejected, Rejected)
    assert "pax records for all members" in rejected.detail


def test_a_map_of_holes_without_end(tmp_path: Path) -> None:
    """Blocks of a sparse file's map, each of which says that one more follows."""
    first = bytearray(header(tarfile.GNUTYPE_SPARSE, 0, "a.jpg"))
    first[482], first[148:156] = 1, b" " * 8
    first[148:156] = b"%06o\0 " % sum(first)
    more = b"00000000001\0" * 42 + b"\1" + bytes(7)
    (rejected,) = read_tar(write(tmp_path / "a.tar.gz", [bytes(first), more * 20_000], "gz"))
    assert isinstance(rejected, Rejected)
    assert "headers take more than 1 MiB" in rejected.detail


def test_an_xz_file_may_not_ask_for_a_gigabyte(tmp_path: Path) -> None:
    packed = lzma.compress(member("a.jpg", bytes(MIB)), filters=[{"id": lzma.FILTER_LZMA2, "preset": 0}])
    block = bytearray(packed[12:24])  # behind the header of the file
    assert block[2:4] == b"\x21\1"  # LZMA2, one byte of properties: the size of its dictionary
    block[4] = 36  # 1 GiB
    block[8:12] = zlib.crc32(block[:8]).to_bytes(4, "little")
    (tmp_path / "a.tar.xz").write_bytes(packed[:12] + block + packed[24:])
    with limited(LIMIT * 3):
        (rejected,) = read_tar(tmp_path / "a.tar.xz")
    assert isinstance(rejected, Rejected)
    assert "Memory usage limit" in rejected.detail or "not a tar" in rejected.detail


@pytest.mark.parametrize("pack", ["gz", "xz"])
def test_a_member_that_unpacks_to_too_much(tmp_path: Path, pack: str) -> None:
    size = MAX_UNPACKED + MIB
    file = write(tmp_path / f"a.tar.{pack}", [header(tarfile.REGTYPE, size, "a.jpg"), Hole(size), GOOD], pack)
    with limited(LIMIT):
        large, good = Archive(file)
    assert isinstance(large, Rejected)
    assert (large.reason, "unpack the archive first" in large.detail) == ("too_large", True)
    assert isinstance(good, Entry)
    assert good.read == JPEG


def test_a_deflated_member_that_unpacks_to_too_much(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as packed:
        packed.writestr("a.jpg", bytes(MAX_UNPACKED + 1))
        packed.writestr("b.jpg", JPEG)
    large, good = read_zip(tmp_path / "a.zip")
    assert not isinstance(large, Rejected)
    with limited(LIMIT), pytest.raises(ValueError, match="unpack the archive first"):
        large.content()
    assert not isinstance(good, Rejected)
    assert good.content() == JPEG


def test_tars_that_are_read_without_a_build(tmp_path: Path) -> None:
    for number, kind in enumerate((tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME)):
        file = write(tmp_path / f"{number}.tar", [GOOD, header(kind, BIG), Hole(BIG), *BEHIND])
        with limited(LIMIT), pytest.raises(UserError, match="headers take more than 1 MiB"):
            index_tar(file)


@pytest.mark.parametrize("pack", ["", "gz"])
def test_tars_that_are_streamed(tmp_path: Path, pack: str) -> None:
    size = MAX_IMAGE + MIB
    large = [header(tarfile.REGTYPE, size, name) + bytes(size) for name in ("b.jpg", "c.json")]
    bomb = header(tarfile.GNUTYPE_LONGNAME, size) + bytes(size)
    content = b"".join([GOOD, *large, member("d.jpg", JPEG), bomb, *BEHIND, bytes(1024)])
    file = tmp_path / ("a.tar" + f".{pack}" * bool(pack))
    file.write_bytes(gzip.compress(content, 1) if pack else content)
    del content, large, bomb
    data = DataConfig(shards=[str(file)], resampled=True, shuffle_window=1)
    stream = ResampledStream(data, 3, 2, 0)
    next(stream._samples("warm"))
    with limited(LIMIT // 2):
        taken = list(islice(stream._samples("x"), 6))
    assert {name for _, name, _ in taken} == {f"{file.name}: good", f"{file.name}: d"}
    assert {image for _, _, image in taken} == {JPEG}
    assert "headers take more than 1 MiB" in stream._error
