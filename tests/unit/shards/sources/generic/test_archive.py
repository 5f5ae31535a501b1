"""Images in tar and zip archives."""

import io
import tarfile
import unicodedata
import zipfile
from pathlib import Path

import numpy as np
import pytest
from helpers.source_kit import built, entries, photo, pixels, rejects, write
from PIL import Image

from shards.errors import UserError
from shards.sources.generic.archive import Archive

NAMES = ("train/happy/1.jpg", "train/sad/2.png", "test/happy/3.JPG", "notes.txt")


def image(name: str) -> bytes:
    """Return an image for that name; a .bmp is noise, which cannot be compressed."""
    if name.endswith(".bmp"):
        file = io.BytesIO()
        Image.fromarray(np.random.default_rng(int(name[:3])).integers(0, 255, (99, 99, 3), np.uint8)).save(file, "BMP")
        return file.getvalue()
    return photo(len(name), kind="PNG" if name.endswith("png") else "JPEG") if "txt" not in name else b"x"


def write_tar(file: Path, names: tuple[str, ...] = NAMES, mode: str = "w", **options: object) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, mode, **options) as archive:
        for name in names:
            item = tarfile.TarInfo(name)
            item.size = len(image(name))
            archive.addfile(item, io.BytesIO(image(name)))
    return file


def write_zip(file: Path, names: tuple[str, ...] = NAMES, method: int = zipfile.ZIP_DEFLATED) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(file, "w", method) as archive:
        for name in names:
            archive.writestr(name, image(name))
    return file


