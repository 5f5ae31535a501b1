"""Fingerprints on drawn faces, and find_duplicates on real shards."""

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pytest
import simplejpeg
from helpers.cli_runner import ROOT
from helpers.corpus_fixtures import BUILD, encoded, run
from numpy.typing import NDArray
from PIL import Image

from shards.dedup.duplicates import HashIndex
from shards.dedup.perceptual_hash import (
    ALIKE,
    HASH_DTYPE,
    NEAR,
    PerceptualHashes,
    perceptual_hash,
    perceptual_hash_pixels,
    thumbnail_correlation,
)
from shards.sources.synthetic.procedural import draw

pytestmark = pytest.mark.slow

FIND = [BUILD[0], str(ROOT / "tools" / "find_duplicates.py")]
PEOPLE = 120
Pixels = NDArray[np.uint8]


@cache
def faces() -> tuple[Pixels, ...]:
    """One drawn face of each person, [128, 128, 3]."""
    return tuple(simplejpeg.decode_jpeg(draw(7, person, 0, 128), "RGB") for person in range(PEOPLE))


@cache
def strangers() -> PerceptualHashes:
    """Images of 300 other synthetic people."""
    return prints([simplejpeg.decode_jpeg(draw(7, person, 1, 128), "RGB") for person in range(300)])


def prints(images: list[Pixels]) -> PerceptualHashes:
    return np.array([perceptual_hash_pixels(np.ascontiguousarray(image)) for image in images], HASH_DTYPE)


def again(image: Pixels, quality: int) -> Pixels:
    return simplejpeg.decode_jpeg(simplejpeg.encode_jpeg(image, quality=quality, colorspace="RGB"), "RGB")


def crop(image: Pixels, share: float) -> Pixels:
    edge = round(share * len(image))
    return image[edge : len(image) - edge, edge : len(image) - edge]


# What is promised of near duplicates: the share that is found at the usual distance.
COPIES: dict[str, tuple[Callable[[Pixels], Pixels], float]] = {
    "quality 50": (lambda image: again(image, 50), 1.0),
    "quality 20": (lambda image: again(image, 20), 1.0),
    "half the size": (lambda image: cv2.resize(image, (64, 64), interpolation=cv2.INTER_AREA), 1.0),
    "48 px": (lambda image: cv2.resize(image, (48, 48), interpolation=cv2.INTER_AREA), 0.99),
    "other proportions": (lambda image: cv2.resize(image, (178, 218), interpolation=cv2.INTER_LINEAR), 1.0),
    "gray": (lambda image: cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB), 1.0),
    "brighter": (lambda image: np.clip(image * 1.1 + 8, 0, 255).astype(np.uint8), 0.95),
    "1 % cropped": (lambda image: crop(image, 0.01), 0.95),
    # Three of 128 pixels a side: 0.55 of drawn faces that fill the frame (0.95 with room around them; photos 0.91).
    "2 % cropped": (lambda image: crop(image, 0.02), 0.50),
}


@pytest.mark.parametrize("kind", COPIES)
def test_copies_are_found(kind: str) -> None:
    change, share = COPIES[kind]
    matches = HashIndex(prints(list(faces()))).query(prints([change(image) for image in faces()]))
    found = (matches.match_index == np.arange(PEOPLE)).mean()
    assert found >= share


def test_other_faces_are_not_alike() -> None:
    """Drawn faces are far more alike than photos: same pose range, flat backgrounds; still at most 1 % are mistaken."""
    made = strangers()
    assert len(HashIndex(made).earlier().found) <= 3


def test_thumbnails_keep_strangers_out() -> None:
    """Without them the hash alone would call many strangers copies."""
    made = strangers()
    bits = np.bitwise_count(made["hash"][:, None] ^ made["hash"])
    rows, columns = np.nonzero(np.triu(bits <= NEAR, 1))
    alike = thumbnail_correlation(made["thumb"][rows], made["thumb"][columns]) >= ALIKE
    assert len(alike) > alike.sum()


def test_likeness_is_the_correlation() -> None:
    first, second = np.random.default_rng(0).integers(0, 256, (2, 5, 16, 16)).astype(np.uint8)
    wanted = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(first, second, strict=True)]
    np.testing.assert_allclose(thumbnail_correlation(first, second), wanted, atol=1e-5)


def test_blank_images_are_only_compared_exactly() -> None:
    blank = [np.full((40 + side, 40, 3), 90 + side, np.uint8) for side in range(5)]
    matches = HashIndex(prints([*blank, blank[2]])).earlier()
    assert matches.found.tolist() == [5]
    assert matches.match_index[5] == 2
    assert matches.exact[5]


