"""VGGFace2 with its lists of boxes and landmarks."""

from pathlib import Path

import pytest
from helpers.source_kit import built, entries, photo, rejects, write

from shards.errors import UserError
from shards.sources.corpora.vggface2 import CORPUS, VGGFace2

MARKS = "75.8,110.2,103.6,104.8,90.7,125.4,84.4,149.5,107.5,143.3"
HEADER = "NAME_ID,P1X,P1Y,P2X,P2Y,P3X,P3Y,P4X,P4Y,P5X,P5Y"


def write_vggface2(root: Path) -> Path:
    """Two people in train, one in test; a person's lines in two places of a list; names without an extension."""
    for split, name in (
        ("train", "n000002/0001_01"),
        ("train", "n000002/0002_01"),
        ("train", "n000003/0001_01"),
        ("test", "n000001/0001_01"),
    ):
        write(root / split / f"{name}.jpg", photo(len(name)))
    write(
        root / "bb_landmark" / "loose_bb_train.csv",
        'NAME_ID,X,Y,W,H\n"n000002/0001_01",161,140,224,324\n"n000003/0001_01",-4,5,60,70\n"n000002/0002_01",1,2,3,4\n',
    )
    write(root / "bb_landmark" / "loose_bb_test.csv", 'NAME_ID,X,Y,W,H\n"n000001/0001_01",60,60,79,109\n')
    write(root / "bb_landmark" / "loose_landmark_test.csv", f'{HEADER}\n"n000001/0001_01",{MARKS}\n')
    write(
        root / "meta" / "identity_meta.csv",
        'Class_ID, Name, Sample_Num, Flag, Gender\nn000001, "A. Person, Jr.", 424, 0, m\nn000002, "B", 315, 1, f\n',
    )
    return root


def test_people_boxes_and_landmarks(tmp_path: Path) -> None:
    root = write_vggface2(tmp_path / "vgg")
    manifest, found = built(VGGFace2(root), tmp_path / "out")
    assert (manifest.samples, manifest.splits) == (4, ("train", "test"))
    test = found["test/n000001/0001_01.jpg"]
    assert (test["group"], test["box"], test["extras"]) == ("n000001", [60, 60, 79, 109], {"gender": "m"})
    assert test["landmarks"][4] == [107.5, 143.3]
    assert found["train/n000003/0001_01.jpg"]["box"] == [-4, 5, 60, 70]


def test_a_person_may_be_listed_in_several_places(tmp_path: Path) -> None:
    found = entries(VGGFace2(write_vggface2(tmp_path)))
    assert found["train/n000002/0002_01.jpg"].box == (1, 2, 3, 4)
    assert found["train/n000002/0001_01.jpg"].box == (161, 140, 224, 324)


def test_lists_may_be_absent(tmp_path: Path) -> None:
    for name in ("n000002/0001_01.jpg", "n000002/0002_01.JPG"):
        write(tmp_path / "data" / "train" / name, photo())
    found = entries(VGGFace2(tmp_path))
    assert {entry.box for entry in found.values()} == {None}
    assert {entry.group for entry in found.values()} == {"n000002"}
    assert CORPUS.published_counts(VGGFace2(tmp_path)) == {"train": {"": 3_141_890}}


def test_listed_and_absent_unlisted_and_there(tmp_path: Path) -> None:
    root = write_vggface2(tmp_path)
    (root / "train" / "n000002" / "0001_01.jpg").unlink()
    write(root / "train" / "n000002" / "0009_01.jpg", photo())
    with (root / "bb_landmark" / "loose_bb_train.csv").open("a") as boxes:
        boxes.write('"n000009/0001_01",1,2,3,4\n')
    assert rejects(VGGFace2(root)) == {
        "train/n000002/0001_01.jpg": "missing",
        "train/n000009/0001_01.jpg": "missing",
    }
    assert entries(VGGFace2(root))["train/n000002/0009_01.jpg"].box is None


def test_damaged_and_dangerous_lines(tmp_path: Path) -> None:
    root = write_vggface2(tmp_path)
    with (root / "bb_landmark" / "loose_bb_train.csv").open("a") as boxes:
        boxes.write('\n"n000003/0001_01",7,eight,9,10\n"../0001_01",1,2,3,4\n"n000003/../../x",1,2,3,4\n')
    found = rejects(VGGFace2(root))
    assert found["train/n000003/0001_01.jpg"] == "bad_row"
    assert {source: reason for source, reason in found.items() if ".." in source} == {
        "train/../0001_01.jpg": "outside",
        "train/n000003/../../x.jpg": "outside",
    }


def test_another_header_is_refused(tmp_path: Path) -> None:
    root = write_vggface2(tmp_path)
    write(root / "bb_landmark" / "loose_bb_train.csv", "NAME_ID,X1,Y1,X2,Y2\n")
    with pytest.raises(UserError, match=r"first line of .*loose_bb_train.csv is not NAME_ID,X,Y,W,H"):
        list(VGGFace2(root))


def test_any_train_folder_is_not_vggface2(tmp_path: Path) -> None:
    write(tmp_path / "train" / "happy" / "a.jpg", photo())
    with pytest.raises(UserError, match="no folders such as n000002"):
        list(VGGFace2(tmp_path))
