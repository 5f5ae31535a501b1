"""RAF-DB: the authors' folders with both spellings of the list, and numbered class folders."""

from pathlib import Path

import pytest
from helpers.rafdb_corpus import ROWS, write_rafdb
from helpers.source_kit import built, entries, photo, rejects, write

from shards.errors import UserError
from shards.sources.corpora.rafdb import CORPUS, RAFDB

LABELS = ("sadness", "surprise", "neutral", "happiness", "fear", "anger")


def write_folders(root: Path) -> Path:
    """DATASET: aligned faces in numbered class folders, with a list for each split."""
    for split in ("train", "test"):
        rows = [(f"{stem}_aligned.jpg", label) for stem, label in ROWS if stem.startswith(split)]
        for number, (name, label) in enumerate(rows):
            write(root / "DATASET" / split / str(label) / name, photo(number, 100, 100))
        lines = "".join(f"{name},{label}\n" for name, label in rows)
        write(root / f"DATASET/{split}_labels.csv", f"image,label\n{lines}")
    return root


@pytest.mark.parametrize("spelling", ["patition", "partition"])
def test_aligned_faces(tmp_path: Path, spelling: str) -> None:
    source = RAFDB(write_rafdb(tmp_path / "basic", spelling))
    found = entries(source)
    assert list(found) == [stem for stem, _ in ROWS]
    assert tuple(face.label for face in found.values()) == LABELS
    assert [face.split for face in found.values()] == ["train"] * 3 + ["test"] * 3
    face = found["train_00002"]
    assert face.extras == {"gender": "female", "race": "asian", "age": "4-19"}
    assert (face.box, face.landmarks) == (None, None), "they are in pixels of the whole photo"
    manifest, samples = built(source, tmp_path / "out")
    assert (manifest.samples, manifest.rejected) == (6, {})
    assert samples["Image/aligned/test_0003_aligned.jpg"]["width"] == 100


def test_whole_photos(tmp_path: Path) -> None:
    face = entries(RAFDB(write_rafdb(tmp_path / "basic"), images="original"))["test_0001"]
    assert face.source == "Image/original/test_0001.jpg"
    assert face.box == (12, 30, 80, 88)
    assert face.landmarks == ((10.5, 20), (11.5, 21), (12.5, 22), (13.5, 23), (14.5, 24))


def test_the_folder_above(tmp_path: Path) -> None:
    write_rafdb(tmp_path / "RAF-DB" / "basic")
    found = entries(RAFDB(tmp_path / "RAF-DB"))
    assert found["train_00001"].source == "basic/Image/aligned/train_00001_aligned.jpg"
    assert found["train_00001"].read.is_file()


def test_attributes_may_be_absent_or_damaged(tmp_path: Path) -> None:
    root = write_rafdb(tmp_path / "basic")
    manual = root / "Annotation" / "manual"
    (manual / "train_00001_manu_attri.txt").unlink()
    write(manual / "train_00002_manu_attri.txt", "1 2\n3 4\n")
    write(manual / "train_00003_manu_attri.txt", "1 2\n3 4\n5 6\n7 8\n9 10\n0\n3\n9\n")
    write(root / "Annotation" / "boundingbox" / "train_00001_boundingbox.txt", "9 9 9 20")
    found = entries(RAFDB(root, images="original"))
    assert (found["train_00001"].extras, found["train_00001"].landmarks, found["train_00001"].box) == ({}, None, None)
    assert found["train_00002"].extras == {"attributes": "corrupt"}
    assert found["train_00003"].extras == {"gender": "male", "race": "3", "age": "9"}


def test_damaged_lines_and_missing_images(tmp_path: Path) -> None:
    root = write_rafdb(tmp_path / "basic")
    file = root / "EmoLabel" / "list_patition_label.txt"
    file.write_text(
        file.read_text() + "train_00004.jpg 3\n\ntrain_00005.jpg\nval_1.jpg 1\n../train_00001.jpg 1\nx.jpg 0\n"
    )
    name = "list_patition_label.txt line"
    assert rejects(RAFDB(root)) == {
        f"{name} 9": "bad_row",
        f"{name} 10": "bad_row",
        f"{name} 11": "outside",
        f"{name} 12": "bad_row",
    }
    manifest, _ = built(RAFDB(root), tmp_path / "out")
    assert manifest.rejected == {"bad_row": 3, "missing": 1, "outside": 1}


