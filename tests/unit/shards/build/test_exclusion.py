"""--exclude: images and people of other shards stay out of a build."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import cv2
import pytest
import simplejpeg
from helpers.corpus_fixtures import BUILD, VERIFY, contents, rejected, run

from shards.format.manifest import read_manifest
from shards.sources.synthetic.procedural import draw

pytestmark = pytest.mark.slow

PEOPLE = r"^(.+)_\d"


def face(person: int, index: int) -> bytes:
    return draw(7, person, index, 96)


def smaller(jpeg: bytes) -> bytes:
    image = cv2.resize(simplejpeg.decode_jpeg(jpeg, "RGB"), (64, 64), interpolation=cv2.INTER_AREA)
    return simplejpeg.encode_jpeg(image, quality=60)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`faces`: 30 of ten people. `bench`: in split test a resized and an unchanged one of them and people 1 and 2."""
    folder = tmp_path_factory.mktemp("exclude")
    (folder / "faces").mkdir()
    for person in range(10):
        for index in range(3):
            (folder / "faces" / f"Person {person}_{index}.jpg").write_bytes(face(person, index))
    (folder / "faces" / "Person 5_7.jpg").write_bytes(b"\xff\xd8\xffbroken")
    (folder / "faces" / "Person 1_7.jpg").write_bytes(b"")  # who is kept out is not even read
    held = {
        "test/other_1.jpg": smaller(face(8, 0)),
        "test/another_1.jpg": face(9, 1),
        "test/person_1_8.jpg": face(30, 0),
        "test/PERSON-2_8.jpg": face(31, 0),
        "train/person_3_8.jpg": face(32, 0),
        "train/third_1.jpg": face(4, 2),
    }
    for name, jpeg in held.items():
        (folder / "bench" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "bench" / name).write_bytes(jpeg)
    options = ["--split-folders", "--group-pattern", "([^/]+)_\\d"]
    assert run(*BUILD, "folder", folder / "bench", folder / "bench-shards", *options).returncode == 0
    return folder


def command(bench: Path, out: Path, *options: object) -> list[object]:
    return [*BUILD, "folder", bench / "faces", out, "--group-pattern", PEOPLE, "--shard-samples", 4, *options]


def test_images_and_people_of_a_split_stay_out(bench: Path, tmp_path: Path) -> None:
    done = run(*command(bench, tmp_path / "out", "--exclude", f"{bench}/bench-shards:test"))
    assert done.returncode == 0, done.stderr
    manifest = read_manifest(tmp_path / "out")
    assert manifest.rejected == {"excluded_image": 2, "excluded_person": 7, "unreadable": 1}
    assert manifest.entries == 32 == manifest.samples + 10
    reasons = rejected(tmp_path / "out")
    assert reasons["Person 8_0.jpg"] == reasons["Person 9_1.jpg"] == "excluded_image"
    assert {source[:8] for source, reason in reasons.items() if reason == "excluded_person"} == {"Person 1", "Person 2"}
    details = {item["source"]: item["detail"] for item in map(json.loads, (tmp_path / "out" / "rejected.jsonl").open())}
    assert details["Person 9_1.jpg"] == "the same pixels as test_another_1 in bench test"
    assert details["Person 8_0.jpg"].endswith("bits from test_other_1 in bench test")
    assert "2 excluded_image, 7 excluded_person, 1 unreadable" in done.stdout
    assert "--exclude-images-only" in done.stdout
    (told,) = manifest.build["exclude"]["shards"]
    assert (told["corpus"], told["split"]) == ("bench", "test")
    assert str(bench) not in (tmp_path / "out" / "manifest.json").read_text()
    assert run(*VERIFY, tmp_path / "out", "--workers", 1).returncode == 0


def test_all_splits_and_images_only(bench: Path, tmp_path: Path) -> None:
    done = run(*command(bench, tmp_path / "out", "--exclude", bench / "bench-shards", "--exclude-images-only"))
    assert done.returncode == 0, done.stderr
    reasons = rejected(tmp_path / "out")
    assert reasons.pop("Person 1_7.jpg") == "empty"
    assert reasons.pop("Person 5_7.jpg") == "unreadable"
    assert reasons == dict.fromkeys(("Person 4_2.jpg", "Person 8_0.jpg", "Person 9_1.jpg"), "excluded_image")


def test_several_are_excluded_at_once(bench: Path, tmp_path: Path) -> None:
    twice = [word for split in ("train", "test") for word in ("--exclude", f"{bench}/bench-shards:{split}")]
    assert run(*command(bench, tmp_path / "out", *twice)).returncode == 0
    assert read_manifest(tmp_path / "out").rejected == {"excluded_image": 3, "excluded_person": 10, "unreadable": 1}


def test_exclusion_is_part_of_what_a_build_is(bench: Path, tmp_path: Path) -> None:
    assert run(*command(bench, tmp_path / "out")).returncode == 0
    other = run(*command(bench, tmp_path / "out", "--exclude", f"{bench}/bench-shards:test"))
    assert other.returncode == 1
    assert "holds shards of other images or options" in other.stderr


def test_killed_and_resumed_with_other_workers_ends_with_the_same_bytes(bench: Path, tmp_path: Path) -> None:
    options = ["--exclude", f"{bench}/bench-shards:test"]
    assert run(*command(bench, tmp_path / "whole", *options, "--workers", 2)).returncode == 0
    words = [str(word) for word in command(bench, tmp_path / "out", *options, "--workers", 1)]
    work = tmp_path / "out.partial" / "work"
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    end = time.monotonic() + 120
    while not list(work.glob("train-*.json")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    if (tmp_path / "out.partial").exists():  # it was not faster than the kill
        read = (work / "exclude.npy").stat().st_mtime_ns
        again = subprocess.Popen([*words[:-1], "2"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        while again.poll() is None:  # what was read of the excluded shards is used again
            try:
                assert (work / "exclude.npy").stat().st_mtime_ns == read
            except FileNotFoundError:
                break
        assert again.wait() == 0
        again.communicate()
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


BAD = {
    "no shards": (["--exclude", "absent"], "absent is not a folder"),
    "no such split": (["--exclude", "{}:tset"], "no split 'tset'"),
    "a distance": (["--exclude", "{}", "--exclude-hamming", "99"], "--distance=99"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments_get_one_line(bench: Path, tmp_path: Path, case: str) -> None:
    options, words = BAD[case]
    done = run(*command(bench, tmp_path / "out", *(word.format(bench / "bench-shards") for word in options)))
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert words in done.stderr
    assert not list(tmp_path.iterdir())
