"""Folders, labels and splits as people have them: system folders, numbers for names, copies, albums as classes."""

import subprocess
import sys
from pathlib import Path

import pytest
from helpers.fer2013_corpus import text, write_fer2013
from helpers.landmark_corpora import pts
from helpers.source_kit import built, entries, photo, rejects, write

from shards.build.builder import build
from shards.build.spec import BuildSpec
from shards.errors import UserError
from shards.format.manifest import read_manifest
from shards.reading.dataset import ShardDataset
from shards.rules import EntryRules
from shards.sources.corpora.fer2013 import FER2013
from shards.sources.corpora.ibug300w import read_pts
from shards.sources.generic.folder import Folder
from shards.sources.generic.table import Table
from simfle.config.schema import PretrainConfig, load
from simfle.train.preflight import check

SYSTEM = ["@eaDir", "$RECYCLE.BIN", "__MACOSX", "System Volume Information", "lost+found", "#recycle", ".Trash-1000"]


def quiet(*_: object) -> None:
    """Ignore the progress."""


def test_system_folders_are_skipped_with_a_note(tmp_path: Path) -> None:
    write(tmp_path / "happy/1.jpg", photo(1))
    for place in ("", "happy/"):
        for name in SYSTEM:
            write(tmp_path / f"{place}{name}/x.jpg", photo(2))
    write(tmp_path / "happy/Thumbs.db", b"x")
    source = Folder(tmp_path, class_folders=True)
    assert [(key, item.label) for key, item in entries(source).items()] == [("happy/1.jpg", "happy")]
    assert rejects(source) == {}
    (note,) = source.notes()
    assert all(name in note for name in SYSTEM[:-1])
    assert "1 Thumbs.db" in note


def write_numbers(folder: Path, numbers: list[int]) -> Table:
    for number in numbers:
        write(folder / f"{number}.jpg", photo(number))
    write(folder / "list.csv", "path,label\n" + "".join(f"{number}.jpg,{number}\n" for number in numbers))
    return Table(folder / "list.csv", folder, label_column="label")


@pytest.mark.parametrize(("numbers", "first"), [([0, 1, 2], 0), ([1, 2, 3, 4], 1), ([0, 3], 0), ([4, 2], 1)])
def test_numbers_mean_the_names_that_are_given(tmp_path: Path, numbers: list[int], first: int) -> None:
    source = write_numbers(tmp_path / "in", numbers)
    request = BuildSpec(tmp_path / "out", "test", {}, EntryRules(labels=("d", "b", "c", "a"), labeled=True))
    report = build(request, source, quiet)
    assert (report.manifest.labels, report.manifest.rejected) == (("d", "b", "c", "a"), {})
    assert {label for _, label in report.written} == {"dbca"[number - first] for number in numbers}
    assert build(request, source, quiet).up_to_date


@pytest.mark.parametrize(("numbers", "words"), [([1, 2], "may start at 0 or 1"), ([0, 4], "do not match 4 names")])
def test_numbers_that_could_be_other_names_are_refused(tmp_path: Path, numbers: list[int], words: str) -> None:
    request = BuildSpec(tmp_path / "out", "test", {}, EntryRules(labels=("a", "b", "c", "d"), labeled=True))
    with pytest.raises(UserError, match=words):
        build(request, write_numbers(tmp_path / "in", numbers), quiet)


@pytest.mark.parametrize(("emotion", "label"), [("3.0", "happy"), ("Angry", "angry"), ("6", "neutral"), ("7", None)])
def test_fer2013_labels_in_other_forms(tmp_path: Path, emotion: str, label: str | None) -> None:
    write(tmp_path / "fer2013.csv", f"emotion,pixels,Usage\n{emotion},{text(0)},Training\n")
    source = FER2013(tmp_path)
    assert [entry.label for entry in entries(source).values()] == ([label] if label else [])
    assert list(rejects(source).values()) == ([] if label else ["bad_row"])
    assert len(entries(FER2013(write_fer2013(tmp_path / "whole")))) > 1


def test_points_without_a_header(tmp_path: Path) -> None:
    whole = read_pts(write(tmp_path / "a.pts", pts()))
    rows = pts().splitlines()
    bare = "\n".join(row for row in rows if row[0].isdigit())
    assert whole is not None
    assert read_pts(write(tmp_path / "b.pts", bare)) == whole
    assert read_pts(write(tmp_path / "c.pts", f"version: 1\nn_points: 68\n{bare}")) == whole
    assert read_pts(write(tmp_path / "d.pts", bare.replace("\n", "\nx y\n", 1))) is None
    assert read_pts(write(tmp_path / "e.pts", pts().replace("}", ""))) is None


def test_copies_in_two_splits_and_unknown_people_are_said(tmp_path: Path) -> None:
    for number in range(40):
        write(tmp_path / f"in/{number}.jpg", photo(number % 20))
    rules = EntryRules(test_fraction=0.5)
    report = build(BuildSpec(tmp_path / "out", "test", {}, rules, shard_samples=8), Folder(tmp_path / "in"), quiet)
    _, found = built(Folder(tmp_path / "in"), tmp_path / "other")
    assert len(found) == 40
    splits: dict[bytes, set[str]] = {}
    for item in ShardDataset(tmp_path / "out"):
        splits.setdefault(item.image_bytes, set()).add(item.split)
    both = sum(len(each) == 2 for each in splits.values())
    assert both > 0
    assert any(note.startswith(f"{both} images are exact copies of images in another split") for note in report.notes)
    assert sum(note.startswith("people are unknown") for note in report.notes) == 1


def test_class_folders_are_said_before_building(tmp_path: Path) -> None:
    for name in ("happy/1.jpg", "happy/2.jpg", "2023 sommer/3.jpg", "4.jpg"):
        write(tmp_path / "in" / name, photo(len(name)))
    words = ["shards", "build", "folder", str(tmp_path / "in"), str(tmp_path / "out"), "--class-folders"]
    done = subprocess.run([sys.executable, "-m", "simfle", *words], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[:3] == [
        "classes from folders: 2 with 3 images: 2023 sommer (1), happy (2)",
        "note: 2023 sommer: a number or date in the name; is it a class?",
        "note: 1 images are in no class folder, so they are unlabeled: --keep-unlabeled keeps them",
    ]
    assert read_manifest(tmp_path / "out").rejected == {"unlabeled": 1}


def test_shards_that_are_named_twice_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to("a")
    for places in ("[a,a]", f"[a,{tmp_path}/a/]", "[a,link]", "[https://h/a,https://h/a/]"):
        with pytest.raises(UserError, match=r"data\.shards: .*named twice.*Fix: list it once"):
            check(load(PretrainConfig, None, [f"data.shards={places}"]))
    check(load(PretrainConfig, None, ["data.shards=[a,b]"]))
