"""Lists of images in CSV, TSV, JSON Lines and Parquet."""

import base64
import json
import math
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from helpers.source_kit import built, entries, photo, rejects, write
from pyarrow import parquet

from shards.errors import UserError
from shards.sources.generic.table import Table

ROWS = (
    {"file": "a/1.jpg", "emotion": "Happy", "part": "train", "person": "7"},
    {"file": "a/2.jpg", "emotion": "sad", "part": "train", "person": "8"},
    {"file": "b/3.jpg", "emotion": "happy", "part": "test", "person": "9"},
)
NAMES = {"path_column": "file", "label_column": "emotion", "split_column": "part", "group_column": "person"}


def write_separated(file: Path, rows: tuple[dict, ...], mark: str) -> None:
    lines = [mark.join(rows[0]), *(mark.join(str(value) for value in row.values()) for row in rows)]
    write(file, "\ufeff" + "\r\n".join(lines) + "\r\n")


WRITERS: dict[str, Callable[[Path, tuple[dict, ...]], object]] = {
    "csv": lambda file, rows: write_separated(file, rows, ","),
    "tsv": lambda file, rows: write_separated(file, rows, "\t"),
    "jsonl": lambda file, rows: write(file, "".join(json.dumps(row) + "\n\n" for row in rows)),
    "parquet": lambda file, rows: parquet.write_table(pa.Table.from_pylist(list(rows)), file),
}


def write_list(folder: Path, kind: str, rows: tuple[dict, ...] = ROWS) -> Path:
    for number, row in enumerate(ROWS):
        write(folder / row["file"], photo(number))
    WRITERS[kind](folder / f"list.{kind}", rows)
    return folder / f"list.{kind}"


@pytest.mark.parametrize("kind", WRITERS)
def test_all_kinds_say_the_same(tmp_path: Path, kind: str) -> None:
    file = write_list(tmp_path / "faces", kind)
    manifest, found = built(Table(file, file.parent, **NAMES), tmp_path / "out")
    assert manifest.labels == ("happy", "sad")
    assert {source: (s["label"], s["split"], s["group"]) for source, s in found.items()} == {
        "a/1.jpg": ("happy", "train", "7"),
        "a/2.jpg": ("sad", "train", "8"),
        "b/3.jpg": ("happy", "test", "9"),
    }


@pytest.mark.parametrize("kind", WRITERS)
def test_image_files_in_the_table(tmp_path: Path, kind: str) -> None:
    images = [photo(number) for number in range(3)]
    held = images if kind == "parquet" else [base64.b64encode(image).decode() for image in images]
    rows = tuple({"image": image, "emotion": number} for number, image in enumerate(held))
    WRITERS[kind](tmp_path / f"list.{kind}", rows)
    source = Table(tmp_path / f"list.{kind}", tmp_path, bytes_column="image", label_column="emotion")
    manifest, found = built(source, tmp_path / "out")
    assert sorted((sample["label"], sample["jpeg"]) for sample in found.values()) == list(
        zip("012", images, strict=True)
    )
    assert manifest.samples == 3


def test_images_in_the_table_may_have_names(tmp_path: Path) -> None:
    """The name tells people what it is; two rows of one name are two images."""
    rows = [{"path": name, "image": photo(n)} for n, name in enumerate(("x.jpg", "x.jpg", "/home/me/y.jpg"))]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "list.parquet")
    source = Table(tmp_path / "list.parquet", tmp_path, bytes_column="image")
    assert [entry.source for entry in entries(source).values()] == ["x.jpg", "x.jpg", "y.jpg"]


def test_a_large_image_in_text(tmp_path: Path) -> None:
    """Longer than what csv takes for a cell by itself."""
    image = photo(1, 500, 400, "BMP")
    data = "data:image/bmp;base64," + base64.b64encode(image).decode()
    assert len(data) > 131_072
    write(tmp_path / "list.csv", f'image\n"{data}"\n')
    assert [entry.read for entry in entries(Table(tmp_path / "list.csv", tmp_path, bytes_column="image")).values()] == [
        image
    ]


def test_labels_that_are_numbers(tmp_path: Path) -> None:
    """pandas turns whole numbers into fractions as soon as one is absent."""
    rows = [{"path": f"{n}.jpg", "label": label} for n, label in enumerate((3.0, math.nan, 0.0, None, 1.5))]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "list.parquet")
    found = entries(Table(tmp_path / "list.parquet", tmp_path, label_column="label"))
    assert [entry.label for entry in found.values()] == ["3", None, "0", None, "1.5"]


@pytest.mark.parametrize("kind", WRITERS)
def test_numbers_with_gaps_are_the_same_labels_in_all_kinds(tmp_path: Path, kind: str) -> None:
    """As text they would be in the order 0.0, 1.0, 10.0, 11.0, 2.0."""
    numbers = [float(number) for number in range(12)]
    rows = tuple(
        {"path": write(tmp_path / f"{number:g}.jpg", photo(int(number))).name, "label": number} for number in numbers
    )
    write(tmp_path / "gap.jpg", photo(12))
    WRITERS[kind](
        tmp_path / f"list.{kind}", (*rows, {"path": "gap.jpg", "label": "" if kind in ("csv", "tsv") else None})
    )
    manifest, _ = built(Table(tmp_path / f"list.{kind}", tmp_path, label_column="label"), tmp_path / "out")
    assert manifest.labels == tuple(map(str, range(12)))


