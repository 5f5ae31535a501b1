"""Open tars: parts inside their bounds, closed after the last use, images by the order of extensions."""

import gc
import os
from pathlib import Path
from typing import IO

import numpy as np
import pytest

from shards.errors import UserError
from shards.format.external_tars import image_extension
from shards.format.index import Index, make_index
from shards.format.shard_reader import OpenTar, TarTooShortError, image_table, open_tar
from shards.format.tar_writer import TarShardWriter


@pytest.fixture
def tar(tmp_path: Path) -> tuple[Path, Index]:
    path = tmp_path / "train-000000.tar"
    writer = TarShardWriter(path)
    for number in range(3):
        writer.add(f"s{number}", {"jpg": b"image %d" % number, "cls": b"%d" % number, "json": b"{}"})
    return path, writer.finish().index


def test_members_of_a_sample(tar: tuple[Path, Index]) -> None:
    path, index = tar
    with open_tar(path) as opened:
        assert opened.size == path.stat().st_size
        assert opened.read_members(index, 1) == {"jpg": b"image 1", "cls": b"1", "json": b"{}"}
        assert opened.read_members(index, 2, only=("cls",)) == {"cls": b"2"}
        offset, size = image_table(index)[1].tolist()
        assert opened.read(offset, size) == b"image 1"
        assert opened.has_member(offset, size)
        assert not opened.has_member(offset, size + 1)
        assert not opened.has_member(offset + 1, size)


def test_a_part_beyond_the_end_is_refused_before_memory_is_taken(tar: tuple[Path, Index]) -> None:
    with open_tar(tar[0]) as opened, pytest.raises(TarTooShortError, match="shorter than its index says") as found:
        opened.read(0, 1 << 60)
    assert isinstance(found.value, UserError)
    assert not found.value.truncated


def test_a_tar_that_becomes_shorter(tar: tuple[Path, Index]) -> None:
    with open_tar(tar[0]) as opened:
        os.truncate(tar[0], 600)
        assert opened.read(512, 7) == b"image 0"
        with pytest.raises(TarTooShortError, match=r"train-000000\.tar was truncated while it was read") as found:
            opened.read(512, 512)
    assert found.value.truncated


def test_reads_that_return_a_part_are_continued(tar: tuple[Path, Index], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.pread
    monkeypatch.setattr(os, "pread", lambda number, size, offset: whole(number, min(size, 3), offset))
    with open_tar(tar[0]) as opened:
        assert opened.read(512, 7) == b"image 0"


def test_a_tar_stays_open_as_long_as_it_is_referenced(tar: tuple[Path, Index]) -> None:
    file: IO[bytes] = tar[0].open("rb")
    held = {0: OpenTar(file, tar[0])}
    mine = held[0]
    del held[0]  # as another thread does that needs the place
    gc.collect()
    assert mine.read(512, 7) == b"image 0"
    assert not file.closed
    del mine
    gc.collect()
    assert file.closed


def test_the_image_of_a_sample_is_that_of_its_extension() -> None:
    samples = [("png", "JPG"), ("webp",), ("cls",), ("jpeg", "jpg", "PNG")]
    names = [(f"s{number}.{name}", name) for number, each in enumerate(samples) for name in each]
    index = make_index((name, 1000 * place, 1 + place) for place, (name, _) in enumerate(names))
    table = image_table(index)
    for number, each in enumerate(samples):
        wanted = image_extension(each)
        member = index.members(number).get(wanted or "")
        assert table[number].tolist() == ([-1, -1] if member is None else [member.offset, member.size])
    assert table.dtype == np.int64
