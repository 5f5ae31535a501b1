"""FER2013 in all forms of its list, and FERPlus joined to it by the position of the row."""

import io
from pathlib import Path

import numpy as np
import pytest
from helpers.fer2013_corpus import (
    EMOTIONS,
    VOTES,
    gray,
    text,
    write_contest,
    write_fer2013,
    write_ferplus,
    write_images,
)
from helpers.mtfl_corpus import packed
from helpers.source_kit import built, entries, photo, pixels, rejects, write
from PIL import Image

from shards.errors import UserError
from shards.sources.corpora import fer2013
from shards.sources.corpora.fer2013 import FER2013
from shards.sources.corpora.ferplus import CORPUS, LABELS, FERPlus, majority

NAMES = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
SPLITS = ["train"] * 6 + ["val"] * 3 + ["test"] * 3


@pytest.mark.parametrize("name", ["fer2013.csv", "icml_face_data.csv", "fer2013/fer2013.csv"])
def test_lists_of_all_rows(tmp_path: Path, name: str) -> None:
    source = FER2013(write_fer2013(tmp_path / "fer", name))
    found = entries(source)
    assert list(found) == [f"fer2013-{row:05d}" for row in range(12)]
    assert [face.label for face in found.values()] == [NAMES[emotion] for emotion in EMOTIONS]
    assert [face.split for face in found.values()] == SPLITS
    for row, face in enumerate(found.values()):
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(face.read))), gray(row))


def test_the_built_images_are_the_texts(tmp_path: Path) -> None:
    manifest, samples = built(FER2013(write_fer2013(tmp_path / "fer")), tmp_path / "out")
    assert (manifest.samples, manifest.rejected) == (12, {})
    image = pixels(samples["fer2013.csv row 4"]["jpeg"])
    assert image.shape == (48, 48, 3)
    assert np.abs(image - gray(4)[:, :, None].astype(int)).mean() < 6
    assert np.ptp(image, axis=2).max() <= 1


def test_the_contest_has_a_test_without_labels(tmp_path: Path) -> None:
    source = FER2013(write_contest(tmp_path / "fer"))
    found = entries(source)
    assert [face.split for face in found.values()] == ["train"] * 6 + ["test"] * 6
    assert [face.label for face in found.values()] == [*(NAMES[n] for n in EMOTIONS[:6]), *[None] * 6]
    assert list(found)[6] == "test-00000"
    assert fer2013.CORPUS.published_counts(source)["test"] == {"": 7178}


def test_the_list_of_all_rows_is_preferred(tmp_path: Path) -> None:
    root = write_contest(write_fer2013(tmp_path / "fer", "icml_face_data.csv"))
    assert len(entries(FER2013(root))) == 12


def test_damaged_rows(tmp_path: Path) -> None:
    root = write_fer2013(tmp_path / "fer")
    file = root / "fer2013.csv"
    short, large = text(1).rpartition(" ")[0], text(1).replace("0 ", "256 ", 1)
    rows = [f"3,{short},Training", f"3,{large},Training", f"7,{text(1)},Training", f"3,{text(1)},Other", "3"]
    file.write_text(file.read_text() + "\n".join(rows) + "\n")
    assert rejects(FER2013(root)) == {f"fer2013.csv row {row}": "bad_row" for row in range(12, 17)}
    assert len(entries(FER2013(root))) == 12


def test_what_is_not_fer2013_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "kaggle" / "train" / "angry" / "1.jpg", photo())
    with pytest.raises(UserError, match="lost the order of the rows"):
        list(FER2013(tmp_path / "kaggle"))
    write(tmp_path / "other" / "fer2013.csv", "label,image\n")
    with pytest.raises(UserError, match=r"no column pixels \(columns: label, image\)"):
        list(FER2013(tmp_path / "other"))
    with pytest.raises(UserError, match=r"searched: fer2013\.csv, icml_face_data.csv"):
        list(FER2013(tmp_path))


