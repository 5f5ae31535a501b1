"""Zips of every make, held against the standard library's own reader; memory that does not grow with the members."""

import io
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import pytest
from helpers.source_kit import write

from shards.entry import Rejected
from shards.imaging.codec import ImageRejected
from shards.sources.containers.tars import ArchiveMember
from shards.sources.containers.zips import read_zip

NAMES = ("a/1.jpg", "caf\u00e9/\u9854.png", "b/", "b/2.txt", "b/empty.jpg")
PACKED = {"stored": zipfile.ZIP_STORED, "deflated": zipfile.ZIP_DEFLATED}


def content(name: str) -> bytes:
    return b"" if "empty" in name or name.endswith("/") else name.encode() * 50


def zipped(names: tuple[str, ...] = NAMES, method: int = zipfile.ZIP_DEFLATED, comment: bytes = b"") -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", method) as archive:
        archive.comment = comment
        for name in names:
            archive.writestr(name, content(name))
    return made.getvalue()


def check(file: Path) -> None:
    """The same members with the same bytes as the standard library finds, in its order."""
    with zipfile.ZipFile(file) as archive:
        expected = {item.filename: archive.read(item) for item in archive.infolist() if not item.is_dir()}
    members = list(read_zip(file))
    assert all(isinstance(member, ArchiveMember) for member in members)
    assert {member.name: member.content() for member in members} == expected
    assert [member.name for member in members] == list(expected)
    assert [member.size for member in members] == list(map(len, expected.values()))


@pytest.mark.parametrize("method", PACKED)
@pytest.mark.parametrize("comment", [b"", b"c" * 0xFFFF])
def test_as_the_standard_library_reads_it(tmp_path: Path, method: str, comment: bytes) -> None:
    check(write(tmp_path / "a.zip", zipped(method=PACKED[method], comment=comment)))


def test_a_comment_that_looks_like_the_end(tmp_path: Path) -> None:
    plain, made = (list(read_zip(write(tmp_path / "a.zip", zipped(comment=c)))) for c in (b"", b"PK\5\6" + b"z" * 40))
    assert made == plain
    assert len(made) == len(NAMES) - 1


def test_bytes_before_the_zip(tmp_path: Path) -> None:
    """A program that unpacks itself: all offsets are too small."""
    check(write(tmp_path / "a.zip", b"#!/bin/sh\nexit\n" * 99 + zipped()))


@pytest.mark.parametrize("before", [b"", b"#!"])
def test_numbers_of_64_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: bytes) -> None:
    """The 64-bit form for more than 65,535 members or 4 GiB, written here for less by lower limits of the writer."""
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 60)
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 2)
    made = zipped(method=zipfile.ZIP_STORED)
    monkeypatch.undo()
    assert b"PK\6\6" in made
    check(write(tmp_path / "a.zip", before + made))


def test_an_empty_zip(tmp_path: Path) -> None:
    assert list(read_zip(write(tmp_path / "a.zip", zipped(())))) == []


@pytest.mark.parametrize(
    ("damage", "members", "words"),
    [
        (lambda made: b"", 0, "directory at the end is missing"),
        (lambda made: made[:-1], 0, "directory at the end is missing"),
        (lambda made: made[len(made) // 2 :], 0, "truncated"),
        (lambda made: made[:-18] + b"\1" + made[-17:], 0, "several parts"),
        (lambda made: made.replace(b"PK\1\2", b"PK\1\0"), 0, "no member in its directory"),
        (lambda made: b"PK\1\0".join(made.rsplit(b"PK\1\2", 2)), 2, "the rest is lost"),
    ],
)
def test_damage_in_the_directory(tmp_path: Path, damage: object, members: int, words: str) -> None:
    *found, last = read_zip(write(tmp_path / "a.zip", damage(zipped())))
    assert len(found) == members
    assert isinstance(last, Rejected)
    assert last.reason == "unreadable"
    assert words in last.detail


def test_damage_of_a_member(tmp_path: Path) -> None:
    made = bytearray(zipped(("1.jpg", "2.jpg"), zipfile.ZIP_STORED))
    made[made.index(b"2.jpg") + 7] ^= 1
    first, second = read_zip(write(tmp_path / "a.zip", bytes(made)))
    assert first.content() == content("1.jpg")
    with pytest.raises(ImageRejected, match="unreadable"):
        second.read()


def test_memory_does_not_grow_with_the_members(tmp_path: Path) -> None:
    file = write(tmp_path / "a.zip", zipped(tuple(f"faces/{number:06d}.jpg" for number in range(6000))))
    tracemalloc.start()
    try:
        assert sum(isinstance(member, ArchiveMember) for member in read_zip(file)) == 6000
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < 1_000_000  # bytes; the standard library's own directory takes over 3,000,000


def test_members_that_lie_over_each_other_are_refused(tmp_path: Path) -> None:
    """One range named by every entry of the directory: a small file that is unpacked 60,000 times."""
    single = zipped(("a.jpg",))
    end = single.rindex(b"PK\5\6")
    entry = single[single.index(b"PK\1\2") : end]
    tail = bytearray(single[end:])
    tail[8:10] = tail[10:12] = (60_000).to_bytes(2, "little")
    tail[12:16] = (60_000 * len(entry)).to_bytes(4, "little")
    file = write(tmp_path / "a.zip", single[: single.index(entry)] + entry * 60_000 + tail)
    with zipfile.ZipFile(file) as archive:
        assert len(archive.infolist()) == 60_000
    *members, last = read_zip(file)
    assert len(members) < 5
    assert isinstance(last, Rejected)
    assert "members overlap" in last.detail


def test_names_in_every_encoding(tmp_path: Path) -> None:
    """Without the flag: UTF-8 as macOS writes it, cp437 as the standard says, UTF-8 in Info-ZIP's extra field."""
    made = io.BytesIO()
    names = {"gl\u00fccklich": "utf-8", "trauri\u0308g": "utf-8", "w\u00fctend": "cp437", "m\u00fcde": "cp1252"}
    with zipfile.ZipFile(made, "w") as archive:
        for letter, (name, encoding) in zip("klmn", names.items(), strict=True):
            item = zipfile.ZipInfo(letter * len(name.encode(encoding)))
            if encoding == "cp1252":
                raw = name.encode(encoding)
                field = b"\1" + zlib.crc32(raw).to_bytes(4, "little") + name.encode()
                item.extra = (0x7075).to_bytes(2, "little") + len(field).to_bytes(2, "little") + field
            archive.writestr(item, name)
    data = made.getvalue()
    for letter, (name, encoding) in zip(b"klmn", names.items(), strict=True):
        raw = name.encode(encoding)
        data = data.replace(bytes([letter]) * len(raw), raw)
    found = list(read_zip(write(tmp_path / "a.zip", data)))
    assert [member.name for member in found] == list(names)
    assert [member.guessed for member in found] == [False, False, True, False]
    assert [member.content().decode() for member in found] == list(names)
