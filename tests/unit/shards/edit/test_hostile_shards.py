"""Malicious shards: no name in a manifest, an index or a tar leads out of its folder."""

import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.corpus_fixtures import contents, encoded, picture, run, tool, write_tar
from helpers.small_shards import change, make

from shards.edit.remove import READY, STAGING, remove_samples
from shards.edit.upload import Upload
from shards.edit.verify import verify
from shards.errors import UserError
from shards.format.external_tars import index_folder
from shards.format.index import index_tar, read_index, write_index
from shards.format.manifest import read_manifest
from shards.reading.dataset import ShardDataset
from simfle.data.dataset import ShardCorpus

pytestmark = pytest.mark.slow

SUBSET, SPLIT, MERGE = (tool(f"{name}_shards") for name in ("subset", "split", "merge"))
OUTSIDE = ["/{there}/x", "../there/x", "a/../../there/x", "..", "..\\there\\x", "C:\\x", "\0x"]


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A folder of another user's shards, which must not change."""
    return make(tmp_path / "victim")


COMMANDS: dict[str, Callable[[Path, Path, Path], list[object]]] = {
    "subset": lambda bad, good, out: [*SUBSET, bad, out, "--fraction", 1],
    "merge": lambda bad, good, out: [*MERGE, bad, good, out],
    "split": lambda bad, good, out: [*SPLIT, bad, out, "--splits", "train=0.5,val=0.5", "--stratify-by", "sample"],
    "verify": lambda bad, good, out: [*tool("verify_shards"), bad],
    "inspect": lambda bad, good, out: [*tool("inspect_shards"), bad],
    "duplicates": lambda bad, good, out: [*tool("find_duplicates"), bad],
    "remove": lambda bad, good, out: [*tool("remove_samples"), bad, "--key", "bad-0"],
}


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("split", ["{victim}/train", "../victim/train", "a\0b", "", ".x", "-x", "a b", "x" * 300])
def test_a_split_writes_nowhere_but_below_the_output(name: str, split: str, victim: Path, tmp_path: Path) -> None:
    bad, good = make(tmp_path / "bad"), make(tmp_path / "good")
    change(bad, split=split.replace("{victim}", str(victim)))
    before = contents(tmp_path)
    done = run(*COMMANDS[name](bad, good, tmp_path / "out"))
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "is not a split name" in done.stderr
    assert contents(tmp_path) == before


@pytest.mark.parametrize("file", ["../victim/train-000000.tar", "/train.tar", "a\0.tar", "a\n.tar", "..", "a\\b.tar"])
def test_a_shard_is_a_file_of_its_folder(file: str, tmp_path: Path) -> None:
    change(make(tmp_path / "bad"), file=file)
    with pytest.raises(UserError, match="is not a plain tar file name"):
        read_manifest(tmp_path / "bad")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"samples": 10**15}, "samples do not fit into"),
        ({"samples": 10**30, "bytes": 10**30}, "is out of range"),
        ({"samples": 10**15, "bytes": 10**15}, "the manifest"),
        ({"samples": 10**12, "bytes": 10**14}, "the manifest"),
    ],
    ids=lambda value: str(value)[:40],
)
@pytest.mark.parametrize("name", COMMANDS)
def test_counts_that_cannot_be_take_one_line_and_no_memory(
    name: str, values: dict[str, int], words: str, tmp_path: Path
) -> None:
    bad, good = make(tmp_path / "bad"), make(tmp_path / "good")
    change(bad, **values)
    before = contents(tmp_path)
    done = run(*COMMANDS[name](bad, good, tmp_path / "out"))
    assert done.returncode == 1
    assert words in done.stderr + done.stdout
    assert "Traceback" not in done.stderr
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", OUTSIDE)
def test_members_that_lead_outside_are_in_no_index(name: str, tmp_path: Path) -> None:
    folder = make(tmp_path / "bad", 1)
    hostile = name.format(there=tmp_path) + ".jpg" if name != ".." else "../x.jpg"
    lines = (folder / "train-000000.idx").read_text().replace("bad-0.jpg", hostile)
    (folder / "train-000000.idx").write_text(lines)
    with pytest.raises(UserError, match="leads outside its folder"):
        read_index(folder / "train-000000.idx")
    for use in (lambda: ShardDataset(folder)[0], lambda: ShardCorpus([folder]).key(0, 0)):
        with pytest.raises(UserError, match="leads outside its folder"):
            use()
    done = run(*SUBSET, folder, tmp_path / "out", "--fraction", 1)
    assert (done.returncode, done.stderr.count("\n"), "leads outside its folder" in done.stderr) == (1, 1, True)
    assert any("leads outside its folder" in problem for problem in verify(folder, 0, 1, lambda _: None).problems)