@pytest.mark.parametrize(
    ("rule", "labels"),
    [
        ("majority", "neutral unknown nf unknown sadness unknown fear contempt unknown surprise anger nf"),
        ("argmax", "neutral neutral nf happiness sadness unknown fear contempt neutral surprise anger nf"),
    ],
)
def test_votes_are_joined_by_position(tmp_path: Path, rule: str, labels: str) -> None:
    root = write_ferplus(write_fer2013(tmp_path / "fer"))
    found = entries(FERPlus(root, rule=rule))
    assert [face.label for face in found.values()] == labels.split()
    assert [face.split for face in found.values()] == SPLITS
    for row, face in enumerate(found.values()):
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(face.read))), gray(row))
        assert tuple(face.extras["votes"].values()) == VOTES[row]
        assert face.extras["fer2013"] == NAMES[EMOTIONS[row]]
    assert list(found["fer2013-00000"].extras["votes"])[-2:] == ["unknown", "nf"]


def test_majority_means_more_than_half() -> None:
    assert majority((5, 0, 0, 5, 0, 0, 0, 0, 0, 0)) == "unknown"
    assert majority((5, 0, 0, 4, 1, 0, 0, 0, 0, 0)) == "neutral"
    assert majority((0, 0, 0, 1, 1, 0, 0, 0, 2, 6)) == "nf"


def test_the_faces_may_lie_elsewhere(tmp_path: Path) -> None:
    faces, votes = write_fer2013(tmp_path / "fer", "icml_face_data.csv"), write_ferplus(tmp_path / "plus")
    with pytest.raises(UserError, match="--fer2013"):
        list(FERPlus(votes))
    assert len(entries(FERPlus(votes, fer2013=faces))) == 12
    with pytest.raises(UserError, match="list of FER2013's faces"):  # their order is not known to be the same
        list(FERPlus(votes, fer2013=write_contest(tmp_path / "contest")))


def test_another_order_is_refused(tmp_path: Path) -> None:
    root = write_ferplus(write_fer2013(tmp_path / "fer"))
    file = root / "fer2013.csv"
    header, *rows = file.read_text().splitlines()
    file.write_text("\n".join([header, *reversed(rows)]))
    with pytest.raises(UserError, match=r"row 0 is PrivateTest in .* and Training in"):
        list(FERPlus(root))
    file.write_text("\n".join([header, *rows[:-1]]))
    with pytest.raises(UserError, match="have different numbers of rows"):
        list(FERPlus(root))


def test_damaged_votes(tmp_path: Path) -> None:
    root = write_ferplus(write_fer2013(tmp_path / "fer"))
    file = root / "fer2013new.csv"
    lines = file.read_text().splitlines()
    lines[1] = "Training,fer0000000.png,6,0"
    lines[2] = lines[2].replace("5", "five")
    faces = root / "fer2013.csv"
    damaged = faces.read_text().splitlines()
    damaged[7] = damaged[7][:200]  # neither all pixels nor a usage
    faces.write_text("\n".join(damaged))
    file.write_text("\n".join(lines))
    assert rejects(FERPlus(root)) == {f"fer2013.csv row {row}": "bad_row" for row in (0, 1, 6)}
    file.write_text("\n".join([lines[0].replace("NF", "face"), *lines[1:]]))
    with pytest.raises(UserError, match="no column nf"):
        list(FERPlus(root))


def test_published_counts(tmp_path: Path) -> None:
    totals = {
        rule: [sum(counts.values()) for counts in CORPUS.published_counts(FERPlus(tmp_path, rule=rule)).values()]
        for rule in ("majority", "argmax")
    }
    assert totals == {"majority": [25_060, 3_199, 3_153], "argmax": [28_389, 3_553, 3_546]}
    counts = fer2013.CORPUS.published_counts(FER2013(write_fer2013(tmp_path / "fer")))
    assert [sum(split.values()) for split in counts.values()] == [28_709, 3_589, 3_589]
    assert LABELS[0] == "neutral"


