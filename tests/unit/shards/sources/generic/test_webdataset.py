"""WebDatasets that other programs wrote."""

import io
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pytest
import webdataset
from helpers.source_kit import built, entries, photo, rejects, write
from pyarrow import parquet

from shards.errors import UserError
from shards.sources.generic.webdataset import WebDataset


def write_tar(file: Path, members: dict[str, bytes]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as archive:
        for name, content in members.items():
            item = tarfile.TarInfo(name)
            item.size = len(content)
            archive.addfile(item, io.BytesIO(content))
    return file


def write_img2dataset(folder: Path, shards: int = 2, asked: int = 5) -> Path:
    """Keys of 9 digits over all tars; the third download of each failed, and is in the .parquet alone."""
    for shard in range(shards):
        members, rows = {}, []
        for number in range(asked):
            key = f"{shard:05d}{number:04d}"
            about = {
                "url": f"https://photos.example/{key}.jpg",
                "caption": f"face {key}",
                "key": key,
                "status": "failed_to_download" if number == 2 else "success",
                "error_message": "HTTP Error 404" if number == 2 else None,
                "width": 24,
                "height": 20,
                "exif": json.dumps({"GPSLatitude": "52.5"}),
                "sha256": "0" * 64,
                "person": number % 2,
            }
            rows.append(about)
            if number != 2:
                members[f"{key}.jpg"] = photo(10 * shard + number)
                members[f"{key}.json"] = json.dumps(about).encode()
                members[f"{key}.txt"] = about["caption"].encode()
        write_tar(folder / f"{shard:05d}.tar", members)
        parquet.write_table(pa.Table.from_pylist(rows), folder / f"{shard:05d}.parquet")
        stats = {"count": asked, "successes": asked - 1, "failed_to_download": 1, "status_dict": {"success": asked - 1}}
        write(folder / f"{shard:05d}_stats.json", json.dumps(stats))
    return folder


def test_img2dataset(tmp_path: Path) -> None:
    source = WebDataset(write_img2dataset(tmp_path / "laion"), group_field="person")
    manifest, found = built(source, tmp_path / "out", workers=2)
    assert (manifest.samples, manifest.rejected) == (8, {})
    sample = found["00001.tar/000010003.jpg"]
    assert sample["jpeg"] == photo(13)
    assert sample["group"] == "1"
    assert sample["extras"] == {
        "url": "https://photos.example/000010003.jpg",
        "caption": "face 000010003",
        "sha256": "0" * 64,
    }
    assert source.notes() == ["2 of 10 downloads had failed; see the .parquet files"]


def test_img2dataset_that_did_not_finish(tmp_path: Path) -> None:
    folder = write_img2dataset(tmp_path, shards=3)
    (folder / "00002_stats.json").unlink()
    content = (folder / "00001.tar").read_bytes()
    (folder / "00001.tar").write_bytes(content[: content.index(b"000010003.json") + 100])
    source = WebDataset(folder)
    assert rejects(source) == {"00001.tar": "truncated"}
    notes = " ".join(source.notes())
    assert "00001.tar 3 of 4" in notes
    assert "1 tars without _stats.json (00002.tar)" in notes


def test_shards_of_webdatasets_own_writer(tmp_path: Path) -> None:
    (tmp_path / "wds").mkdir()
    for split in ("train", "val"):
        with webdataset.ShardWriter(str(tmp_path / "wds" / f"{split}-%06d.tar"), maxcount=3, verbose=0) as writer:
            for number in range(5):
                extra = {"cls": number % 2, "json": {"age": float("nan"), "photo.id": number}}
                writer.write({"__key__": f"a/{number:03d}", "png": photo(number, kind="PNG"), **extra})
    source = WebDataset(tmp_path / "wds", split_pattern="^(train|val)-")
    manifest, found = built(source, tmp_path / "out")
    assert (manifest.samples, manifest.labels, manifest.splits) == (10, ("0", "1"), ("train", "val"))
    sample = found["val-000001.tar/a/004.png"]
    assert (sample["label"], sample["split"], sample["extras"]) == ("0", "val", {"photo.id": 4})


def test_our_own_shards_are_one(tmp_path: Path) -> None:
    """Shards can be a source of another build, with the same images."""
    _, first = built(WebDataset(write_img2dataset(tmp_path / "laion")), tmp_path / "out")
    manifest, second = built(WebDataset(tmp_path / "out", label_field="split"), tmp_path / "again")
    assert manifest.labels == ("train",)
    assert sorted(s["jpeg"] for s in second.values()) == sorted(s["jpeg"] for s in first.values())


def test_which_image_of_several(tmp_path: Path) -> None:
    members = {"1.txt": b"", "1.seg.png": photo(1, kind="PNG"), "1.JPG": photo(2), "1.input.jpg": photo(3)}
    write_tar(tmp_path / "a.tar", members)
    assert next(iter(entries(WebDataset(tmp_path)).values())).read() == photo(2)
    assert next(iter(entries(WebDataset(tmp_path, image="input.jpg")).values())).read() == photo(3)
    assert rejects(WebDataset(tmp_path, image="left.jpg")) == {"a.tar/1": "missing"}


def test_samples_without_images_and_with_damage(tmp_path: Path) -> None:
    members = {
        "./._1.jpg": b"",
        "__MACOSX/1.jpg": b"",
        "1.txt": b"no image",
        "2.jpg": photo(),
        "2.json": b"{",
        "3.jpg": photo(),
        "3.json": b"[]",
        "4.jpg": photo(),
        "4.cls": b"\xff",
        "../5.jpg": photo(),
        "6.jpg": photo(),
        "6.txt": b" a smile \n",
    }
    write_tar(tmp_path / "a.tar", members)
    source = WebDataset(tmp_path)
    assert rejects(source) == {
        "a.tar/1": "missing",
        "a.tar/2": "bad_row",
        "a.tar/3": "bad_row",
        "a.tar/4": "bad_row",
        "a.tar/../5": "outside",
    }
    assert [entry.extras for entry in entries(source).values()] == [{"caption": "a smile"}]


def test_the_same_keys_in_two_tars_are_two_samples(tmp_path: Path) -> None:
    for name in ("a", "b/a"):
        write_tar(tmp_path / f"{name}.tar", {"0.jpg": photo(len(name)), "0.cls": b"happy"})
    assert list(entries(WebDataset(tmp_path))) == ["a/0", "b/a/0"]
    assert {entry.label for entry in entries(WebDataset(tmp_path)).values()} == {"happy"}


def test_compressed_tars(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        for name, content in {"0.jpg": photo(), "0.json": b'{"label": 3}'}.items():
            item = tarfile.TarInfo(name)
            item.size = len(content)
            archive.addfile(item, io.BytesIO(content))
    entry = entries(WebDataset(tmp_path, label_field="label"))["a/0"]
    assert (entry.read, entry.label) == (photo(), "3")


def test_a_tar_that_the_pattern_does_not_know(tmp_path: Path) -> None:
    for name in ("train-0", "extra"):
        write_tar(tmp_path / f"{name}.tar", {"0.jpg": photo()})
    source = WebDataset(tmp_path, split_pattern="^(train|val)-")
    assert rejects(source) == {"extra.tar/0": "no_split"}
    assert entries(source)["train-0/0"].split == "train"


def test_the_tars_names_tell_the_split_without_a_pattern(tmp_path: Path) -> None:
    """As they do where the same folder is indexed or evaluated as it is."""
    names = ("train-000000", "val-000000", "faces-test-0", "dev/00000", "00000")
    for number, name in enumerate(names):
        write_tar(tmp_path / "wds" / f"{name}.tar", {"0.jpg": photo(number)})
    source = WebDataset(tmp_path / "wds")
    splits = {key: entry.split for key, entry in entries(source).items()}
    assert splits == {
        "00000/0": "train",
        "dev/00000/0": "val",
        "faces-test-0/0": "test",
        "train-000000/0": "train",
        "val-000000/0": "val",
    }
    manifest, _ = built(source, tmp_path / "out")
    assert sorted((info.split, info.samples) for info in manifest.shards) == [("test", 1), ("train", 2), ("val", 2)]


def test_what_is_no_webdataset(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        list(WebDataset(tmp_path / "absent"))
    write(tmp_path / "faces" / "a.jpg", photo())
    with pytest.raises(UserError, match=r"no \.tar in .*found: a\.jpg"):
        list(WebDataset(tmp_path / "faces"))
    write_tar(tmp_path / "a.tar", {})
    with pytest.raises(UserError, match=r"no samples in"):
        list(WebDataset(tmp_path / "a.tar"))
    for pattern in ("(", "train", "(a)(b)"):
        with pytest.raises(UserError, match="--split-pattern"):
            list(WebDataset(tmp_path / "a.tar", split_pattern=pattern))
