"""AffectNet: three releases, told apart by their files."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from helpers.affectnet_corpus import (
    EMPTY,
    MISSING,
    NAMES,
    add_automatic,
    note,
    row,
    write_array,
    write_arrays,
    write_lists,
    write_plus,
)  # fmt: skip
from helpers.source_kit import built, entries, photo, rejects, write

from shards.errors import UserError
from shards.sources.corpora.affectnet import CORPUS, AffectNet
from shards.sources.corpora.affectnet.common import LABELS

FOLDER = "Manually_Annotated_Images"


def test_the_lists_of_2017(tmp_path: Path) -> None:
    source = AffectNet(write_lists(tmp_path / "a"))
    assert source.release == "csv-2017"
    found = entries(source)
    face = found["manual/1/b1.JPG"]
    assert (face.label, face.split, face.source) == ("happy", "train", f"{FOLDER}/1/b1.JPG")
    assert face.box == (2, 3, 10, 9)
    assert len(face.landmarks) == 68
    assert face.landmarks[:2] == ((0, 0.25), (0.5, 1.25))
    assert face.extras == {"valence": 0.5, "arousal": -0.25}
    assert [found[f"manual/{name}"].label for name in NAMES] == list(LABELS[:8])
    manifest, samples = built(source, tmp_path / "out")
    assert {sample["source"] for sample in samples.values()} >= {f"{FOLDER}/{name}" for name in NAMES}
    assert manifest.rejected == {"bad_row": 2, "empty": 1, "missing": 1, "outside": 1}
    assert f"{FOLDER}/{EMPTY}" not in samples
    assert f"{FOLDER}/{MISSING}" not in samples


@pytest.mark.parametrize("header", [True, False])
def test_the_validation_list_may_lack_its_header(tmp_path: Path, header: bool) -> None:
    found = entries(AffectNet(write_lists(tmp_path / "a", header)))
    assert [found[f"manual/9/v{n}.jpg"].label for n in range(8)] == list(LABELS[:8])
    assert {found[f"manual/9/v{n}.jpg"].split for n in range(8)} == {"val"}


def test_faces_without_an_expression_have_no_affect(tmp_path: Path) -> None:
    found = entries(AffectNet(write_lists(tmp_path / "a"), classes=11))
    assert found["manual/5/none.jpg"].extras == {"valence": 0.5, "arousal": -0.25}
    assert found["manual/5/uncertain.jpg"].label == "uncertain"
    assert found["manual/5/uncertain.jpg"].extras == {}
    noface = found["manual/5/noface.jpg"]
    assert (noface.label, noface.box, noface.landmarks, noface.extras) == ("no-face", None, None, {})


def test_boxes_beyond_the_photo_are_kept_and_boxes_without_area_are_none(tmp_path: Path) -> None:
    found = entries(AffectNet(write_lists(tmp_path / "a")))
    assert found["manual/5/edge.jpg"].box == (-4, -1, 30, 40)
    assert found["manual/5/flat.jpg"].box is None


def test_rows_that_cannot_be_faces(tmp_path: Path) -> None:
    assert rejects(AffectNet(write_lists(tmp_path / "a"))) == {
        f"{FOLDER}/5/null.jpg": "bad_row",
        "training.csv line 18": "bad_row",
        "training.csv line 19": "outside",
    }


def test_columns_are_found_by_name(tmp_path: Path) -> None:
    root = write_lists(tmp_path / "a")
    lines = (root / "validation.csv").read_text().splitlines()
    turned = "\n".join(",".join(reversed(line.split(","))) for line in lines)
    before = entries(AffectNet(root))
    (root / "validation.csv").write_text(turned)
    assert entries(AffectNet(root)) == before


@pytest.mark.parametrize(
    ("first", "said"),
    [("subDirectory_filePath,face_x,expression", "has no column face_y"), ("image,label", "neither a header nor")],
)
def test_another_list_is_refused(tmp_path: Path, first: str, said: str) -> None:
    root = write_lists(tmp_path / "a")
    (root / "validation.csv").write_text(first + "\n")
    with pytest.raises(UserError, match=said):
        list(AffectNet(root))


def test_the_automatic_labels_are_a_split_of_their_own(tmp_path: Path) -> None:
    root = write_lists(tmp_path / "a")
    with pytest.raises(UserError, match="list of the automatic labels"):
        list(AffectNet(root, automatic=True))
    before = entries(AffectNet(add_automatic(root)))
    found = entries(AffectNet(root, automatic=True))
    assert {key: face for key, face in found.items() if face.split != "automatic"} == before
    assert {key for key, face in found.items() if face.split == "automatic"} == {
        "automatic/1/a0.jpg",
        "automatic/1/auto.jpg",
    }
    assert found["automatic/1/a0.jpg"].read != found["manual/1/a0.jpg"].read


def test_the_archives_own_folders(tmp_path: Path) -> None:
    root = write_lists(tmp_path / "a")
    before = {key: dataclasses.replace(face, source="", read=b"") for key, face in entries(AffectNet(root)).items()}
    (root / "Manually_Annotated_file_lists").mkdir()
    for name in ("training.csv", "validation.csv"):
        (root / name).rename(root / "Manually_Annotated_file_lists" / name)
    (root / "Manually_Annotated").mkdir()
    (root / FOLDER).rename(root / "Manually_Annotated" / FOLDER)
    found = entries(AffectNet(root))
    assert {key: dataclasses.replace(face, source="", read=b"") for key, face in found.items()} == before
    assert found["manual/1/a0.jpg"].read.is_file()


def test_the_arrays_of_2021(tmp_path: Path) -> None:
    source = AffectNet(write_arrays(tmp_path / "a"))
    assert source.release == "npy-2021"
    found = entries(source)
    assert {key: (face.label, face.split) for key, face in found.items()} == {
        "train_set/0": ("neutral", "train"),
        "train_set/1": ("happy", "train"),
        "train_set/12": ("fear", "train"),
        "train_set/5": ("disgust", "train"),
        "val_set/0": ("happy", "val"),
        "val_set/5": ("anger", "val"),
    }
    face = found["train_set/12"]
    assert face.extras == {"valence": -0.125, "arousal": 0.5}
    assert face.landmarks[67] == (67, 67.5)
    manifest, samples = built(source, tmp_path / "out")
    assert (manifest.samples, manifest.rejected) == (6, {})
    assert samples["val_set/images/0.jpg"]["jpeg"] == (tmp_path / "a/val_set/images/0.jpg").read_bytes()


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple:
        return Path.touch, (self.file,)


def test_pickles_are_never_loaded(tmp_path: Path) -> None:
    root = write_arrays(tmp_path / "a")
    write_array(root / "train_set" / "annotations" / "0_exp.npy", np.array(Trap(tmp_path / "sprung"), dtype=object))
    assert rejects(AffectNet(root)) == {"train_set/images/0.jpg": "bad_row"}
    assert not (tmp_path / "sprung").exists()


def test_damaged_arrays(tmp_path: Path) -> None:
    root = write_arrays(tmp_path / "a")
    notes = root / "train_set" / "annotations"
    write_array(notes / "0_exp.npy", "11")
    write(notes / "1_exp.npy", b"")
    write(notes / "5_val.npy", b"\x93NUMPY")
    write_array(notes / "5_aro.npy", "-2")
    write_array(notes / "5_lnd.npy", np.arange(10))
    write_array(notes / "7_exp.npy", "3")
    write(root / "train_set" / "images" / "8.jpg", photo())
    assert rejects(AffectNet(root)) == {
        "train_set/images/0.jpg": "bad_row",
        "train_set/images/1.jpg": "bad_row",
        "train_set/images/7.jpg": "missing",
    }
    found = entries(AffectNet(root))
    assert (found["train_set/5"].extras, found["train_set/5"].landmarks) == ({}, None)
    assert found["train_set/8"].label is None
    with pytest.raises(UserError, match="no automatically labeled images"):
        list(AffectNet(root, automatic=True))


def test_affectnet_plus(tmp_path: Path) -> None:
    source = AffectNet(write_plus(tmp_path / "a"), automatic=True)
    assert source.release == "json-2024"
    found = entries(source)
    assert [face.label for face in found.values()] == ["neutral", "happy", "sad", "neutral", "happy", None, None]
    assert [face.split for face in found.values()] == ["train"] * 3 + ["val"] * 2 + ["automatic"] * 2
    face = found["human_annotated/train_set/2.jpg"]
    assert face.extras == {
        "valence": -0.5,
        "soft_label": [0.125] * 8,
        "subset": 2,
        "meta": {"age": 31.5, "gender": {"male": 0.25, "female": 0.75}},
    }
    assert face.landmarks[1] == (2, 3)
    assert {face.split for face in entries(AffectNet(source.root)).values()} == {"train", "val"}
    manifest, samples = built(source, tmp_path / "out")
    assert (manifest.samples, manifest.rejected) == (7, {})
    assert samples["human_annotated/train_set/images/2.jpg"]["extras"] == face.extras


def test_damaged_notes(tmp_path: Path) -> None:
    root = write_plus(tmp_path / "a")
    notes = root / "human_annotated" / "train_set" / "annotations"
    write(notes / "0.json", '{"human-label": 1')
    write(notes / "1.json", str(note("joy")).replace("'", '"').replace("nan", "0"))
    write(notes / "2.json", "[]")
    write(notes / "9.json", '{"human-label": 1}')
    folder = "human_annotated/train_set/images"
    assert rejects(AffectNet(root)) == {
        f"{folder}/0.jpg": "bad_row",
        f"{folder}/1.jpg": "bad_row",
        f"{folder}/2.jpg": "bad_row",
        f"{folder}/9.jpg": "missing",
    }


def test_what_is_no_release_is_refused(tmp_path: Path) -> None:
    for name in ("angry", "happy"):
        write(tmp_path / "kaggle" / "train" / name / "1.jpg", photo())
    with pytest.raises(UserError, match=r"no release of AffectNet .* found: train"):
        list(AffectNet(tmp_path / "kaggle"))
    with pytest.raises(UserError, match="not a folder"):
        list(AffectNet(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="is a part of AffectNet"):
        list(AffectNet(write_plus(tmp_path / "plus") / "human_annotated"))
    write_lists(write_arrays(tmp_path / "both"))
    with pytest.raises(UserError, match="several releases"):
        list(AffectNet(tmp_path / "both"))
    with pytest.raises(UserError, match=r"--classes=9: unknown. Fix: choose one of 8, 7, 11"):
        AffectNet(tmp_path, classes=9)


def test_published_counts(tmp_path: Path) -> None:
    lists, arrays = write_lists(tmp_path / "a"), write_arrays(tmp_path / "b")
    totals = {
        (root.name, classes): [
            sum(counts.values()) for counts in CORPUS.published_counts(AffectNet(root, classes)).values()
        ]
        for root in (lists, arrays)
        for classes in (7, 8, 11)
    }
    assert totals == {
        ("a", 7): [283_901, 3_500],
        ("a", 8): [287_651, 4_000],
        ("a", 11): [414_799, 5_500],
        ("b", 7): [283_901, 3_500],
        ("b", 8): [287_651, 3_999],
        ("b", 11): [287_651, 3_999],
    }
    assert AffectNet(lists, 7).labels == LABELS[:7]


def test_a_name_that_is_not_utf8(tmp_path: Path) -> None:
    root = write_lists(tmp_path / "a")
    for name, label in ((b"1/caf\xe9.jpg", 1), (b"../\xe9.jpg", 1)):
        line = row("NAME", label).encode().replace(b"NAME", name)
        (root / "training.csv").write_bytes((root / "training.csv").read_bytes() + line + b"\r\n")
    (root / FOLDER / "1" / b"caf\xe9.jpg".decode(errors="surrogateescape")).write_bytes(photo())
    manifest, samples = built(AffectNet(root), tmp_path / "out")
    assert any(source.startswith(f"{FOLDER}/1/caf") for source in samples)
    assert manifest.rejected["outside"] == 2
