"""Builds by the command line: what becomes of a folder or a list."""

import json
import os
from pathlib import Path

import pytest
from helpers.corpus_fixtures import (
    BUILD,
    VERIFY,
    check_whole,
    contents,
    encoded,
    picture,
    rejected,
    run,
    samples,
    tool,
    write_faces,
)

from shards.format.manifest import read_manifest

pytestmark = pytest.mark.slow


def test_a_folder_with_classes_and_people(tmp_path: Path) -> None:
    faces = write_faces(tmp_path / "faces", 60, ("glad", "calm"), people=15)
    (faces / "notes.txt").write_text("not an image")
    done = run(
        *BUILD,
        "folder",
        faces,
        tmp_path / "out",
        "--class-folders",
        "--val-fraction",
        0.3,
        "--group-pattern",
        r"(p\d+)_",
    )
    assert done.returncode == 0, done.stderr
    manifest = read_manifest(tmp_path / "out")
    assert (manifest.corpus, manifest.labels, manifest.entries) == ("faces", ("calm", "glad"), 60)
    assert manifest.splits == ("train", "val")
    found = samples(tmp_path / "out")
    assert len(found) == 60
    for sample in found:
        assert sample["cls"] == manifest.labels.index(sample["label"])
        assert sample["source"].startswith(sample["label"] + "/")
        assert sample["shard"].startswith(sample["split"] + "-")
        assert (faces / sample["source"]).is_file()
    groups = {split: {s["group"] for s in found if s["split"] == split} for split in manifest.splits}
    assert not groups["train"] & groups["val"]
    assert len(groups["train"] | groups["val"]) == 15
    assert f"note: files in {faces} that are not images: 1 .txt" in done.stdout
    assert not (tmp_path / "out.partial").exists()
    assert str(tmp_path) not in (tmp_path / "out" / "manifest.json").read_text()
    check_whole(tmp_path / "out")


def test_split_folders(tmp_path: Path) -> None:
    for name in ("train", "Validation"):
        write_faces(tmp_path / "faces" / name, 8, ("a", "b"))
    write_faces(tmp_path / "faces" / "more", 1)
    (tmp_path / "faces" / "cover.jpg").write_bytes(encoded(picture()))
    done = run(*BUILD, "folder", tmp_path / "faces", tmp_path / "out", "--split-folders", "--class-folders")
    assert done.returncode == 0, done.stderr
    assert {(s["split"], s["source"].split("/")[0]) for s in samples(tmp_path / "out")} == {
        ("train", "train"),
        ("val", "Validation"),
    }
    assert rejected(tmp_path / "out") == {"cover.jpg": "no_split", "more/p_0000.jpg": "no_split"}


def test_labels_in_the_order_asked_for(tmp_path: Path) -> None:
    faces = write_faces(tmp_path / "faces", 9, ("anger", "fear", "Joy"))
    write_faces(faces, 1)
    command = [*BUILD, "folder", faces, tmp_path / "out", "--class-folders", "--labels", "joy,Anger"]
    assert run(*command, "--keep-unlabeled", "--terms", "research only").returncode == 0
    manifest = read_manifest(tmp_path / "out")
    assert (manifest.labels, manifest.terms) == (("joy", "anger"), "research only")
    assert manifest.rejected == {"unknown_label": 3}
    found = {sample["source"]: sample["cls"] for sample in samples(tmp_path / "out")}
    assert {source.split("/")[0]: cls for source, cls in found.items()} == {"Joy": 0, "anger": 1, "p_0000.jpg": None}
    check_whole(tmp_path / "out")


def test_a_folder_of_folders_is_unlabeled_unless_asked(tmp_path: Path) -> None:
    faces = write_faces(tmp_path / "faces", 4, ("a", "b"))
    done = run(*BUILD, "folder", faces, tmp_path / "out")
    assert "add --class-folders to use them as labels" in done.stdout
    assert {sample["cls"] for sample in samples(tmp_path / "out")} == {None}


