"""Lists, names and files as programs really leave them: read as they are meant, or named in one line."""

from pathlib import Path

import pytest
from helpers.data_fixtures import jpeg, picture, write_shards
from helpers.source_kit import entries, photo, write

from shards.build.builder import BuildReport, build
from shards.build.spec import BuildSpec
from shards.errors import UserError
from shards.imaging.codec import ImageRejected, decode_rgb
from shards.rules import EntryRules, normalize_label
from shards.sources.generic.archive import Archive
from shards.sources.generic.folder import Folder
from shards.sources.generic.table import Table
from simfle.data.dataset import ShardCorpus

ALL = EntryRules()


def quiet(*_: object) -> None:
    """The result is not used."""


def listed(folder: Path, text: str | bytes, images: str = "ab") -> Path:
    for number, name in enumerate(images):
        write(folder / f"{name}.jpg", photo(number))
    return write(folder / "list.csv", text)


def build_folder(folder: Path, rules: EntryRules = ALL, **how: bool) -> BuildReport:
    return build(BuildSpec(folder.with_name("out"), "test", {}, rules), Folder(folder, **how), quiet)


@pytest.mark.parametrize("start", [b"PK\x03\x04\x14\x00", bytes.fromhex("d0cf11e0a1b11ae1")])
def test_a_workbook_under_the_name_of_a_list(tmp_path: Path, start: bytes) -> None:
    file = listed(tmp_path, start + bytes(range(256)))
    with pytest.raises(UserError, match=r"list\.csv is a workbook\. Fix: save its sheet as 'CSV UTF-8'"):
        list(Table(file, tmp_path))


def test_a_list_in_the_encoding_of_windows(tmp_path: Path) -> None:
    file = listed(tmp_path, "path;label\r\na.jpg;w\u00fctend\r\n".encode("cp1252"))
    with pytest.raises(UserError, match=r"is not UTF-8 .*Fix: save it as 'CSV UTF-8', or .*iconv -f CP1252 -t UTF-8"):
        list(Table(file, tmp_path))


def test_a_typeset_minus_is_a_minus(tmp_path: Path) -> None:
    file = listed(tmp_path, "path;v\na.jpg;\u22120,5\nb.jpg;-0.5\n")
    found = entries(Table(file, tmp_path, valence_column="v"))
    assert [item.extras for item in found.values()] == [{"valence": -0.5}] * 2


def test_extensions_in_another_case_than_the_files(tmp_path: Path) -> None:
    file = listed(tmp_path / "in", "path\na.JPG\nb.JPG\nc.Jpg\nB.jpg\n")
    write(tmp_path / "in/c.JPG", photo(3))
    report = build(BuildSpec(tmp_path / "out", "test", {}), Table(file, tmp_path / "in"), quiet)
    assert (report.manifest.samples, report.manifest.rejected) == (3, {"missing": 1})


def test_invisible_characters_make_no_class() -> None:
    for text in ("Happy ", "happy\u200b", "\ufeffhappy", "HAPPY\u00a0", "\u2060happy\t"):
        assert normalize_label(text) == "happy"
    assert normalize_label("\u2003very happy\u3000\u200b ") == "very happy"
    assert normalize_label("\u0645\u06cc\u200c\u062e") == "\u0645\u06cc\u200c\u062e"  # within a word it is a letter
    assert normalize_label("\u200b ") is None


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0", "HEIC or AVIF; convert it to JPEG"),
        (b"\0\0\0\x20ftypisom\0\0\0\0", "a video or another MP4 file"),
        (b"<!DOCTYPE html><html>", "a web page; download the image again"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer; run git lfs pull"),
        (b"something else", ""),
    ],
)
def test_what_an_image_is_instead(start: bytes, words: str) -> None:
    with pytest.raises(ImageRejected) as raised:
        decode_rgb(start + bytes(300))
    assert (raised.value.reason, raised.value.detail) == ("not_an_image", words)


def test_a_link_to_itself_costs_one_image(tmp_path: Path) -> None:
    write(tmp_path / "in/a.jpg", photo(1))
    (tmp_path / "in/b.jpg").symlink_to("b.jpg")
    (tmp_path / "in/c.jpg").symlink_to("nothing")
    write(tmp_path / "in/d.jpg/e.jpg", photo(2))
    report = build_folder(tmp_path / "in")
    assert (report.manifest.samples, report.manifest.rejected) == (2, {"missing": 2})


@pytest.mark.parametrize("name", ["faces.7z", "faces.rar", "faces.tar.zst"])
def test_archives_that_are_not_read(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"no images in .*Fix: unpack it\."):
        list(Archive(write(tmp_path / name, b"7z\xbc\xaf" + bytes(600))))


def test_people_who_differ_in_case_only_are_said(tmp_path: Path) -> None:
    for number, name in enumerate(("Anna", "anna", "Bo", "Cy")):
        write(tmp_path / f"in/{name}_{number}.jpg", photo(number))
    notes = build_folder(tmp_path / "in", EntryRules(group_pattern="([A-Za-z]+)_")).notes
    assert notes == [
        "1 names of people differ only in upper and lower case, such as Anna and anna; they count as different people"
    ]


def test_a_misspelt_split_is_said(tmp_path: Path) -> None:
    file = listed(tmp_path / "in", "path,split\na.jpg,train\nb.jpg,tset\n")
    report = build(BuildSpec(tmp_path / "out", "t", {}), Table(file, tmp_path / "in", split_column="split"), quiet)
    assert "split tset is not test, the name that training and evaluation use" in report.notes


def test_a_label_for_each_image_is_said(tmp_path: Path) -> None:
    for number in range(12):
        write(tmp_path / f"in/{number:02d}/a.jpg", photo(number))
    notes = build_folder(tmp_path / "in", class_folders=True).notes
    assert "12 labels for 12 images: does the label column hold names of files or people?" in notes


def test_a_copy_of_a_folder_of_shards_is_refused(tmp_path: Path) -> None:
    shards = [("train", [jpeg(picture(seed, 16, 16)) for seed in range(2)])]
    folders = [str(write_shards(tmp_path / name, shards)) for name in ("a", "b")]
    with pytest.raises(UserError, match=r"b and .*a have the same shard train-000000\.tar.*Fix: name one of them"):
        ShardCorpus(folders)
    assert len(ShardCorpus(folders[:1])) == 2