def test_only_whole_numbers_lose_their_fraction(tmp_path: Path) -> None:
    labels = ("-0.0", "-3.00", "1.5", "v1.0", "1.0.0", ".0", "12345678901234567890.0", f"{'9' * 5000}.0")
    write(tmp_path / "list.csv", "path,label\n" + "".join(f"{n}.jpg,{label}\n" for n, label in enumerate(labels)))
    found = entries(Table(tmp_path / "list.csv", tmp_path, label_column="label"))
    wanted = ["0", "-3", "1.5", "v1.0", "1.0.0", ".0", "12345678901234567890", labels[-1]]
    assert [entry.label for entry in found.values()] == wanted
    write(tmp_path / "list.jsonl", '{"path": "a.jpg", "label": "1.0"}')  # said to be text
    (found,) = entries(Table(tmp_path / "list.jsonl", tmp_path, label_column="label")).values()
    assert found.label == "1.0"


def test_boxes(tmp_path: Path) -> None:
    """Several faces of one photo; four columns, one with a list, one with text; both orders."""
    write(tmp_path / "four.csv", "path,x,y,w,h\na.jpg,1,2,30,40\na.jpg,50,2,30,40\na.jpg,1,2,30,40\nb.jpg,,,,\n")
    four = list(Table(tmp_path / "four.csv", tmp_path, box_columns="x, y, w, h"))
    assert [item.box for item in four] == [(1, 2, 30, 40), (50, 2, 30, 40), (1, 2, 30, 40), None]
    assert four[0].key == four[2].key != four[1].key
    rows = [{"path": "a.jpg", "box": [1, 2, 31, 42]}, {"path": "b.jpg", "box": None}]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "one.parquet")
    one = Table(tmp_path / "one.parquet", tmp_path, box_columns="box", box_format="xyxy")
    assert [item.box for item in one] == [(1, 2, 30, 40), None]
    write(tmp_path / "text.tsv", "path\tbox\na.jpg\t[1, 2, 30, 40]\n")
    assert [item.box for item in Table(tmp_path / "text.tsv", tmp_path, box_columns="box")] == [(1, 2, 30, 40)]


def test_damaged_rows(tmp_path: Path) -> None:
    lines = [
        '{"path": "a.jpg", "box": [1, 2, 3, 4]}',
        '{"path": "b.jpg", "box": [1, 2, 3]}',
        '{"path": "c.jpg", "box": [1, 2, -3, 4]}',
        '{"path": "d.jpg"',
        '["e.jpg"]',
        '{"path": "../f.jpg"}',
        '{"path": "/g.jpg"}',
        '{"box": [1, 2, 3, 4]}',
    ]
    write(tmp_path / "list.jsonl", "\n".join(lines))
    source = Table(tmp_path / "list.jsonl", tmp_path, box_columns="box")
    assert rejects(source) == {
        "line 2": "bad_row",
        "line 3": "bad_row",
        "line 4": "bad_row",
        "line 5": "bad_row",
        "line 6": "outside",
        "line 7": "outside",
        "line 8": "missing",
    }
    assert len(entries(source)) == 1


def test_damaged_images_in_the_table(tmp_path: Path) -> None:
    write(tmp_path / "list.jsonl", '{"image": "!!"}\n{"image": null}\n{"image": 5}\n{"image": "/9j/"}\n')
    source = Table(tmp_path / "list.jsonl", tmp_path, bytes_column="image")
    assert rejects(source) == {"line 1": "bad_row", "line 2": "missing", "line 3": "bad_row"}
    assert next(iter(entries(source).values())).read == b"\xff\xd8\xff"


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        ("a.jsonl", '{"path": "a"}\n', {"label_column": "pth"}, "no column 'pth'. Did you mean 'path'"),
        ("a.jsonl", "[{}]", {}, "is a JSON array"),
        ("a.jsonl", "", {}, "jsonl: .* is empty"),
        ("a.parquet", "text", {}, "cannot be read as Parquet"),
        ("a.tsv", "path,label\n", {}, "no column 'path'"),
        ("a.csv", "path\n1\n", {"box_columns": "a,b"}, "one or four columns"),
        ("a.csv", "path\n1\n", {"box_format": "yxhw"}, "the order xywh or xyxy"),
        ("a.csv", "path\n1\n", {"bytes_column": "image"}, "no column 'image'"),
    ],
)
def test_tables_that_cannot_be_meant(tmp_path: Path, name: str, content: str, options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        list(Table(write(tmp_path / name, content), tmp_path, **options))


def test_a_column_may_begin_late(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", '{"path": "a.jpg"}\n{"path": "b.jpg", "label": "x"}\n')
    assert [entry.label for entry in Table(tmp_path / "a.jsonl", tmp_path, label_column="label")] == [None, "x"]