def test_folders_of_splits_are_told_from_those_of_classes(tmp_path: Path) -> None:
    """Kaggle's FER2013: if train and test are read as labels, there are two classes and no test split."""
    for name in ("train", "Testing"):
        write_faces(tmp_path / "faces" / name, 4, ("a", "b"))
    command = [*BUILD, "folder", tmp_path / "faces"]
    bare = run(*command, tmp_path / "bare").stdout
    assert "unlabeled; " in bare
    assert "has split folders (Testing, train): add --split-folders to use them as splits, and --class-folders" in bare
    assert "to use them as labels" not in bare
    classes = run(*command, tmp_path / "classes", "--class-folders").stdout
    assert "faces are split names (Testing, train): add --split-folders to use them as splits" in classes
    both = run(*command, tmp_path / "both", "--class-folders", "--split-folders").stdout
    assert "--split-folders" not in both
    assert read_manifest(tmp_path / "both").splits == ("train", "test")
    assert read_manifest(tmp_path / "both").labels == ("a", "b")


def test_names_that_no_program_expects(tmp_path: Path) -> None:
    """Bytes that are not UTF-8, dots, spaces, a new line, other alphabets, very long; and the same content of each."""
    faces = tmp_path / "faces"
    faces.mkdir()
    names = [
        b"caf\xe9 \xff.jpg",
        b"a.b.c.jpg",
        b"a b c.jpg",
        "\u9854\u5199\u771f.jpg".encode(),
        b"new\nline.jpg",
        b"x" * 240 + b".JPG",
    ]
    for name in names:
        (faces / os.fsdecode(name)).write_bytes(encoded(picture(5)))
    (faces / "link.jpg").symlink_to("a.b.c.jpg")
    (faces / "dangling.jpg").symlink_to("nowhere.jpg")
    (faces / "loop").symlink_to(".")
    (faces / "all").symlink_to("/")
    (faces / ".hidden.jpg").write_bytes(b"")
    done = run(*BUILD, "folder", faces, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert rejected(tmp_path / "out") == {"dangling.jpg": "missing"}
    found = samples(tmp_path / "out")
    assert {os.fsencode(sample["source"]) for sample in found} == {*names, b"link.jpg"}
    assert len({sample["key"] for sample in found}) == 7
    check_whole(tmp_path / "out")


def test_a_list_with_every_trap(tmp_path: Path) -> None:
    faces = write_faces(tmp_path / "faces", 12)
    (faces / "empty.jpg").write_bytes(b"")
    (faces / "page.jpg").write_bytes(b"<html>")
    (faces / "half.jpg").write_bytes((faces / "p_0000.jpg").read_bytes()[:600])
    (faces / "tiny.png").write_bytes(encoded(picture(1, 12), "PNG"))
    (faces / "locked").mkdir()
    rows = [(f"p_{n:04d}.jpg", ("Happy ", "SAD")[n % 2], ("Training", "PublicTest")[n > 7]) for n in range(10)]
    rows += [
        ("p_0000.jpg", "happy", "Training"),
        ("p_0010.jpg", "happy", "Training"),
        ("p_0010.jpg", "sad", "Training"),
        ("p_0011.jpg", " ", "Training"),
        *((name, "happy", "Training") for name in ("empty.jpg", "page.jpg", "half.jpg", "tiny.png", "locked")),
        ("gone.jpg", "happy", "Training"),
        ("../faces/p_0001.jpg", "happy", "Training"),
        ("", "happy", "Training"),
    ]
    lines = ["file, emotion ,Usage", *(",".join(row) for row in rows), ""]
    (tmp_path / "list.csv").write_text("\ufeff" + "\r\n".join(lines), encoding="utf-8")
    command = [*BUILD, "csv", tmp_path / "list.csv", tmp_path / "out", "--images", faces]
    columns = ["--path-column", "file", "--label-column", "emotion", "--split-column", "Usage"]
    done = run(*command, *columns)
    assert done.returncode == 0, done.stderr
    manifest = read_manifest(tmp_path / "out")
    assert manifest.labels == ("happy", "sad")
    assert manifest.splits == ("train", "publictest")
    assert manifest.entries == len(rows)
    assert manifest.samples == 10
    assert manifest.rejected == {
        "conflicting_label": 2,
        "empty": 1,
        "missing": 2,
        "not_an_image": 1,
        "outside": 1,
        "repeated": 1,
        "too_small": 1,
        "truncated": 1,
        "unlabeled": 1,
        "unreadable": 1,
    }
    reasons = rejected(tmp_path / "out")
    assert (reasons["gone.jpg"], reasons["half.jpg"], reasons["locked"]) == ("missing", "truncated", "unreadable")
    check_whole(tmp_path / "out")


def test_a_label_without_samples_in_a_split_is_told(tmp_path: Path) -> None:
    faces = write_faces(tmp_path / "faces", 8)
    lines = ["path,label,split", *(f"p_{n:04d}.jpg,{'ab'[n % 2]},{'val' if n == 0 else 'train'}" for n in range(8))]
    (faces / "list.csv").write_text("\n".join(lines))
    done = run(
        *BUILD, "csv", faces / "list.csv", tmp_path / "out", "--label-column", "label", "--split-column", "split"
    )
    assert done.returncode == 0, done.stderr
    assert "note: no sample in split val has the label b" in done.stdout


def test_a_source_that_divides_people_is_told(tmp_path: Path) -> None:
    faces = write_faces(tmp_path / "faces", 8, people=4)
    lines = ["path,split", *(f"p{n % 4:03d}_{n:04d}.jpg,{'val' if n < 2 else 'train'}" for n in range(8))]
    (faces / "list.csv").write_text("\n".join(lines))
    options = ["--split-column", "split", "--group-pattern", "^(.*)_"]
    done = run(*BUILD, "csv", faces / "list.csv", tmp_path / "out", *options)
    assert "note: 2 groups are in more than one split" in done.stdout
    verified = run(*VERIFY, tmp_path / "out")
    assert verified.returncode == 0
    assert "2 groups have samples in more than one split" in verified.stdout


def test_workers_do_not_change_a_byte(tmp_path: Path) -> None:
    faces = write_faces(tmp_path / "faces", 80, ("a", "b", "c"))
    (faces / "a" / "broken.jpg").write_bytes(b"\xff\xd8\xffbroken")
    built = []
    for workers in (1, 2, 3):
        out = tmp_path / f"out{workers}"
        done = run(*BUILD, "folder", faces, out, "--class-folders", "--shard-samples", 9, "--workers", workers)
        assert done.returncode == 0, done.stderr
        built.append(contents(out))
    assert built[0] == built[1] == built[2]
    assert len(built[0]) == 2 + 2 * 9


def test_drawn_faces(tmp_path: Path) -> None:
    options = ["--people", 8, "--images-per-person", 7, "--size", 64]
    done = run(*BUILD, "procedural", tmp_path / "out", *options)
    assert done.returncode == 0, done.stderr
    manifest = read_manifest(tmp_path / "out")
    assert manifest.samples == manifest.entries == 56
    assert len(manifest.labels) == 7
    assert set(manifest.splits) == {"train", "test"}
    assert manifest.terms in done.stdout
    check_whole(tmp_path / "out")


def test_the_folder_that_one_is_in_can_be_the_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ "." has no name, and what is unfinished lies beside it."""
    write_faces(tmp_path / "faces", 4)
    monkeypatch.chdir(write_faces(tmp_path / "full", 1))
    for command in ([*BUILD, "folder", "../faces", "."], [*tool("merge_shards"), tmp_path / "a", tmp_path / "b", "."]):
        refused = run(*command)
        assert (refused.returncode, len(refused.stderr.splitlines())) == (1, 1)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        done = run(*BUILD, "folder", "../faces", ".")
        assert done.returncode == 0, done.stderr
        check_whole(tmp_path / name)
    (tmp_path / "both").mkdir()
    monkeypatch.chdir(tmp_path / "both")
    merged = run(*tool("merge_shards"), tmp_path / "a", tmp_path / "b", ".", "--on-collision", "suffix")
    assert merged.returncode == 0, merged.stderr
    check_whole(tmp_path / "both")


def test_half_a_letter_is_a_bad_row(tmp_path: Path) -> None:
    """JSON can spell one half of a pair of UTF-16, which no other text can hold."""
    faces = write_faces(tmp_path / "faces", 3)
    first, second, third = (path.name for path in sorted(faces.iterdir()))
    rows = [{"path": first, "who": "bob\ud83d"}, {"path": second, "who": "bob\U0001f600"}]
    rows += [{"path": "p\ud83d.jpg"}, {"path": "../\ud83d.jpg"}, {"path": third, "who": None}]
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ["--images", faces, "--group-column", "who"]
    done = run(*BUILD, "table", tmp_path / "list.jsonl", tmp_path / "out", *options)
    assert done.returncode == 0, done.stderr
    fates = rejected(tmp_path / "out")
    assert fates == {first: "bad_row", "p\ud83d.jpg": "bad_row", "line 4": "outside"}
    assert {sample["source"]: sample.get("group") for sample in samples(tmp_path / "out")} == {
        second: "bob\U0001f600",
        third: None,
    }
    check_whole(tmp_path / "out")
