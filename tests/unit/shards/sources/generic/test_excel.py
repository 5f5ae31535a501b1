"""Lists as spreadsheets export them, and names that two systems spell differently."""

import gzip
import unicodedata
from pathlib import Path

import pytest
from helpers.source_kit import built, entries, photo, rejects, write

from shards.build.builder import build
from shards.build.spec import BuildSpec
from shards.errors import UserError
from shards.sources.generic.table import Table

NAMES = {"path_column": "Datei", "label_column": "Emotion", "valence_column": "Valenz"}
ROWS = (("Datei", "Emotion", "Valenz"), ("a\\1.jpg", "froh", "0,5"), ("a\\2.jpg", "3,0", "-1"), ("b.jpg", "froh", ""))


def write_faces(folder: Path) -> None:
    for number, name in enumerate(("a/1.jpg", "a/2.jpg", "b.jpg")):
        write(folder / name, photo(number))


@pytest.mark.parametrize("mark", [";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-8"])
def test_an_excel_export(tmp_path: Path, mark: str, encoding: str) -> None:
    write_faces(tmp_path)
    write(tmp_path / "list.csv", "\r\n".join(mark.join(row) for row in ROWS).encode(encoding))
    _, found = built(Table(tmp_path / "list.csv", tmp_path, **NAMES), tmp_path / "out")
    assert {source: (one.get("label"), one.get("extras")) for source, one in found.items()} == {
        "a/1.jpg": ("froh", {"valence": 0.5}),
        "a/2.jpg": ("3", {"valence": -1.0}),
        "b.jpg": ("froh", None),
    }


def test_the_first_line_may_name_the_delimiter(tmp_path: Path) -> None:
    write(tmp_path / "list.csv", "sep=;\r\nDatei;x, y\r\n1.jpg;2\r\n")
    assert list(entries(Table(tmp_path / "list.csv", tmp_path, path_column="Datei"))) == ["1.jpg"]


def test_commas_in_other_columns_do_not_count(tmp_path: Path) -> None:
    write(tmp_path / "list.csv", 'path;a, b, c, d;"e;f"\n1.jpg;2;3\n')
    assert list(entries(Table(tmp_path / "list.csv", tmp_path))) == ["1.jpg"]
    write(tmp_path / "list.csv", "path,a;b;c;d\n1.jpg,2\n")
    assert list(entries(Table(tmp_path / "list.csv", tmp_path))) == ["1.jpg"]


def test_boxes_with_decimal_commas(tmp_path: Path) -> None:
    write(tmp_path / "list.csv", "path;x;y;w;h\n1.jpg;1,5;2;30,25;40\n")
    (found,) = entries(Table(tmp_path / "list.csv", tmp_path, box_columns="x,y,w,h")).values()
    assert found.box == (1.5, 2, 30.25, 40)


def test_affect_out_of_range_is_rejected(tmp_path: Path) -> None:
    write(tmp_path / "list.csv", "path,v\n1.jpg,3\n2.jpg,x\n3.jpg,1\n")
    source = Table(tmp_path / "list.csv", tmp_path, valence_column="v")
    assert rejects(source) == {"line 2": "bad_row", "line 3": "bad_row"}


@pytest.mark.parametrize("name", ["list.csv.gz", "list.jsonl.gz"])
def test_a_compressed_list(tmp_path: Path, name: str) -> None:
    text = '{"path": "1.jpg"}\n' if "jsonl" in name else "path\n1.jpg\n"
    write(tmp_path / name, gzip.compress(text.encode()))
    assert list(entries(Table(tmp_path / name, tmp_path))) == ["1.jpg"]
    write(tmp_path / name, gzip.compress(text.encode())[:-9])
    with pytest.raises(UserError, match="is corrupt"):
        list(Table(tmp_path / name, tmp_path))


@pytest.mark.parametrize("name", ["list.xlsx", "list.XLS", "list.ods"])
def test_a_workbook_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"is a workbook\. Fix: save its sheet as 'CSV UTF-8'"):
        list(Table(write(tmp_path / name, b"PK"), tmp_path))


def test_a_long_column_that_is_not_asked_for(tmp_path: Path) -> None:
    write(tmp_path / "list.csv", f"path,notes\n1.jpg,{'x' * 300_000}\n2.jpg,y\n")
    assert list(entries(Table(tmp_path / "list.csv", tmp_path))) == ["1.jpg", "2.jpg"]


def test_many_missing_files_are_an_error_that_names_three(tmp_path: Path) -> None:
    for number in range(20):
        write(tmp_path / "faces" / f"{number}.jpg", photo(number))
    write(tmp_path / "list.csv", "path\n" + "".join(f"{n}.jpg\n" for n in range(20)) + "x/a.jpg\nx/b.jpg\nx/c.jpg\n")
    request = BuildSpec(tmp_path / "out", "test", {}, max_missing=0.1)
    source = Table(tmp_path / "list.csv", tmp_path / "faces")
    with pytest.raises(UserError, match=r"3 of 23 listed images are missing, for example ('x/[abc]\.jpg'(, )?){3}"):
        build(request, source, lambda stage, done, total: None)
    assert not request.staging_dir.exists()
    manifest, _ = built(source, tmp_path / "out")
    assert (manifest.samples, manifest.rejected) == (20, {"missing": 3})


@pytest.mark.parametrize(("listed", "stored"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_accents_are_found_in_both_spellings(tmp_path: Path, listed: str, stored: str) -> None:
    names = ["José/Zoë.jpg", "Łukasz/ü.jpg", "plain/é.jpg"]
    for number, name in enumerate(names):
        write(tmp_path / unicodedata.normalize(stored, name), photo(number))
    write(tmp_path / "list.csv", "path\n" + "\n".join(unicodedata.normalize(listed, name) for name in names))
    manifest, found = built(Table(tmp_path / "list.csv", tmp_path), tmp_path / "out")
    assert (manifest.samples, manifest.rejected) == (3, {})
    assert set(found) == {unicodedata.normalize(listed, name) for name in names}
