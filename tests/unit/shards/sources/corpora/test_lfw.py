"""Labeled Faces in the Wild."""

from pathlib import Path

import pytest
from helpers.source_kit import built, entries, photo, write

from shards.errors import UserError
from shards.sources.corpora.lfw import LFW

PHOTOS = ("Ann_Lee/Ann_Lee_0001.jpg", "Ann_Lee/Ann_Lee_0002.jpg", "J_O'Neil/J_O'Neil_0001.jpg")


def write_lfw(folder: Path) -> Path:
    for number, name in enumerate(PHOTOS):
        write(folder / name, photo(number))
    write(folder.parent / "pairs.txt", "10\t300\n")
    return folder


def test_people_are_groups(tmp_path: Path) -> None:
    source = LFW(write_lfw(tmp_path / "lfw"))
    manifest, found = built(source, tmp_path / "out")
    assert {sample["source"]: sample["group"] for sample in found.values()} == {
        name: name.split("/")[0] for name in PHOTOS
    }
    assert (manifest.samples, source.release) == (3, "lfw")


@pytest.mark.parametrize("place", ["lfw", "lfw_funneled", "lfw-deepfunneled/lfw-deepfunneled"])
def test_it_may_be_nested(tmp_path: Path, place: str) -> None:
    write_lfw(tmp_path / place)
    assert set(entries(LFW(tmp_path))) == set(PHOTOS)


def test_two_releases_are_the_same_photos(tmp_path: Path) -> None:
    write_lfw(tmp_path / "lfw")
    write_lfw(tmp_path / "lfw_funneled")
    with pytest.raises(UserError, match=r"more than once \(lfw, lfw_funneled\)"):
        list(LFW(tmp_path))


def test_other_folders_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "happy" / "1.jpg", photo())
    with pytest.raises(UserError, match=r"lfw: no person folders .*found: happy"):
        list(LFW(tmp_path))