@pytest.mark.parametrize("how", ["folder", "around", "zip", "folder of a zip"])
def test_the_images_of_microsofts_script(tmp_path: Path, how: str) -> None:
    root = write_images(tmp_path / "data" / "ferplus")
    (tmp_path / "zip").mkdir()
    archive = packed(root, tmp_path / "zip" / "ferplus48.zip")
    source = FERPlus({"folder": root, "around": root.parent, "zip": archive, "folder of a zip": archive.parent}[how])
    assert rejects(source) == {"fer2013new.csv row 2": "unknown_label"}
    found = entries(source)
    assert list(found) == [f"fer2013-{row:05d}" for row in range(12) if row != 2]
    assert found["fer2013-00000"].source == "FER2013Train/fer0000000.png"
    assert [face.split for face in found.values()] == SPLITS[:2] + SPLITS[3:]
    assert tuple(found["fer2013-00004"].extras["votes"].values()) == VOTES[4]
    assert "fer2013" not in found["fer2013-00004"].extras
    # Each row of a name that stands twice is a sample with its own votes, as the published counts have it.
    assert [found[f"fer2013-{row:05d}"].label for row in (10, 11)] == ["anger", "nf"]
    leaks, doubled = source.notes()
    assert leaks.startswith("identical images in two splits: 1 of val are in train, 2 of val are in test, 1 of test")
    assert doubled.endswith("the votes of both rows: fer0000001.png, fer0000009.png (with different votes)")
    manifest, samples = built(source, tmp_path / "out")
    assert (manifest.samples, manifest.rejected) == (11, {"unknown_label": 1})
    image = pixels(samples["FER2013Train/fer0000003.png"]["jpeg"])
    assert np.abs(image - gray(4)[:, :, None].astype(int)).mean() < 6


def test_images_that_are_not_there(tmp_path: Path) -> None:
    root = write_images(tmp_path / "ferplus")
    (root / "FER2013Train" / "fer0000000.png").unlink()
    lines = (root / "fer2013new.csv").read_text().splitlines()
    lines[6] = lines[6].replace("fer0000004.png", "../../fer0000004.png")
    lines[7] = lines[7].replace("PublicTest", "Other")
    lines[8] = lines[8].rpartition(",")[0]
    write(root / "fer2013new.csv", "\n".join(lines) + "\n")
    wanted = {
        "fer2013new.csv row 2": "unknown_label",
        "FER2013Train/../../fer0000004.png": "outside",
        "fer2013new.csv row 6": "bad_row",
        "FER2013Valid/fer0000006.png": "bad_row",
    }
    assert rejects(FERPlus(root)) == wanted
    assert built(FERPlus(root), tmp_path / "out")[0].rejected["missing"] == 1
    assert rejects(FERPlus(packed(root, tmp_path / "a.zip"))) == {**wanted, "FER2013Train/fer0000000.png": "missing"}


def test_images_of_two_splits_are_kept_out_where_that_is_asked_for(tmp_path: Path) -> None:
    """Test stays clean of train, val of both: as many test faces as the clean part of the corpus has."""
    images = FERPlus(write_images(tmp_path / "ferplus"), leaks="drop")
    leaked = {"FER2013Valid/fer0000005.png", "FER2013Valid/fer0000006.png", "FER2013Test/fer0000008.png"}
    assert {source for source, reason in rejects(images).items() if reason == "leaked"} == leaked
    assert [row for row in range(12) if f"fer2013-{row:05d}" not in entries(images)] == [2, 6, 7, 9]
    assert "dropped from the first" in images.notes()[0]
    assert set(CORPUS.published_counts(images)) == {"train"}

    root = write_fer2013(tmp_path / "fer")
    text_of = (root / "fer2013.csv").read_text().replace(text(7), text(0)).replace(text(10), text(7))
    write(root / "fer2013.csv", text_of.replace(text(11), text(0)))
    kept, dropped = FER2013(root), FER2013(root, leaks="drop")
    assert len(entries(kept)) == 12
    assert kept.notes()[0].endswith("1 of test are in train; add --leaks drop to drop them from the first")
    assert rejects(dropped) == {f"fer2013.csv row {row}": "leaked" for row in (7, 11)}
    assert len(entries(FERPlus(write_ferplus(root), leaks="drop"))) == 10
    assert set(fer2013.CORPUS.published_counts(dropped)) == {"train"}
    with pytest.raises(UserError, match=r"--leaks=all: unknown. Fix: choose one of keep, drop"):
        FER2013(root, leaks="all")