WRITERS = {
    "faces.tar": write_tar,
    "faces.tar.gz": lambda file, names=NAMES: write_tar(file, names, "w:gz"),
    "faces.tgz": lambda file, names=NAMES: write_tar(file, names, "w:gz"),
    "faces.tar.xz": lambda file, names=NAMES: write_tar(file, names, "w:xz", preset=0),
    "faces.tar.bz2": lambda file, names=NAMES: write_tar(file, names, "w:bz2", compresslevel=1),
    "faces.zip": write_zip,
    "stored.zip": lambda file, names=NAMES: write_zip(file, names, zipfile.ZIP_STORED),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_archive(tmp_path: Path, name: str) -> None:
    source = Archive(WRITERS[name](tmp_path / name), class_folders=True, split_folders=True)
    _, found = built(source, tmp_path / "out", workers=2 if name == "faces.zip" else 1)
    assert {path: (sample["split"], sample["label"]) for path, sample in found.items()} == {
        f"{name}/train/happy/1.jpg": ("train", "happy"),
        f"{name}/train/sad/2.png": ("train", "sad"),
        f"{name}/test/happy/3.JPG": ("test", "happy"),
    }
    assert found[f"{name}/train/happy/1.jpg"]["jpeg"] == image(NAMES[0])
    assert abs(pixels(found[f"{name}/train/sad/2.png"]["jpeg"]) - pixels(image(NAMES[1]))).max() <= 8
    assert any(".txt" in note for note in source.notes())
    assert [path.name for path in tmp_path.iterdir() if path.name != "out"] == [name]


@pytest.mark.parametrize("name", ["a.tar", "a.zip"])
def test_paths_that_leave_the_archive(tmp_path: Path, name: str) -> None:
    names = ("../x.jpg", "/etc/y.jpg", "a/../../z.jpg", "./ok/1.jpg")
    source = Archive(WRITERS["faces" + Path(name).suffix](tmp_path / name, names))
    assert rejects(source) == {f"{name}/{path}": "outside" for path in names[:3]}
    assert set(entries(source)) == {"ok/1.jpg"}


@pytest.mark.parametrize("name", ["a.tar", "a.zip"])
def test_what_systems_leave_behind_is_no_face(tmp_path: Path, name: str) -> None:
    names = ("__MACOSX/a/._1.jpg", "a/._1.jpg", ".hidden/2.jpg", "a/1.jpg")
    source = Archive(WRITERS["faces" + Path(name).suffix](tmp_path / name, names))
    assert set(entries(source)) == {"a/1.jpg"}
    assert not rejects(source)


def test_zips_from_windows(tmp_path: Path) -> None:
    write_zip(tmp_path / "a.zip", ("train\\happy\\1.jpg",))
    entry = entries(Archive(tmp_path / "a.zip", class_folders=True, split_folders=True))["train/happy/1.jpg"]
    assert (entry.split, entry.label) == ("train", "happy")


def test_a_folder_of_archives_counts_their_names_as_folders(tmp_path: Path) -> None:
    write_tar(tmp_path / "faces" / "train.tar", ("happy/1.jpg",))
    write_zip(tmp_path / "faces" / "test.zip", ("happy/1.jpg", "sad/2.jpg"))
    write_tar(tmp_path / "faces" / "extra.tar.gz", ("sad/2.jpg",), "w:gz")
    found = list(Archive(tmp_path / "faces", class_folders=True, split_folders=True))
    assert [(item.source, getattr(item, "split", "")) for item in found] == [
        ("extra.tar.gz/sad/2.jpg", ""),
        ("test.zip/happy/1.jpg", "test"),
        ("test.zip/sad/2.jpg", "test"),
        ("train.tar/happy/1.jpg", "train"),
    ]
    assert found[0].reason == "no_split"


def test_archives_of_splits_are_told_from_those_of_classes(tmp_path: Path) -> None:
    write_zip(tmp_path / "faces" / "train.zip", ("happy/1.jpg",))
    write_zip(tmp_path / "faces" / "test.zip", ("happy/1.jpg", "sad/2.jpg"))
    told = {}
    for options in ((), ("class_folders",), ("split_folders",)):
        source = Archive(tmp_path / "faces", **dict.fromkeys(options, True))
        list(source)
        told[options] = " ".join(source.notes())
    assert "has split folders (test, train): add --split-folders" in told[()]
    assert "the labels of" in told["class_folders",]
    assert told["split_folders",] == ""
    write_zip(tmp_path / "faces" / "more.zip", ("happy/1.jpg",))
    source = Archive(tmp_path / "faces")
    list(source)
    assert "has folders (more, test, train ...): add --class-folders to use them as labels" in " ".join(source.notes())


def test_below_a_folder_of_the_archive(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", ("faces/images/train/happy/1.jpg", "faces/docs/2.jpg"))
    source = Archive(tmp_path / "a.tar", class_folders=True, split_folders=True, subdir="faces/images/")
    assert {key: entry.label for key, entry in entries(source).items()} == {"train/happy/1.jpg": "happy"}
    with pytest.raises(UserError, match="no images below 'photos'"):
        list(Archive(tmp_path / "a.tar", subdir="photos"))


@pytest.mark.parametrize("name", WRITERS)
def test_an_archive_that_ends_early(tmp_path: Path, name: str) -> None:
    names = tuple(f"{number:03d}.bmp" for number in range(24))
    file = WRITERS[name](tmp_path / name, names)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    if name.endswith(".zip"):
        with pytest.raises(UserError, match="not a complete zip"):
            list(Archive(file))
        return
    assert rejects(Archive(file)) == {name: "truncated"}
    found = entries(Archive(file))
    assert 6 < len(found) < 18
    for key, entry in list(found.items())[:-1]:
        assert (entry.read if isinstance(entry.read, bytes) else entry.read()) == image(key)
    if name == "faces.tar":
        assert built(Archive(file), tmp_path / "out")[0].rejected == {"truncated": 2}


def test_damage_between_members(tmp_path: Path) -> None:
    """tarfile treats a corrupt header as the end."""
    file = write_tar(tmp_path / "a.tar", ("1.jpg", "2.jpg", "3.jpg"))
    content = bytearray(file.read_bytes())
    start = content.index(b"2.jpg")
    content[start + 100 : start + 160] = b"\xaa" * 60
    file.write_bytes(content)
    assert rejects(Archive(file)) == {"a.tar": "unreadable"}
    assert set(entries(Archive(file))) == {"1.jpg"}


def test_a_damaged_member_of_a_zip(tmp_path: Path) -> None:
    file = write_zip(tmp_path / "a.zip", ("1.jpg", "2.jpg", "3.jpg"))
    content = bytearray(file.read_bytes())
    start = content.index(b"2.jpg")
    content[start + 60 : start + 80] = bytes(20)
    content[content.index(b"3.jpg") - 30] = 0
    file.write_bytes(content)
    assert built(Archive(file), tmp_path / "out")[0].rejected == {"unreadable": 2}


def test_members_that_cannot_be_read(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for kind, name in ((tarfile.SYMTYPE, "soft.jpg"), (tarfile.LNKTYPE, "hard.jpg"), (tarfile.DIRTYPE, "dir.jpg")):
            item = tarfile.TarInfo(name)
            item.type, item.linkname = kind, "/etc/passwd"
            archive.addfile(item)
    assert rejects(Archive(tmp_path / "a.tar")) == {"a.tar/soft.jpg": "missing", "a.tar/hard.jpg": "missing"}
    write_zip(tmp_path / "b.zip", ("1.jpg",), zipfile.ZIP_LZMA)
    assert rejects(Archive(tmp_path / "b.zip")) == {"b.zip/1.jpg": "unreadable"}
    file = write_zip(tmp_path / "c.zip", ("1.jpg",))
    content = bytearray(file.read_bytes())
    content[content.index(b"PK\1\2") + 8] |= 1
    file.write_bytes(content)
    assert rejects(Archive(file)) == {"c.zip/1.jpg": "unreadable"}


def test_one_bad_archive_of_several_is_counted(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", ("1.jpg",))
    write(tmp_path / "b.tar", b"")
    write(tmp_path / "c.zip", b"not one")
    write(tmp_path / "d.tar", photo())
    assert rejects(Archive(tmp_path)) == {"b.tar": "empty", "c.zip": "unreadable", "d.tar": "unreadable"}
    assert set(entries(Archive(tmp_path))) == {"a/1.jpg"}


def test_nothing_to_find(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        list(Archive(tmp_path / "absent.zip"))
    write(tmp_path / "faces" / "a.jpg", photo())
    with pytest.raises(UserError, match=r"no archive .*found: a\.jpg"):
        list(Archive(tmp_path / "faces"))
    write_zip(tmp_path / "a.zip", ("1.txt",))
    with pytest.raises(UserError, match=r"no images in .*found: 1 \.txt"):
        list(Archive(tmp_path / "a.zip"))


def test_names_of_a_windows_zip(tmp_path: Path) -> None:
    """Without any statement of an encoding: read as the standard says, with a note."""
    file = write_zip(tmp_path / "faces.zip", ("xxxxxx/1.jpg",))
    file.write_bytes(file.read_bytes().replace(b"xxxxxx", "w\u00fctend".encode("cp1252")))
    source = Archive(file, class_folders=True)
    assert [item.label for item in entries(source).values()] == ["w\u207ftend"]
    (note,) = source.notes()
    assert note.startswith("faces.zip does not state the encoding of its names, which were read as cp437, such as ")
    assert not Archive(write_zip(tmp_path / "b.zip")).guessed


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_folder_of_the_archive_in_either_unicode_form(tmp_path: Path, form: str) -> None:
    name = "Gef\u00fchle"
    file = write_zip(tmp_path / "faces.zip", (f"{unicodedata.normalize(form, name)}/1.jpg", "more/2.jpg"))
    for typed in ("NFC", "NFD"):
        assert list(entries(Archive(file, subdir=unicodedata.normalize(typed, name)))) == ["1.jpg"]
