"""Folders, labels and splits as people have them: system folders, numbers for names, copies, albums as classes."""

import io
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from helpers.fer2013_corpus import text, write_fer2013
from helpers.landmark_corpora import pts
from helpers.source_kit import built, entries, photo, rejects, write
from PIL import Image

from shards.build.builder import build
from shards.build.spec import BuildSpec
from shards.entry import Rejected
from shards.errors import UserError
from shards.format.manifest import read_manifest
from shards.reading.dataset import ShardDataset
from shards.rules import EntryRules, normalize_split
from shards.sources.corpora.fer2013 import FER2013
from shards.sources.corpora.ibug300w import read_pts
from shards.sources.generic.archive import Archive
from shards.sources.generic.folder import Folder
from shards.sources.generic.table import Table
from shards.sources.synthetic.procedural import draw
from simfle.api.input_shards import build_images
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


def test_names_of_split_folders(tmp_path: Path) -> None:
    for number, name in enumerate(("train_set", "Val Set", "testing-set", "Eval")):
        write(tmp_path / name / f"{number}.jpg", photo(number))
    write(tmp_path / "5.jpg", photo(5))
    source = Folder(tmp_path, split_folders=True)
    assert [normalize_split(item.split) for item in entries(source).values()] == ["val", "test", "train"]
    details = [item.detail for item in source if isinstance(item, Rejected)]
    names = "accepted names: train, training, val, valid, validation, dev, test, testing (also with _set)"
    assert details == [f"it is in no folder; {names}", f"its first folder is 'Eval'; {names}"]


def test_formats_of_phones_and_cameras_are_named(tmp_path: Path) -> None:
    for name in ("1.HEIC", "2.heic", "3.avif", "4.txt"):
        write(tmp_path / "in" / name, b"x")
    with pytest.raises(UserError, match=r"no images in .*Fix: convert them to JPEG, for example"):
        list(Folder(tmp_path / "in"))
    write(tmp_path / "in/5.jpg", photo(1))
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as made:
        for file in (tmp_path / "in").iterdir():
            made.write(file, file.name)
    for source in (Folder(tmp_path / "in"), Archive(tmp_path / "in.zip")):
        assert len(entries(source)) == 1
        assert [
            note for note in source.notes() if note.startswith("photos in formats that are not read: 1 .avif, 2 .heic")
        ]


def test_images_that_a_run_does_not_use_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "in/1.jpg", photo(1))
    write(tmp_path / "in/2.jpg", b"no image")
    build_images(tmp_path / "in", tmp_path / "out")
    assert f"1 images are not used (1 not_an_image): see {tmp_path / 'out' / 'rejected.jsonl'}" in caplog.text


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


def test_copies_in_one_split_and_under_two_labels_are_said(tmp_path: Path) -> None:
    for name, number in (("sad/1", 1), ("sad/2", 1), ("sad/3", 1), ("glad/1", 1), ("glad/2", 2), ("glad/3", 3)):
        write(tmp_path / f"in/{name}.jpg", photo(number))
    report = build(BuildSpec(tmp_path / "out", "test", {}), Folder(tmp_path / "in", class_folders=True), quiet)
    assert (
        sum(note.startswith("3 images are exact copies of other images in their split") for note in report.notes) == 1
    )
    assert sum(note.startswith("1 images occur with different labels") for note in report.notes) == 1
    assert not any("people" in note for note in report.notes)  # one split


@pytest.mark.parametrize("people", [0, 2, 4])
def test_unknown_people_are_said_once_for_splits_of_the_source(tmp_path: Path, people: int) -> None:
    rows = "".join(f"{n}.jpg,{'train' if n < 2 else 'test'},{f'p{n}' if n < people else ''}\n" for n in range(4))
    write(tmp_path / "in/list.csv", f"path,split,person\n{rows}")
    for number in range(4):
        write(tmp_path / f"in/{number}.jpg", photo(number))
    table = Table(tmp_path / "in/list.csv", tmp_path / "in", split_column="split", group_column="person")
    notes = build(BuildSpec(tmp_path / "out", "test", {}), table, quiet).notes
    who = {0: "people are unknown", 2: "people of 2 of 4 images are unknown"}.get(people)
    assert [note for note in notes if "people" in note] == (
        [f"{who}, so splits may share them. Fix: add --group-pattern to find the person in a path"] if who else []
    )


def test_near_copies_are_found_on_request(tmp_path: Path) -> None:
    """A re-encoded copy in another split, an exact one in the same; the printed command removes them."""
    face = draw(7, 1, 0, 96)
    again = io.BytesIO()
    Image.open(io.BytesIO(face)).save(again, "JPEG", quality=60)
    for name, content in (
        ("train/a", face), ("train/b", face), ("test/c", again.getvalue()), ("test/d", draw(7, 2, 0, 96))
    ):  # fmt: skip
        write(tmp_path / f"in/{name}.jpg", content)
    words = ["folder", str(tmp_path / "in"), str(tmp_path / "my out"), "--split-folders", "--workers", "1"]
    command = [sys.executable, "-m", "simfle", "shards", "build", *words, "--near-duplicates"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    listed = tmp_path / "my out.duplicates.jsonl"
    assert (
        "note: 1 exact and 1 near duplicates, of which 1 have their copy in another split and 0 have another label; "
        f"listed in {listed}. To remove them: simfle shards remove '{tmp_path / 'my out'}' --list '{listed}' "
        "--reason duplicates\n"
    ) in done.stdout
    assert len(listed.read_text().splitlines()) == 2
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.count("1 near duplicates") == 1


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
        with pytest.raises(UserError, match=r"data\.shards: .*named twice.*Fix: name it once"):
            check(load(PretrainConfig, None, [f"data.shards={places}"]))
    check(load(PretrainConfig, None, ["data.shards=[a,b]"]))
