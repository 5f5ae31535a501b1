"""RecordIO packs: with and without an index, split records, metadata, damage."""

import struct
from pathlib import Path

import pytest
from helpers.recordio_corpus import MAGIC, packed, record, with_magic, write_pack
from helpers.source_kit import built, entries, photo, pixels, rejects, write

from shards.entry import Entry, LazyBytes
from shards.errors import UserError
from shards.sources.corpora.recordio import CORPUS, RecordIO

FACES = [(7, photo(1)), (7, photo(2)), (3, with_magic(photo(3), 1)), (0, with_magic(photo(4), 3)), (3, photo(5))]


def images(root: Path) -> dict[str, bytes]:
    return {key: entry.read() for key, entry in entries(RecordIO(root)).items() if isinstance(entry.read, LazyBytes)}


@pytest.mark.parametrize("indexed", [True, False])
def test_images_and_people_with_and_without_an_index(tmp_path: Path, indexed: bool) -> None:
    root = write_pack(tmp_path / "pack", FACES)
    if not indexed:
        (root / "train.idx").unlink()
    manifest, found = built(RecordIO(root), tmp_path / "out", workers=2)
    assert manifest.rejected == {}
    assert list(images(root).values()) == [image for _, image in FACES]
    for key, (_, image) in enumerate(FACES, 1):
        assert (pixels(found[f"train.rec/{key}"]["jpeg"]) == pixels(image)).all()
    assert [found[f"train.rec/{key}"]["group"] for key in range(1, 6)] == ["7", "7", "3", "0", "3"]
    assert {sample["split"] for sample in found.values()} == {"train"}


def test_the_fixture_splits_records() -> None:
    """Aligned magic is what splits a record; elsewhere it stays in the data."""
    assert record(packed((1,), with_magic(photo(), 1))).count(MAGIC) == 2
    assert record(packed((1,), with_magic(photo(), 3))).count(MAGIC) == 4
    shifted = record(packed((1,), with_magic(photo(), 1, shift=1)))
    assert struct.unpack("<I", shifted[4:8])[0] >> 29 == 0


def test_magic_that_does_not_split(tmp_path: Path) -> None:
    image = with_magic(photo(), 2, shift=1)
    assert images(write_pack(tmp_path, [(1, image)])) == {"train/00000001": image}


def test_a_split_within_the_header(tmp_path: Path) -> None:
    """A person whose number is the magic as a float: the header itself is split."""
    person = struct.unpack("<f", MAGIC)[0]
    root = write_pack(tmp_path, [(person, photo())])
    assert images(root) == {"train/00000001": photo()}
    assert entries(RecordIO(root))["train/00000001"].group == f"{person:.0f}"


def test_a_pack_without_metadata_begins_with_an_image(tmp_path: Path) -> None:
    root = write_pack(tmp_path, FACES, name="val", metadata=False)
    assert list(images(root)) == [f"val/{key:08d}" for key in range(5)]
    classes = list(RecordIO(root, label_is_class=True))
    assert [(item.label, item.group, item.split) for item in classes if isinstance(item, Entry)] == [
        (str(person), None, "val") for person, _ in FACES
    ]


def test_several_labels(tmp_path: Path) -> None:
    root = write_pack(tmp_path, FACES, metadata=False)
    write(root / "train.rec", record(packed((5, 0.5, 1), photo())))
    (root / "train.idx").unlink()
    assert images(root) == {"train/00000000": photo()}
    assert entries(RecordIO(root))["train/00000000"].group == "5"


@pytest.mark.parametrize("indexed", [True, False])
def test_a_pack_that_ends_early(tmp_path: Path, indexed: bool) -> None:
    root = write_pack(tmp_path, FACES)
    offsets = [int(line.split()[1]) for line in (root / "train.idx").read_text().splitlines()]
    (root / "train.rec").write_bytes((root / "train.rec").read_bytes()[: offsets[4] + 50])
    if not indexed:
        (root / "train.idx").unlink()
    rest = "truncated" if indexed else "missing"
    assert rejects(RecordIO(root)) == {"train.rec/4": "truncated", "train.rec/5": rest}
    assert len(images(root)) == 3


@pytest.mark.parametrize("indexed", [True, False])
def test_a_pack_that_ends_within_a_whole_record(tmp_path: Path, indexed: bool) -> None:
    root = write_pack(tmp_path, FACES, metadata=False)
    (root / "train.rec").write_bytes((root / "train.rec").read_bytes()[:-8])
    if not indexed:
        (root / "train.idx").unlink()
    assert rejects(RecordIO(root)) == {"train.rec/4": "truncated"}


def test_damage_in_the_middle(tmp_path: Path) -> None:
    """With an index, only the corrupt record is lost; without one, all records after it."""
    root = write_pack(tmp_path, FACES)
    offset = int((root / "train.idx").read_text().splitlines()[2].split()[1])
    content = bytearray((root / "train.rec").read_bytes())
    content[offset : offset + 4] = b"oops"
    (root / "train.rec").write_bytes(content)
    assert rejects(RecordIO(root)) == {"train.rec/2": "unreadable"}
    (root / "train.idx").unlink()
    assert rejects(RecordIO(root)) == {
        "train.rec/2": "unreadable",
        "train.rec/3": "missing",
        "train.rec/4": "missing",
        "train.rec/5": "missing",
    }


def test_an_index_with_damaged_and_absent_lines(tmp_path: Path) -> None:
    root = write_pack(tmp_path, FACES)
    rows = (root / "train.idx").read_text().splitlines()
    write(root / "train.idx", "\n".join([rows[0], "1 zwei", *rows[2:5], *rows[6:]]))
    assert rejects(RecordIO(root)) == {
        "train.idx line 2": "bad_row",
        "train.rec/1": "missing",
        "train.rec/5": "missing",
    }


def test_a_record_shorter_than_it_says(tmp_path: Path) -> None:
    root = write_pack(tmp_path, [(1, photo())], metadata=False)
    short = record(struct.pack("<IfQQ", 1000, 0, 0, 0))
    write(root / "train.rec", record(packed((1,), photo())) + short + record(b"tiny") + record(packed((2,), b"")))
    (root / "train.idx").unlink()
    assert rejects(RecordIO(root)) == {"train.rec/1": "unreadable", "train.rec/2": "unreadable"}
    assert images(root) == {"train/00000000": photo(), "train/00000003": b""}


def test_an_image_of_zero_bytes_is_counted(tmp_path: Path) -> None:
    manifest, _ = built(RecordIO(write_pack(tmp_path / "pack", [*FACES, (1, b"")])), tmp_path / "out")
    assert manifest.rejected == {"empty": 1}


def test_what_packs_hold_is_known(tmp_path: Path) -> None:
    write(tmp_path / "property", "93431,112,112\n")
    assert CORPUS.published_counts(RecordIO(tmp_path)) == {"train": {"": 5_179_510}}
    write(tmp_path / "property", "2,112,112")
    assert CORPUS.published_counts(RecordIO(tmp_path)) == {}


def test_a_folder_without_packs_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "lfw.bin", b"")
    with pytest.raises(UserError, match=r"no \.rec file in .*found: lfw\.bin"):
        list(RecordIO(tmp_path))
    write(tmp_path / "train.rec", b"something else")
    with pytest.raises(UserError, match="does not begin with a complete record"):
        list(RecordIO(tmp_path / "train.rec"))
