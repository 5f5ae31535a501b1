"""Parquet files as Hugging Face's library writes them."""

import json
from pathlib import Path

import pyarrow as pa
import pytest
from helpers.source_kit import built, entries, photo, rejects, write
from pyarrow import parquet

from shards.errors import UserError
from shards.sources.generic.huggingface import HuggingFace, split_of

NAMES = ["Angry", "Happy", "Neutral"]
IMAGE = pa.struct({"bytes": pa.binary(), "path": pa.string()})


def write_part(file: Path, rows: list[dict], features: dict | None = None, kinds: dict | None = None) -> Path:
    """One file with the library's metadata, in row groups of two."""
    kinds = {"image": IMAGE, "label": pa.int64(), "age": pa.float64(), "text": pa.string()} | (kinds or {})
    schema = pa.schema({name: kinds[name] for name in rows[0]})
    if features is None:
        features = {"image": {"_type": "Image"}, "label": {"names": NAMES, "_type": "ClassLabel"}}
    if features:
        schema = schema.with_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    file.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.Table.from_pylist(rows, schema), file, row_group_size=2)
    return file


def row(number: int, label: int, **known: object) -> dict:
    return {"image": {"bytes": photo(number), "path": f"{number}.jpg"}, "label": label, **known}


def write_set(root: Path) -> Path:
    write_part(root / "data" / "train-00000-of-00002.parquet", [row(n, n % 3, age=n / 2, text="x") for n in range(5)])
    write_part(
        root / "data" / "train-00001-of-00002-0123456789abcdef.parquet", [row(7, 1, age=float("nan"), text=None)]
    )
    write_part(root / "data" / "test-00000-of-00001.parquet", [row(8, -1, age=1.0, text="y")])
    write(root / "README.md", "")
    return root


def test_names_splits_and_bytes(tmp_path: Path) -> None:
    source = HuggingFace(write_set(tmp_path / "fer"))
    manifest, found = built(source, tmp_path / "out")
    assert (manifest.samples, manifest.splits) == (7, ("train", "test"))
    assert source.labels == ("angry", "happy", "neutral")
    first = "data/train-00000-of-00002.parquet/"
    assert [found[f"{first}{n}"]["label"] for n in range(5)] == ["angry", "happy", "neutral", "angry", "happy"]
    assert [found[f"{first}{n}"]["jpeg"] for n in range(5)] == [photo(n) for n in range(5)]
    assert found[f"{first}3"]["extras"] == {"age": 1.5, "text": "x", "path": "3.jpg"}
    hidden = found["data/test-00000-of-00001.parquet/0"]
    assert ("label" in hidden, hidden["split"]) == (False, "test")
    assert found["data/train-00001-of-00002-0123456789abcdef.parquet/0"]["extras"] == {"path": "7.jpg"}
    assert source.notes() == []


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("data/train-00000-of-00010.parquet", "train"),
        ("validation-00003-of-00010-0123456789abcdef.parquet", "validation"),
        ("data/faces-00000-of-00001.parquet", "faces"),
        ("default/test/0000.parquet", "test"),
        ("test.parquet", "test"),
        ("faces.parquet", None),
        ("default/partial/0000.parquet", None),
    ],
)
def test_splits_are_in_the_names(name: str, split: str | None) -> None:
    assert split_of(name) == split


def test_without_the_librarys_metadata(tmp_path: Path) -> None:
    write_part(tmp_path / "train.parquet", [row(0, 2)], features={})
    source = HuggingFace(tmp_path)
    assert [(entry.label, entry.split) for entry in entries(source).values()] == [("2", "train")]
    assert source.labels == ()


def test_bytes_without_a_struct(tmp_path: Path) -> None:
    rows = [{"img_bytes": photo(n), "labels": name} for n, name in enumerate(("happy", "sad"))]
    kinds = {"img_bytes": pa.binary(), "labels": pa.dictionary(pa.int32(), pa.string())}
    file = write_part(tmp_path / "train-00000-of-00001.parquet", rows, {}, kinds)
    found = list(entries(HuggingFace(file, label_column="labels")).values())
    assert [(entry.read, entry.label) for entry in found] == [(photo(0), "happy"), (photo(1), "sad")]


