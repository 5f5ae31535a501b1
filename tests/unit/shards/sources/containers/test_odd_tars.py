"""Tars in which a name comes twice, or whose members are not sorted by key."""

import io
import tarfile
from pathlib import Path

import pytest
from helpers.source_kit import built, photo

from shards.build.builder import build
from shards.build.spec import BuildSpec
from shards.edit.verify import verify
from shards.errors import UserError
from shards.format.external_tars import index_folder, infer_manifest
from shards.sources.generic.webdataset import WebDataset
from simfle.data.dataset import ShardCorpus


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            item = tarfile.TarInfo(name)
            item.size = len(content)
            tar.addfile(item, io.BytesIO(content))
    return path


def quiet(*_: object) -> None:
    """Ignore the progress."""


PAIR = [("0001.jpg", photo(1)), ("0001.cls", b"0")]
OTHER = [("0002.jpg", photo(2)), ("0002.cls", b"1")]
TWICE = {"adjacent": [*PAIR, *PAIR, *PAIR, *OTHER], "apart": [*PAIR, *OTHER, *PAIR, *PAIR]}


@pytest.mark.parametrize("case", TWICE)
def test_what_comes_again_is_counted_by_a_build(tmp_path: Path, case: str) -> None:
    write_tar(tmp_path / "in/train-000000.tar", TWICE[case])
    manifest, found = built(WebDataset(tmp_path / "in"), tmp_path / "out")
    assert (manifest.samples, manifest.rejected) == (2, {"repeated": 2})
    assert sorted(one["jpeg"] for one in found.values()) == sorted([photo(1), photo(2)])


@pytest.mark.parametrize("case", TWICE)
def test_what_comes_again_is_counted_by_an_index(tmp_path: Path, case: str) -> None:
    folder = write_tar(tmp_path / "in/train-000000.tar", TWICE[case]).parent
    assert infer_manifest(folder).rejected == {"repeated": 4}
    assert [ShardCorpus([folder]).key(0, place) for place in (0, 1)] == ["0001", "0002"]
    manifest = index_folder(folder, "", 1, False, quiet)
    assert (manifest.samples, manifest.rejected) == (2, {"repeated": 4})
    assert verify(folder, 1.0, 1, quiet).problems == []
    assert len((folder / "rejected.jsonl").read_text().splitlines()) == 4


def test_a_key_with_two_labels_is_not_guessed(tmp_path: Path) -> None:
    write_tar(tmp_path / "in/a.tar", [*PAIR, ("0001.jpg", photo(3)), ("0001.cls", b"1"), *OTHER])
    manifest, _ = built(WebDataset(tmp_path / "in"), tmp_path / "out")
    assert (manifest.samples, manifest.rejected) == (1, {"conflicting_label": 2})


def test_a_tar_that_is_not_sorted_is_refused(tmp_path: Path) -> None:
    members = [*PAIR, *OTHER]
    folder = write_tar(tmp_path / "in/a.tar", [*members[::2], *members[1::2]]).parent
    told = r"a\.tar is not sorted: the members of '0001' \(jpg, cls\) are not adjacent\. Fix: .*tar --sort=name"
    with pytest.raises(UserError, match=told):
        build(BuildSpec(tmp_path / "out", "test", {}), WebDataset(folder), quiet)
    for use in (lambda: index_folder(folder, "", 1, False, quiet), lambda: ShardCorpus([folder])):
        with pytest.raises(UserError, match=told):
            use()