def test_the_same_pixels_with_other_metadata_are_exact() -> None:
    jpeg = encoded(Image.fromarray(faces()[0]), quality=90)
    comment = b"from somewhere else"
    other = jpeg[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + jpeg[2:]
    assert perceptual_hash(other)["pixels"] == perceptual_hash(jpeg)["pixels"]
    assert perceptual_hash(encoded(Image.fromarray(faces()[1])))["pixels"] != perceptual_hash(jpeg)["pixels"]


def test_many_copies_leave_the_first() -> None:
    """Without the listed images, no two images are duplicates."""
    made = prints([again(image, quality) for quality in (90, 60, 90) for image in faces()[:20]])
    gallery = HashIndex(made)
    matches = gallery.earlier()
    assert (matches.match_index[matches.found] < matches.found).all()
    assert matches.exact[40:].all()
    left = np.setdiff1d(np.arange(60), matches.found)
    assert len(left) == 20
    assert len(HashIndex(made[left]).earlier().found) == 0


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`train` and `bench`, whose test split holds copies of three of train's faces; one face lies twice in train."""
    folder = tmp_path_factory.mktemp("duplicates")
    images = [draw(7, person, 0, 96) for person in range(24)]
    for number, jpeg in enumerate(images[:16]):
        place = folder / "train" / ("happy", "sad")[number % 2] / f"p{number:02d}_1.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(jpeg)
    (folder / "train" / "sad" / "p00_2.jpg").write_bytes(images[0])
    for split, chosen in (("train", range(16, 20)), ("test", (3, 4, 5, 20, 21))):
        for number in chosen:
            place = folder / "bench" / split / f"q{number:02d}.jpg"
            place.parent.mkdir(parents=True, exist_ok=True)
            image = cv2.resize(simplejpeg.decode_jpeg(images[number], "RGB"), (70, 70), interpolation=cv2.INTER_AREA)
            place.write_bytes(simplejpeg.encode_jpeg(image, quality=60))
    people = ["--group-pattern", r"(\w\d\d)"]
    for name, options in (("train", ["--class-folders"]), ("bench", ["--split-folders"])):
        done = run(*BUILD, "folder", folder / name, folder / f"{name}-shards", *options, *people, "--shard-samples", 5)
        assert done.returncode == 0, done.stderr
    return folder


def listed(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_inside_a_corpus(shards: Path, tmp_path: Path) -> None:
    done = run(*FIND, shards / "train-shards", "--list", tmp_path / "list.jsonl", "--workers", 2)
    assert done.returncode == 0, done.stderr
    (line,) = listed(tmp_path / "list.jsonl")
    assert {line["key"], line["of"]} == {"happy_p00_1", "sad_p00_2"}
    assert (line["kind"], line["distance"]) == ("exact", 0)
    assert {line["label"], line["of_label"]} == {"happy", "sad"}
    assert line["group"] == line["of_group"] == "p00"
    assert "1 images, listed in" in done.stdout


@pytest.mark.parametrize("workers", [1, 2])
def test_between_corpora(shards: Path, tmp_path: Path, workers: int) -> None:
    command = [*FIND, shards / "train-shards", "--against", shards / "bench-shards", "--split", "test"]
    done = run(*command, "--list", tmp_path / "list.jsonl", "--workers", workers)
    assert done.returncode == 0, done.stderr
    lines = listed(tmp_path / "list.jsonl")
    assert {(line["key"], line["of"]) for line in lines} == {
        ("sad_p03_1", "test_q03"),
        ("happy_p04_1", "test_q04"),
        ("sad_p05_1", "test_q05"),
    }
    assert {(line["kind"], line["of_split"]) for line in lines} == {("near", "test")}


def test_between_splits_of_one_corpus(shards: Path, tmp_path: Path) -> None:
    shutil.copytree(shards / "bench", tmp_path / "faces")
    shutil.copy(tmp_path / "faces" / "test" / "q20.jpg", tmp_path / "faces" / "train" / "leak.jpg")
    assert run(*BUILD, "folder", tmp_path / "faces", tmp_path / "both", "--split-folders").returncode == 0
    done = run(*FIND, tmp_path / "both", "--against", tmp_path / "both", "--split", "test")
    assert done.returncode == 0, done.stderr
    (line,) = listed(tmp_path / "both.duplicates.jsonl")
    assert (line["key"], line["of"], line["kind"]) == ("train_leak", "test_q20", "exact")


def test_none_found_is_said(shards: Path, tmp_path: Path) -> None:
    command = [*FIND, shards / "bench-shards", "--split", "train", "--list", tmp_path / "list.jsonl"]
    done = run(*command)
    assert (done.returncode, listed(tmp_path / "list.jsonl")) == (0, [])
    assert "has a duplicate" in done.stdout


BAD = {
    "no shards": (["absent"], "absent is not a folder"),
    "a distance": (["{}", "--distance", "40"], "--distance=40"),
    "a split": (["{}", "--split", "tset"], "no split 'tset'"),
    "itself": (["{}", "--against", "{}"], "same shards"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments_get_one_line(shards: Path, case: str) -> None:
    arguments, words = BAD[case]
    done = run(*FIND, *(word.format(shards / "train-shards") for word in arguments))
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert words in done.stderr
