import io
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.errors import UserError
from shards.format.index import index_tar, make_index, read_index, split_name, write_index
from shards.format.manifest import FORMAT, Manifest, ShardInfo, read_manifest, write_manifest


def write_tar(path: Path, names: list[str], kind: int = tarfile.GNU_FORMAT) -> dict[str, bytes]:
    contents = {name: name.encode() * (number + 1) * 37 for number, name in enumerate(names)}
    with tarfile.open(path, "w", format=kind) as tar:
        for name, content in contents.items():
            item = tarfile.TarInfo(name)
            item.size = len(content)
            tar.addfile(item, io.BytesIO(content))
    return contents


def test_every_member_is_found_where_the_index_says(tmp_path: Path) -> None:
    names = ["a/x.jpg", "a/x.seg.png", "a/x.json", "b.jpg", "c.json", "c.jpg", ".hidden", "long" * 40 + ".jpg"]
    contents = write_tar(tmp_path / "t.tar", names)
    index = index_tar(tmp_path / "t.tar")
    data = (tmp_path / "t.tar").read_bytes()
    assert index.keys == ("a/x", "b", "c", "long" * 40)
    found = {
        member.name: data[member.offset : member.offset + member.size]
        for sample in range(len(index))
        for member in index.members(sample).values()
    }
    assert found == {name: content for name, content in contents.items() if name != ".hidden"}
    assert list(index.members(2)) == ["json", "jpg"]  # the order in the tar
    assert index.column("seg.png")[0].tolist()[1:] == [-1, -1, -1]
    assert index.column("mp4")[0].tolist() == [-1] * 4


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_our_index_is_the_one_that_dali_makes(tmp_path: Path, kind: int) -> None:
    pytest.importorskip("nvidia.dali")
    tar = tmp_path / "t.tar"
    write_tar(tar, [f"s{number:03d}.{extension}" for number in range(30) for extension in ("jpg", "cls", "json")], kind)
    write_index(tmp_path / "ours.idx", index_tar(tar))
    tool = Path(sys.executable).with_name("wds2idx")
    subprocess.run([sys.executable, tool, tar, tmp_path / "theirs.idx"], check=True, capture_output=True)
    assert (tmp_path / "ours.idx").read_text() == (tmp_path / "theirs.idx").read_text()


EXTENSIONS = st.lists(st.sampled_from(["jpg", "cls", "json", "seg.png"]), min_size=1, max_size=4, unique=True)


@given(st.lists(EXTENSIONS, max_size=12))
def test_writing_and_reading_an_index_changes_nothing(samples: list[list[str]]) -> None:
    members = [
        (f"dir/k{number}.{extension}", 512 * (10 * number + place), number)
        for number, extensions in enumerate(samples)
        for place, extension in enumerate(extensions)
    ]
    index = make_index(members)
    with tempfile.TemporaryDirectory() as folder:
        write_index(Path(folder) / "t.idx", index)
        read = read_index(Path(folder) / "t.idx")
    assert read.keys == index.keys == tuple(f"dir/k{number}" for number in range(len(samples)))
    assert [read.members(sample) for sample in range(len(read))] == [
        {extension: index.members(number)[extension] for extension in extensions}
        for number, extensions in enumerate(samples)
    ]


@given(st.text(alphabet="ab./", min_size=1))
def test_a_name_is_split_at_the_first_dot_of_its_base(name: str) -> None:
    key, extension = split_name(name)
    assert "." not in key.rpartition("/")[2]
    assert name in (f"{key}.{extension}", key)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("v1.1 1\njpg 0 1 a.jpg\n", "version"),
        ("", "version"),
        ("v1.2 2\njpg 512 1 a.jpg\n", r"is corrupt \(|lists 1"),
        ("v1.2 1\njpg 512 1\n", r"is corrupt \("),
        ("v1.2 1\njpg x 1 a.jpg\n", r"is corrupt \("),
        ("v1.2 many\n", r"is corrupt \("),
    ],
)
def test_a_damaged_index_is_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "t.idx").write_text(text)
    with pytest.raises(UserError, match=words):
        read_index(tmp_path / "t.idx")


def test_what_is_no_tar_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.tar").write_bytes(b"no tar" * 1000)
    for path in (tmp_path / "t.tar", tmp_path / "absent.tar"):
        with pytest.raises(UserError, match="cannot be indexed"):
            index_tar(path)


MANIFEST = Manifest(
    format=FORMAT,
    corpus="drawn",
    terms="free",
    labels=("calm", "glad"),
    entries=5,
    rejected={"empty": 2},
    shards=(ShardInfo("train-000000.tar", "train", 2, 10240, "0" * 64), ShardInfo("val-000000.tar", "val", 1, 1, "")),
    build={"digest": "x"},
)


def test_a_manifest_reads_as_it_was_written(tmp_path: Path) -> None:
    write_manifest(tmp_path, MANIFEST)
    assert read_manifest(tmp_path) == MANIFEST
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]
    assert MANIFEST.samples == 3
    assert MANIFEST.splits == ("train", "val")


def test_a_manifest_that_cannot_be_trusted_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a folder"):
        read_manifest(tmp_path / "absent")
    with pytest.raises(UserError, match="has no manifest"):
        read_manifest(tmp_path)
    write_manifest(tmp_path, MANIFEST)
    path = tmp_path / "manifest.json"
    good = path.read_text()
    wrong = {
        good[:-20]: "is corrupt",
        good.replace('"format": 2', '"format": 7'): "format 7",
        "[]": "format None",
        good.replace('"samples": 2', '"samples": "2"'): "is corrupt",
        good.replace('"samples": 2', '"samples": -2'): "is corrupt",
        good.replace("train-000000.tar", "../train-000000.tar"): "is corrupt",
        good.replace("val-000000.tar", "train-000000.tar"): "is corrupt",
        good.replace('"entries"', '"entry"'): "is corrupt",
    }
    for text, words in wrong.items():
        assert text != good
        path.write_text(text)
        with pytest.raises(UserError, match=words):
            read_manifest(tmp_path)


def test_an_index_costs_little_memory(tmp_path: Path) -> None:
    index = make_index((f"k{n // 3}.{('jpg', 'cls', 'json')[n % 3]}", 512 * n, 9) for n in range(30_000))
    assert len(index) == 10_000
    assert index.offsets.nbytes + index.sizes.nbytes == 10_000 * 3 * 2 * np.dtype(np.int64).itemsize