def test_names_that_only_look_odd_are_taken(tmp_path: Path) -> None:
    names = ["./a.jpg", "b/c.jpg", "d..e.jpg", "..f/g.jpg", "h/...jpg/i.jpg", "\x1b[2J.jpg"]
    tar = write_tar(tmp_path / "t.tar", [(name, b"x") for name in names])
    assert index_tar(tar).keys == ("./a", "b/c", "d", "..f/g", "h/...jpg/i", "\x1b[2J")


def test_foreign_tars_lose_the_members_that_lead_outside(tmp_path: Path) -> None:
    jpeg = encoded(picture())
    files = [("../../up.jpg", jpeg), ("../../up.cls", b"0"), ("/etc/abs.jpg", jpeg), ("ok.jpg", jpeg)]
    write_tar(tmp_path / "in" / "a.tar", files)
    assert ShardCorpus([tmp_path / "in"]).key(0, 0) == "ok"
    manifest = index_folder(tmp_path / "in", "", 1, False, lambda _: None)
    assert (manifest.samples, manifest.rejected, manifest.entries) == (1, {"outside": 2}, 3)
    assert verify(tmp_path / "in", 1.0, 1, lambda _: None).problems == []
    assert run(*SUBSET, tmp_path / "in", tmp_path / "out", "--fraction", 1).returncode == 0
    with tarfile.open(tmp_path / "out" / "train-000000.tar") as tar:
        assert tar.getnames() == ["ok.jpg"]


def test_foreign_tars_whose_names_no_manifest_can_hold(tmp_path: Path) -> None:
    write_tar(tmp_path / "in" / "a\nb.tar", [("ok.jpg", encoded(picture()))])
    for use in (lambda: ShardCorpus([tmp_path / "in"]), lambda: index_folder(tmp_path / "in", "", 1, False, print)):
        with pytest.raises(UserError, match="rename this tar"):
            use()


@pytest.mark.parametrize("part", ["place", "drop"])
@pytest.mark.parametrize("name", ["../victim/manifest.json", "{victim}/manifest.json", "..", "a/b", 7])
def test_a_removal_that_came_with_the_shards_touches_no_other_folder(
    part: str, name: Any, victim: Path, tmp_path: Path
) -> None:
    bad = make(tmp_path / "bad")
    (bad / STAGING).mkdir()
    named = name.replace("{victim}", str(victim)) if isinstance(name, str) else name
    plan = {"place": [], "drop": []} | {part: [named]}
    (bad / STAGING / READY).write_text(json.dumps(plan))
    before = contents(tmp_path)
    with pytest.raises(UserError, match=rf"{READY} is corrupt .*Fix: delete"):
        remove_samples(bad, ["bad-0"])
    assert contents(tmp_path) == before


def test_an_upload_takes_no_file_of_another_folder(victim: Path, tmp_path: Path) -> None:
    bad = make(tmp_path / "bad")
    change(bad, file="../victim/train-000000.tar")
    upload = Upload(bad, f"file://{tmp_path}/far", tmp_path / "record.json")
    with pytest.raises(UserError, match="is not a plain tar file name"):
        upload.run(lambda *_: None)
    assert not (tmp_path / "far").exists()


def test_an_index_that_promises_more_than_its_tar_has_takes_no_memory(tmp_path: Path) -> None:
    folder = make(tmp_path / "bad", 2)
    index = index_tar(folder / "train-000000.tar")
    index.sizes[1, index.extensions.index("json")] = 1 << 50
    write_index(folder / "train-000000.idx", index)
    with pytest.raises(UserError, match="shorter than its index says"):
        ShardDataset(folder)[1]
    with pytest.raises(UserError, match="beyond the end"):
        ShardCorpus([folder]).metadata(0, 1)
    text = (folder / "train-000000.idx").read_text().replace(str(1 << 50), "-5")
    (folder / "train-000000.idx").write_text(text)
    with pytest.raises(UserError, match="negative number"):
        read_index(folder / "train-000000.idx")
    shutil.rmtree(folder)