def test_several_class_labels(tmp_path: Path) -> None:
    features = {name: {"names": ["a", "b"], "_type": "ClassLabel"} for name in ("mood", "person")}
    rows = [{"image": {"bytes": photo(), "path": None}, "mood": 1, "person": 0}]
    write_part(tmp_path / "a.parquet", rows, features, {"mood": pa.int64(), "person": pa.int64()})
    source = HuggingFace(tmp_path)
    assert [entry.label for entry in entries(source).values()] == [None]
    assert source.notes() == [f"unlabeled; {tmp_path.name} has labels in mood, person: add --label-column"]
    named = entries(HuggingFace(tmp_path, label_column="mood", group_column="person"))["a/0000000"]
    assert (named.label, named.group, named.extras) == ("b", "0", {})


def test_rows_that_hold_no_image(tmp_path: Path) -> None:
    write(tmp_path / "images" / "1.jpg", photo(1))
    images = [
        {"bytes": None, "path": "images/1.jpg"},
        {"bytes": None, "path": "../2.jpg"},
        {"bytes": None, "path": "/home/me/3.jpg"},
        {"bytes": None, "path": None},
        None,
        {"bytes": b"", "path": None},
        {"bytes": photo(), "path": None},
    ]
    write_part(
        tmp_path / "a.parquet", [{"image": image, "label": 9 if n == 6 else 0} for n, image in enumerate(images)]
    )
    manifest, _ = built(HuggingFace(tmp_path), tmp_path / "out")
    assert rejects(HuggingFace(tmp_path / "a.parquet")) == {
        "a.parquet/1": "outside",
        "a.parquet/2": "outside",
        "a.parquet/3": "missing",
        "a.parquet/4": "missing",
        "a.parquet/6": "bad_row",
    }
    assert (manifest.samples, manifest.rejected["empty"]) == (1, 1)


def test_a_column_of_paths(tmp_path: Path) -> None:
    for number in (1, 2):
        write(tmp_path / "images" / f"{number}.jpg", photo(number))
    rows = [{"image": path, "label": 0} for path in ("images/1.jpg", "images/2.jpg", "../3.jpg", "", None)]
    write_part(tmp_path / "a.parquet", rows, {}, {"image": pa.string()})
    source = HuggingFace(tmp_path, image_column="image")
    assert [entry.read for entry in entries(source).values()] == [tmp_path / "images" / f"{n}.jpg" for n in (1, 2)]
    assert rejects(source) == {"a.parquet/2": "outside", "a.parquet/3": "missing", "a.parquet/4": "missing"}


@pytest.mark.parametrize(
    ("image", "kind"), [(3, pa.int64()), ([1, 2], pa.list_(pa.int64())), ({"path": 3}, pa.struct({"path": pa.int64()}))]
)
def test_a_column_of_something_else(tmp_path: Path, image: object, kind: pa.DataType) -> None:
    write_part(tmp_path / "a.parquet", [{"image": image, "label": 0}], {}, {"image": kind})
    assert rejects(HuggingFace(tmp_path, image_column="image")) == {"a.parquet/0": "bad_row"}


def test_a_damaged_file_of_several(tmp_path: Path) -> None:
    write_set(tmp_path)
    file = tmp_path / "data" / "train-00000-of-00002.parquet"
    content = bytearray(file.read_bytes())
    end = content.index(photo(2)[-50:])
    content[end - 500 : end] = b"\xff" * 500
    file.write_bytes(content)
    write(tmp_path / "data" / "zzz.parquet", "not one")
    found = rejects(HuggingFace(tmp_path))
    assert found["data/zzz.parquet"] == "bad_row"
    assert found["data/train-00000-of-00002.parquet"] == "unreadable"
    assert "data/train-00001-of-00002-0123456789abcdef/0000000" in entries(HuggingFace(tmp_path))


def test_what_is_no_data_set_of_images(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no \.parquet in .*found: nothing"):
        list(HuggingFace(tmp_path))
    write_part(tmp_path / "a.parquet", [{"text": "x"}])
    with pytest.raises(UserError, match=r"has no image column \(columns: text\)"):
        list(HuggingFace(tmp_path))
    with pytest.raises(UserError, match="has no column 'mood'"):
        list(HuggingFace(tmp_path, label_column="mood"))
    write(tmp_path / "b.parquet", "x")
    with pytest.raises(UserError, match="cannot be read as Parquet"):
        list(HuggingFace(tmp_path / "b.parquet"))
