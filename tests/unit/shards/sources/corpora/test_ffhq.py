"""FFHQ: large images, thumbnails, and the JSON about them."""

import json
from pathlib import Path

import pytest
from helpers.source_kit import built, entries, photo, rejects, write

from shards.errors import UserError
from shards.sources.corpora import ffhq
from shards.sources.corpora.ffhq import CORPUS, FFHQ, members

LICENSES = ("Attribution License", "Public Domain Mark", "Attribution-NonCommercial License")


def item(number: int) -> dict:
    """Return the JSON's entry for an image."""
    name = f"{number // 1000 * 1000:05d}/{number:05d}.png"
    marks = [[10.0 * n, 8.0 * n + number] for n in range(68)]
    return {
        "category": "training" if number < 60_000 else "validation",
        "metadata": {
            "photo_url": f"https://photos.example/{number}",
            "photo_title": "a \u201ctitle\u201d, with } and {",
            "author": f"Author {number}",
            "country": "",
            "license": LICENSES[number % 3],
            "license_url": "https://licenses.example",
            "date_uploaded": "2007-08-16",
            "date_crawled": "2018-10-10",
        },
        "image": {"file_path": f"images1024x1024/{name}", "pixel_size": [1024, 1024], "face_landmarks": marks},
        "thumbnail": {"file_path": f"thumbnails128x128/{name}", "pixel_size": [128, 128]},
        "in_the_wild": {"file_path": f"in-the-wild-images/{name}", "face_rect": [667, 410, 1438, 1181]},
    }


def write_ffhq(root: Path, *kinds: str, numbers: tuple[int, ...] = (0, 1, 1000, 60_000)) -> Path:
    for number in numbers:
        for kind in kinds:
            name = item(number)[kind]["file_path"]
            write(root / name, photo(number, 32 if kind == "image" else 16, 32 if kind == "image" else 16, "PNG"))
    listed = {str(number): item(number) for number in numbers}
    write(root / "ffhq-dataset-v2.json", json.dumps(listed, indent=1, ensure_ascii=False))
    return root


def test_licenses_landmarks_and_splits(tmp_path: Path) -> None:
    manifest, found = built(FFHQ(write_ffhq(tmp_path / "ffhq", "image")), tmp_path / "out")
    assert (manifest.samples, manifest.splits) == (4, ("train", "val"))
    image = found["images1024x1024/01000/01000.png"]
    assert image["extras"]["license"] == LICENSES[1000 % 3]
    assert image["extras"]["author"] == "Author 1000"
    assert (image["width"], image["landmarks"][67]) == (32, [670, 1536])
    assert found["images1024x1024/60000/60000.png"]["split"] == "val"


def test_landmarks_of_thumbnails_are_in_their_pixels(tmp_path: Path) -> None:
    root = write_ffhq(tmp_path, "image", "thumbnail")
    large, small = entries(FFHQ(root)), entries(FFHQ(root, thumbnails=True))
    assert large["00000"].landmarks[8] == (80, 64)
    assert small["00000"].landmarks[8] == (10, 8)
    assert small["00000"].read == root / "thumbnails128x128" / "00000" / "00000.png"
    assert {FFHQ(root).release, FFHQ(root, thumbnails=True).release} == {"images1024x1024", "thumbnails128x128"}


def test_thumbnails_alone_and_flat(tmp_path: Path) -> None:
    root = write_ffhq(tmp_path, "thumbnail")
    for file in list((root / "thumbnails128x128").rglob("*.png")):
        file.rename(root / "thumbnails128x128" / file.name)
        if not any(file.parent.iterdir()):
            file.parent.rmdir()
    assert all(entry.read.is_file() for entry in entries(FFHQ(root)).values())


def test_images_without_the_json(tmp_path: Path) -> None:
    root = write_ffhq(tmp_path, "thumbnail")
    (root / "ffhq-dataset-v2.json").unlink()
    source = FFHQ(root)
    assert set(entries(source)) == {"00000", "00001", "01000", "60000"}
    assert "licenses" in source.notes()[0]
    assert CORPUS.published_counts(source) == {"train": {"": 70_000}}


def test_missing_outside_and_damaged(tmp_path: Path) -> None:
    root = write_ffhq(tmp_path / "ffhq", "image")
    (root / "images1024x1024" / "00000" / "00001.png").unlink()
    listed = json.loads((root / "ffhq-dataset-v2.json").read_text())
    listed["0"]["image"]["file_path"] = "images1024x1024/../../x.png"
    del listed["1000"]["metadata"]
    write(root / "ffhq-dataset-v2.json", json.dumps(listed))
    assert rejects(FFHQ(root)) == {"images1024x1024/../../x.png": "outside", "1000 of the JSON": "bad_row"}
    assert built(FFHQ(root), tmp_path / "out")[0].rejected == {"bad_row": 1, "missing": 1, "outside": 1}


@pytest.mark.parametrize("chunk", [1, 7, 1000, 1 << 20])
def test_the_json_is_read_piece_by_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    """Wherever the cut between two pieces falls."""
    monkeypatch.setattr(ffhq, "CHUNK", chunk)
    listed = {str(number): item(number)["metadata"] for number in range(12)}
    file = write(tmp_path / "a.json", json.dumps(listed, indent=1) + "\n")
    assert dict(members(file)) == listed


@pytest.mark.parametrize("content", ['{"0": {"a": 1}, "1": {"a"', "[1, 2]", '{"0" {}}', ""])
def test_a_damaged_json_is_refused(tmp_path: Path, content: str) -> None:
    write_ffhq(tmp_path, "image")
    write(tmp_path / "ffhq-dataset-v2.json", content)
    with pytest.raises(UserError, match=r"ffhq-dataset-v2\.json"):
        list(FFHQ(tmp_path))
