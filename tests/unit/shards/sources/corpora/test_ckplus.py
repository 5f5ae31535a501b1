"""CK+: labels of sequences become labels of frames; people stay whole."""

from pathlib import Path

import pytest
from helpers.ckplus_corpus import write_ckplus
from helpers.source_kit import built, entries, photo, rejects, write

from shards.errors import UserError
from shards.sources.corpora.ckplus import CORPUS, CKPlus


def test_first_and_last_frames(tmp_path: Path) -> None:
    source = CKPlus(write_ckplus(tmp_path / "ck"))
    found = entries(source)
    assert {key.rpartition("/")[2]: (face.label, face.group) for key, face in found.items()} == {
        "S005_001_00000001.png": ("neutral", "S005"),
        "S005_001_00000005.png": ("disgust", "S005"),
        "S005_002_00000001.png": ("neutral", "S005"),
        "S005_002_00000005.png": (None, "S005"),
        "S010_001_00000001.png": ("neutral", "S010"),
        "S010_001_00000005.png": ("surprise", "S010"),
        "S999_001_00000001.png": ("neutral", "S999"),
        "S999_001_00000005.png": ("anger", "S999"),
    }
    face = found["S010/001/S010_001_00000005.png"]
    assert face.extras == {"sequence": "001", "frame": 4, "frames": 5}
    assert face.landmarks[1] == (0.5, 6)
    assert {face.split for face in found.values()} == {None}
    manifest, samples = built(source, tmp_path / "out")
    assert (manifest.samples, manifest.rejected) == (8, {})
    assert samples["cohn-kanade-images/S010/001/S010_001_00000005.png"]["group"] == "S010"


def test_more_frames_of_a_sequence(tmp_path: Path) -> None:
    root = write_ckplus(tmp_path / "ck")
    labels = [face.label for face in entries(CKPlus(root, last=3, neutral=False)).values() if face.group == "S010"]
    assert labels == ["surprise"] * 3
    labels = [face.label for face in entries(CKPlus(root, last=9)).values() if face.group == "S010"]
    assert labels == ["neutral"] + ["surprise"] * 4, "the first frame stays neutral"
    labels = [face.label for face in entries(CKPlus(root, all_frames=True)).values() if face.group == "S010"]
    assert labels == ["neutral", None, None, None, "surprise"]
    with pytest.raises(UserError, match="--last=0"):
        CKPlus(root, last=0)


def test_other_folders_for_the_labels(tmp_path: Path) -> None:
    root = write_ckplus(tmp_path / "ck", "Emotion_labels/Emotion")
    assert {face.label for face in entries(CKPlus(root, neutral=False)).values()} == {
        "disgust",
        None,
        "surprise",
        "anger",
    }
    (root / "Emotion_labels").rename(root / "elsewhere")
    with pytest.raises(UserError, match="no folder of labels"):
        list(CKPlus(root))


@pytest.mark.parametrize("text", ["8.0000000e+00", "2.5", "anger", ""])
def test_damaged_labels(tmp_path: Path, text: str) -> None:
    root = write_ckplus(tmp_path / "ck")
    write(root / "Emotion" / "S010" / "001" / "S010_001_00000005_emotion.txt", text)
    write(root / "Landmarks" / "S010" / "001" / "S010_001_00000001_landmarks.txt", "1 2\n")
    assert rejects(CKPlus(root)) == {"cohn-kanade-images/S010/001/S010_001_00000005.png": "bad_row"}
    assert entries(CKPlus(root))["S010/001/S010_001_00000001.png"].landmarks is None


def test_what_is_not_ckplus_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "anger" / "S010_004_00000017.png", photo(kind="PNG"))
    with pytest.raises(UserError, match=r"no folder of sequences .* found: anger"):
        list(CKPlus(tmp_path))


def test_published_counts(tmp_path: Path) -> None:
    counts = CORPUS.published_counts(CKPlus(tmp_path, neutral=False))
    assert sum(counts["train"].values()) == 327
    assert CORPUS.published_counts(CKPlus(tmp_path))["train"]["neutral"] == 593
    assert CORPUS.published_counts(CKPlus(tmp_path, last=3)) == {}