def test_the_compound_expressions_are_refused(tmp_path: Path) -> None:
    root = write_rafdb(tmp_path / "compound")
    file = root / "EmoLabel" / "list_patition_label.txt"
    file.write_text(file.read_text() + "train_00004.jpg 11\n")
    with pytest.raises(UserError, match="line 7 has a compound expression"):
        list(RAFDB(root))


def test_numbered_class_folders(tmp_path: Path) -> None:
    source = RAFDB(write_folders(tmp_path / "raf"))
    assert source.release == "folders"
    found = entries(source)
    assert {face.key: face.label for face in found.values()} == {
        f"{stem}_aligned": label for (stem, _), label in zip(ROWS, LABELS, strict=True)
    }
    assert found["test_0001_aligned"].source == "DATASET/test/4/test_0001_aligned.jpg"
    inner = entries(RAFDB(tmp_path / "raf" / "DATASET"))
    assert inner["test_0001_aligned"].source == "test/4/test_0001_aligned.jpg"
    manifest, _ = built(source, tmp_path / "out")
    assert (manifest.samples, manifest.rejected) == (6, {})


def test_folders_and_their_lists_must_agree(tmp_path: Path) -> None:
    root = write_folders(tmp_path / "raf")
    file = root / "DATASET" / "train_labels.csv"
    file.write_text(file.read_text().replace("train_00001_aligned.jpg,5", "train_00001_aligned.jpg,4") + "gone.jpg,2\n")
    assert rejects(RAFDB(root)) == {
        "DATASET/train/5/train_00001_aligned.jpg": "conflicting_label",
        "DATASET/train/2/gone.jpg": "missing",
    }
    file.unlink()
    assert rejects(RAFDB(root)) == {}
    write(file, "name,emotion\n")
    with pytest.raises(UserError, match="lacks the columns image, label"):
        list(RAFDB(root))


def test_the_lists_may_lie_beside_the_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Kaggle ships it, whether the folder above or DATASET itself is given."""
    root = write_folders(tmp_path / "raf")
    for split in ("train", "test"):
        (root / "DATASET" / f"{split}_labels.csv").rename(root / f"{split}_labels.csv")
    assert rejects(RAFDB(root)) == {}
    train, test = root / "train_labels.csv", root / "test_labels.csv"
    train.write_text(train.read_text().replace("train_00001_aligned.jpg,5", "train_00001_aligned.jpg,4"))
    test.write_text(test.read_text() + "gone.jpg,2\n")
    wanted = {"train/5/train_00001_aligned.jpg": "conflicting_label", "test/2/gone.jpg": "missing"}
    assert rejects(RAFDB(root)) == {f"DATASET/{source}": reason for source, reason in wanted.items()}
    assert rejects(RAFDB(root / "DATASET")) == wanted
    monkeypatch.chdir(root / "DATASET")
    assert rejects(RAFDB(Path())) == wanted
    (root / "DATASET").rename(root / "mine")  # beside it, the list may be another corpus's
    assert rejects(RAFDB(root / "mine")) == {}


def test_what_is_not_rafdb_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "other" / "faces" / "1.jpg", photo())
    with pytest.raises(UserError, match=r"no list of labels .*list_patition_label.txt.* found: faces"):
        list(RAFDB(tmp_path / "other"))
    with pytest.raises(UserError, match="only has class folders of aligned faces"):
        list(RAFDB(write_folders(tmp_path / "raf"), images="original"))
    root = write_rafdb(tmp_path / "basic")
    (root / "Image" / "aligned").rename(root / "Image" / "cut")
    with pytest.raises(UserError, match="no folder of aligned images"):
        list(RAFDB(root))


def test_published_counts(tmp_path: Path) -> None:
    counts = CORPUS.published_counts(RAFDB(tmp_path))
    assert [sum(split.values()) for split in counts.values()] == [12_271, 3_068]
    assert counts["train"]["fear"] == 281
