"""Builds by the real command line, on real files and processes."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pytest
from corpus_fixtures import BUILD, VERIFY, contents, encoded, picture, rejected, run, write_faces

from shards.index import index_tar, read_index
from shards.manifest import read_manifest
from shards.writer import TarShard
from simfle.commands.build_shards import main

T = TypeVar("T")


def samples(shards: Path) -> list[dict]:
    """The json of every sample, with `cls` and the split of the shard it lies in, in manifest order."""
    found = []
    for info in read_manifest(shards).shards:
        with tarfile.open(shards / info.file) as tar:
            names = tar.getnames()
            for name in names:
                if name.endswith(".json"):
                    sample = json.load(tar.extractfile(name))
                    label = name.removesuffix("json") + "cls"
                    sample["cls"] = int(tar.extractfile(label).read()) if label in names else None
                    found.append(sample | {"shard": info.file})
    return found


def check_whole(shards: Path) -> None:
    """Entries are all accounted for, and verify_shards agrees."""
    manifest = read_manifest(shards)
    assert manifest.entries == manifest.samples + sum(manifest.rejected.values())
    assert len((shards / "rejected.jsonl").read_text().splitlines()) == sum(manifest.rejected.values())
    verified = run(*VERIFY, shards, "--workers", 1)
    assert verified.returncode == 0, verified.stdout + verified.stderr


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
    assert f"note: files in {faces} that are no images: 1 .txt" in done.stdout
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
    assert run(*command, "--keep-unlabelled", "--terms", "research only").returncode == 0
    manifest = read_manifest(tmp_path / "out")
    assert (manifest.labels, manifest.terms) == (("joy", "anger"), "research only")
    assert manifest.rejected == {"unknown_label": 3}
    found = {sample["source"]: sample["cls"] for sample in samples(tmp_path / "out")}
    assert {source.split("/")[0]: cls for source, cls in found.items()} == {"Joy": 0, "anger": 1, "p_0000.jpg": None}
    check_whole(tmp_path / "out")


def test_a_folder_of_folders_is_unlabelled_unless_asked(tmp_path: Path) -> None:
    faces = write_faces(tmp_path / "faces", 4, ("a", "b"))
    done = run(*BUILD, "folder", faces, tmp_path / "out")
    assert "--class-folders makes them labels" in done.stdout
    assert {sample["cls"] for sample in samples(tmp_path / "out")} == {None}


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
        "unlabelled": 1,
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


def start(*command: object) -> "subprocess.Popen[bytes]":
    words = [str(word) for word in command]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)


def wait_for(done: Callable[[], T], process: "subprocess.Popen[bytes]", seconds: float = 30) -> T:
    """What `done` gives as soon as it is true; asked only once more it might be untrue again."""
    end = time.monotonic() + seconds
    while not (found := done()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.005)
    return found


def finished(partial: Path) -> int:
    """Shards of an unfinished build whose result stands."""
    return len(list((partial / "work").glob("*-*.json")))


@contextmanager
def held(image: Path) -> Iterator[None]:
    """Inside, `image` is a pipe that nobody writes to: the build stands still where it reads it. Then it is itself."""
    content = image.read_bytes()
    image.unlink()
    os.mkfifo(image)
    try:
        yield
    finally:
        image.unlink()
        image.write_bytes(content)


SHARDS = ["--class-folders", "--shard-samples", 8, "--val-fraction", 0.2]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `faces` and `whole`, the shards of a build that nobody disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    write_faces(folder / "faces", 100, ("a", "b"))
    assert run(*BUILD, "folder", folder / "faces", folder / "whole", *SHARDS).returncode == 0
    return folder


def first_of_shard(undisturbed: Path, number: int) -> Path:
    """The image that comes first in a shard of the undisturbed build."""
    shard = read_manifest(undisturbed / "whole").shards[number].file
    source = next(sample["source"] for sample in samples(undisturbed / "whole") if sample["shard"] == shard)
    return undisturbed / "faces" / source


@pytest.mark.parametrize(("workers", "number", "done"), [(1, 0, 0), (1, 5, 5), (2, 0, 11), (2, 7, 12)])
def test_a_build_killed_anywhere_ends_with_the_same_bytes(
    tmp_path: Path, undisturbed: Path, workers: int, number: int, done: int
) -> None:
    command = [*BUILD, "folder", undisturbed / "faces", tmp_path / "out", *SHARDS]
    with held(first_of_shard(undisturbed, number)):
        process = start(*command, "--workers", workers)
        wait_for((tmp_path / "out.partial" / "work" / "plan.json").exists, process)
        wait_for(lambda: finished(tmp_path / "out.partial") >= done, process)
        process.kill()
        process.communicate()
    assert not (tmp_path / "out").exists()
    again = run(*command, "--workers", 3 - workers)
    assert again.returncode == 0, again.stderr
    if done:
        assert "shards were there from an earlier start" in again.stdout
    assert contents(tmp_path / "out") == contents(undisturbed / "whole")
    assert not (tmp_path / "out.partial").exists()


def children(process: "subprocess.Popen[bytes]") -> list[int]:
    return [int(word) for word in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def busy(process: "subprocess.Popen[bytes]") -> list[int]:
    """Workers that have opened the plan, children that are still copies of their parent left out."""
    return [
        pid
        for pid in children(process)
        if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()
        and "plan.sqlite" in " ".join(map(_target, Path(f"/proc/{pid}/fd").iterdir()))
    ]


def _target(link: Path) -> str:
    try:
        return str(link.readlink())
    except OSError:
        return ""


def test_workers_do_not_outlive_a_killed_build(tmp_path: Path, undisturbed: Path) -> None:
    with held(first_of_shard(undisturbed, 0)):
        process = start(*BUILD, "folder", undisturbed / "faces", tmp_path / "out", *SHARDS, "--workers", 2)
        wait_for(lambda: busy(process), process)
        workers = children(process)
        process.kill()
        process.wait()
        end = time.monotonic() + 10
        while any("State:\tZ" not in _status(pid) for pid in workers):
            assert time.monotonic() < end
            time.sleep(0.02)


def _status(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return "State:\tZ"


def test_a_worker_that_dies_is_told_and_its_build_goes_on(tmp_path: Path, undisturbed: Path) -> None:
    command = [*BUILD, "folder", undisturbed / "faces", tmp_path / "out", *SHARDS, "--workers", 2]
    with held(first_of_shard(undisturbed, 3)):
        process = start(*command)
        os.kill(wait_for(lambda: busy(process), process)[0], signal.SIGKILL)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    assert re.fullmatch(rb"error: a worker process died.*\n", errors)
    assert run(*command).returncode == 0
    assert contents(tmp_path / "out") == contents(undisturbed / "whole")


@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_keeps_what_is_finished(tmp_path: Path, undisturbed: Path, workers: int) -> None:
    command = [*BUILD, "folder", undisturbed / "faces", tmp_path / "out", *SHARDS, "--workers", workers]
    with held(first_of_shard(undisturbed, 2)):
        process = start(*command)
        wait_for(lambda: finished(tmp_path / "out.partial"), process)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers too
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert re.fullmatch(rb"what is finished is kept in .*; the same command goes on there\n", errors)
    assert not (tmp_path / "out").exists()
    again = run(*command)
    assert "shards were there from an earlier start" in again.stdout
    assert contents(tmp_path / "out") == contents(undisturbed / "whole")


def test_an_unfinished_build_is_refused_to_others(tmp_path: Path, undisturbed: Path) -> None:
    """To a second process at the same time, and to other options afterwards."""
    command = [*BUILD, "folder", undisturbed / "faces", tmp_path / "out", *SHARDS, "--workers", 1]
    with held(first_of_shard(undisturbed, 2)):
        process = start(*command)
        wait_for(lambda: finished(tmp_path / "out.partial"), process)
        second = run(*command)
        assert second.returncode == 1
        assert "is being built by another process" in second.stderr
        process.kill()
        process.communicate()
    other = run(*command, "--quality", 80)
    assert other.returncode == 1
    assert "unfinished build of other images or options" in other.stderr
    assert run(*command).returncode == 0
    assert contents(tmp_path / "out") == contents(undisturbed / "whole")


def test_building_again_says_that_all_is_there_or_refuses(tmp_path: Path) -> None:
    faces = write_faces(tmp_path / "faces", 10)
    command = [*BUILD, "folder", faces, tmp_path / "out"]
    assert run(*command).returncode == 0
    before = contents(tmp_path / "out")
    again = run(*command)
    assert (again.returncode, "complete already" in again.stdout) == (0, True)
    other = run(*command, "--quality", 80)
    assert other.returncode == 1
    assert "holds shards of other images or options" in other.stderr
    (faces / "new.jpg").write_bytes(encoded(picture(77)))
    assert run(*command).returncode == 1
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize(("kilobytes", "words"), [(20, "cannot build"), (200, "File too large .*train-000000")])
def test_a_disk_that_fails_costs_no_image(tmp_path: Path, kilobytes: int, words: str) -> None:
    """What no image is to blame for stops the build in one line: files that may not grow, while planning or writing."""
    faces = write_faces(tmp_path / "faces", 100)
    command = [*BUILD, "folder", faces, tmp_path / "out", "--workers", 1]
    done = run("bash", "-c", f'ulimit -f {kilobytes}; exec "$@"', "bash", *command)
    assert done.returncode == 1
    assert re.fullmatch(f"error: .*{words}.*\n", done.stderr)
    assert not (tmp_path / "out").exists()
    assert run(*command).returncode == 0
    assert read_manifest(tmp_path / "out").samples == 100


BAD = {
    "no such folder": (["folder", "absent", "out"], "absent is not a folder"),
    "an empty folder": (["folder", "empty", "out"], "no images in empty"),
    "no images in it": (["folder", "texts", "out"], "no images in texts .*1 .txt"),
    "all rejected": (["folder", "broken", "out"], "every entry was rejected .*1 empty, 1 not_an_image"),
    "class folders, but flat": (["folder", "faces", "out", "--class-folders"], "every entry was rejected .*unlabelled"),
    "split folders, but none": (["folder", "classes", "out", "--split-folders"], "rejected .*4 no_split"),
    "two groups": (
        ["csv", "list.csv", "out", "--group-column", "none", "--group-pattern", "(.)"],
        "give one of them",
    ),
    "output below a file": (["folder", "faces", "list.csv/out"], "cannot make list.csv/out.partial"),
    "output in the source": (["folder", "faces", "faces/out"], "lies inside the source"),
    "output exists": (["folder", "faces", "texts"], "texts exists and is no folder of shards"),
    "fraction": (["folder", "faces", "out", "--val-fraction", "1.5"], r"--val-fraction 1.5 is not in \[0, 1\)"),
    "fractions": (
        ["folder", "faces", "out", "--val-fraction", ".5", "--test-fraction", ".5"],
        "leave nothing to train on",
    ),
    "pattern": (["folder", "faces", "out", "--group-pattern", "("], "not a regular expression"),
    "pattern without a group": (["folder", "faces", "out", "--group-pattern", "a"], "has 0 groups"),
    "one group": (
        ["folder", "faces", "out", "--group-pattern", "^(p)_", "--val-fraction", ".5"],
        "no group fell into split",
    ),
    "quality": (["folder", "faces", "out", "--quality", "0"], "--quality"),
    "labels": (["folder", "classes", "out", "--class-folders", "--labels", "a,,b"], "empty name"),
    "no such list": (["csv", "absent.csv", "out"], "absent.csv is not a file"),
    "no such images": (["csv", "list.csv", "out", "--images", "absent"], "images absent does not exist"),
    "unknown column": (
        ["csv", "list.csv", "out", "--images", "faces", "--label-column", "emotions"],
        r"no column 'emotions'; did you mean 'emotion'\? \(columns: path, emotion, none\)",
    ),
    "unknown path column": (["csv", "list.csv", "out", "--path-column", ""], "no column ''"),
    "no label anywhere": (
        ["csv", "list.csv", "out", "--images", "faces", "--label-column", "none"],
        "no row of list.csv has anything in the label column 'none'",
    ),
    "an empty list": (["csv", "empty.csv", "out"], "empty.csv is empty"),
    "a list of no rows": (["csv", "header.csv", "out"], "a header and no rows"),
    "not text": (["csv", "image.csv", "out"], "not UTF-8"),
    "all missing": (["csv", "list.csv", "out", "--images", "empty"], "every entry was rejected .*missing"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_line_and_leaves_nothing(
    tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_faces(Path("faces"), 4)
    write_faces(Path("classes"), 4, ("a", "b"))
    for name in ("empty", "texts", "broken"):
        Path(name).mkdir()
    Path("texts/a.txt").write_text("text")
    Path("broken/a.jpg").write_text("")
    Path("broken/b.png").write_text("text")
    Path("list.csv").write_text("path,emotion,none\np_0000.jpg,glad,\np_0001.jpg,calm,\n")
    Path("empty.csv").write_text("")
    Path("header.csv").write_text("path,emotion\n")
    Path("image.csv").write_bytes(b"path\n\xff\xd8\xff\n")
    before = contents(tmp_path), sorted(tmp_path.iterdir())
    arguments, words = BAD[case]
    monkeypatch.setattr(sys, "argv", ["build_shards.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    assert re.fullmatch(f"error: .*{words}.*\n", capsys.readouterr().err)
    assert (contents(tmp_path), sorted(tmp_path.iterdir())) == before


def test_folders_made_for_nothing_are_taken_away(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert run(*BUILD, "folder", tmp_path / "empty", tmp_path / "a" / "b" / "out").returncode == 1
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


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


def test_the_tar_is_what_webdatasets_writer_makes(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    content = [(f"k{n}" + "x" * 4 * n, {"jpg": bytes([n]) * (n**3 * 100), "cls": b"1", "json": b""}) for n in range(20)]
    ours = TarShard(tmp_path / "ours.tar")
    theirs = io.BytesIO()
    with webdataset.TarWriter(theirs, user="shards", group="shards", mode=0o444, mtime=0, encoder=False) as writer:
        for key, members in content:
            ours.add(key, members)
            for extension, data in members.items():  # one at a time: it sorts the members of a sample
                writer.write({"__key__": key, extension: data})
    written = ours.finish()
    assert (tmp_path / "ours.tar").read_bytes() == theirs.getvalue()
    assert written.bytes == len(theirs.getvalue())
    assert written.index.keys == index_tar(tmp_path / "ours.tar").keys


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    write_faces(folder / "faces", 30, ("a", "b"))
    assert run(*BUILD, "folder", folder / "faces", folder / "out", "--class-folders").returncode == 0
    return folder / "out"


def test_tar_reads_our_shards(shards: Path) -> None:
    listed = run("tar", "tf", shards / "train-000000.tar")
    assert listed.returncode == 0, listed.stderr
    index = read_index(shards / "train-000000.idx")
    names = [member.name for sample in range(len(index)) for member in index.members(sample).values()]
    assert listed.stdout.splitlines() == names
    assert names[0].endswith(".jpg")
    assert names[1].endswith(".cls")
    assert names[2].endswith(".json")


def test_webdataset_reads_our_shards(shards: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    data = webdataset.WebDataset(str(shards / "train-000000.tar"), shardshuffle=False).decode("rgb8")
    read = list(data)
    assert [item["__key__"] for item in read] == [sample["key"] for sample in samples(shards)]
    for item in read:
        assert item["jpg"].shape == (item["json"]["height"], item["json"]["width"], 3)
        assert item["cls"] == ("a", "b").index(item["json"]["label"])


def test_dali_reads_our_shards_by_our_index(shards: Path) -> None:
    dali = pytest.importorskip("nvidia.dali")
    readers = dali.fn.readers

    @dali.pipeline_def(batch_size=30, num_threads=1, device_id=None)
    def pipeline() -> tuple:
        tar, index = str(shards / "train-000000.tar"), str(shards / "train-000000.idx")
        jpg, cls = readers.webdataset(
            paths=tar, index_paths=index, ext=["jpg", "cls"], missing_component_behavior="error"
        )
        return dali.fn.peek_image_shape(jpg), cls

    shapes, labels = (output.as_array() if output.is_dense_tensor() else output for output in pipeline().run())
    expected = samples(shards)
    assert [list(shape[:2]) for shape in shapes] == [[sample["height"], sample["width"]] for sample in expected]
    assert [int(bytes(label)) for label in labels] == [sample["cls"] for sample in expected]
