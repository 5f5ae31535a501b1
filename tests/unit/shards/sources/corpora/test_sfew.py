"""SFEW 2.0: class folders, nested as its archives nest them; films stay whole."""

from pathlib import Path

import pytest
from helpers.source_kit import built, entries, photo, rejects, write

from shards.errors import UserError
from shards.sources.corpora.sfew import CORPUS, SFEW

TRAIN = ("Angry/Airheads_000519240_00000005.png", "Happy/Harry_Potter_1_000519240_00000012.png")
VAL = ("Neutral/21_000520280_00000021.png", "Sad/Still_Alice_00.png")


def write_sfew(root: Path, train: str = "Train_Aligned_Faces", val: str = "Val_Aligned_Faces_new") -> Path:
    """PNGs of 143 x 181 in class folders below `train` and `val`."""
    for folder, faces in ((train, TRAIN), (val, VAL)):
        for number, name in enumerate(faces):
            write(root / folder / name, photo(number, 143, 181, "PNG"))
        write(root / folder / "Thumbs.txt", "x")
    return root


LAYOUTS = [
    ("Train_Aligned_Faces", "Val_Aligned_Faces_new"),
    ("Train/Train_Aligned_Faces", "Val/Val_Aligned_Faces_new/Val_Aligned_Faces"),
    ("Train_Aligned_Faces/Train_Aligned_Faces", "Val_Aligned_Faces_new/Val_Aligned_Faces_new"),
]


@pytest.mark.parametrize(("train", "val"), LAYOUTS)
def test_layouts(tmp_path: Path, train: str, val: str) -> None:
    source = SFEW(write_sfew(tmp_path / "sfew", train, val))
    found = entries(source)
    assert {key: (face.label.lower(), face.split, face.group) for key, face in found.items()} == {
        f"train/{TRAIN[0]}": ("angry", "train", "Airheads"),
        f"train/{TRAIN[1]}": ("happy", "train", "Harry_Potter_1"),
        f"val/{VAL[0]}": ("neutral", "val", "21"),
        f"val/{VAL[1]}": ("sad", "val", None),
    }
    manifest, samples = built(source, tmp_path / "out")
    assert manifest.labels == ("angry", "happy", "neutral", "sad")
    assert (manifest.samples, manifest.rejected) == (4, {})
    assert {(sample["width"], sample["height"]) for sample in samples.values()} == {(143, 181)}
    assert f"{train}/{TRAIN[0]}" in samples


def test_the_test_faces_have_no_labels(tmp_path: Path) -> None:
    root = write_sfew(tmp_path / "sfew")
    write(
        root / "Test_Aligned_Faces" / "Test_Aligned_Faces" / "set" / "Unknown_000000001_00000001.png",
        photo(1, 143, 181, "PNG"),
    )
    face = entries(SFEW(root))["test/set/Unknown_000000001_00000001.png"]
    assert (face.label, face.split) == (None, "test")


def test_what_is_not_sfew_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "Train" / "Angry.zip", b"")
    with pytest.raises(UserError, match=r"no folder of aligned faces .* found: Train"):
        list(SFEW(tmp_path))
    assert rejects(SFEW(write_sfew(tmp_path / "sfew"))) == {}


def test_published_counts(tmp_path: Path) -> None:
    assert CORPUS.published_counts(SFEW(tmp_path)) == {"train": {"": 891}, "val": {"": 431}}
