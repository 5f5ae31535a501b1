import gc
import json
import os
import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers.data_fixtures import drawn_corpus, jpeg, picture, write_shards

from simfle.data import dataset
from simfle.data.dataset import SampleError, ShardCorpus
from simfle.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return drawn_corpus(tmp_path / "shards")


def test_samples_of_all_splits(folder: Path) -> None:
    corpus = ShardCorpus([folder])
    assert len(corpus) == 37
    assert corpus.counts.tolist() == [13, 9, 4, 11]
    assert corpus.first_ids.tolist() == [0, 13, 22, 26]
    assert corpus.labels == ("calm", "glad")
    for sample_id in range(37):
        shard, sample = (int(part[0]) for part in corpus.locate([sample_id]))
        assert corpus.key(shard, sample) == f"s{sample_id:06d}"
        assert corpus.label(shard, sample) == sample_id % 2
        assert corpus.metadata(shard, sample) == {"key": f"s{sample_id:06d}"}
        expected = jpeg(picture(sample_id, 64 + sample_id % 7, 64 + sample_id % 5))
        assert corpus.read_image(shard, sample).tobytes() == expected


def test_choosing_a_split_changes_no_id(folder: Path) -> None:
    train, test = ShardCorpus([folder], ["train"]), ShardCorpus([folder], ["test"])
    assert train.first_ids.tolist() == [0, 13, 26]
    assert test.first_ids.tolist() == [22]
    assert test.key(0, 3) == "s000025"
    assert train.key(2, 10) == "s000036"
    with pytest.raises(ValueError, match="none of the chosen"):
        train.locate([22])


def test_several_folders_follow_each_other(folder: Path, tmp_path: Path) -> None:
    other = drawn_corpus(tmp_path / "other", (3, 2))
    corpus = ShardCorpus([folder, other], ["train"])
    assert corpus.first_ids.tolist() == [0, 13, 26, 37, 40]
    assert corpus.shard_location(3) == other / "train-000000.tar"


def test_images_are_bytes_that_nobody_can_change(folder: Path) -> None:
    image = ShardCorpus([folder]).read_image(0, 5)
    assert image.dtype == np.uint8
    assert not image.flags.writeable
    assert bytes(image[:2]) == b"\xff\xd8"


def test_an_image_outlives_the_tar_it_is_from(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "TARS", 1)
    corpus = ShardCorpus([folder])
    first = corpus.read_image(0, 0)
    kept = first.tobytes()
    for shard in range(4):
        corpus.read_image(shard, 0)
    assert len(corpus._tars) == 1
    assert first.tobytes() == kept


@pytest.fixture
def restless() -> Iterator[None]:
    """Threads take turns as often as Python can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("restless")
@pytest.mark.parametrize("turn", range(4))
def test_many_threads_read_the_same(turn: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "TARS", 2)
    monkeypatch.setattr(dataset, "TABLES", 2)
    corpus = ShardCorpus([folder])
    places = [(shard, sample) for shard in range(4) for sample in range(4)] * 20
    expected = {place: corpus.read_image(*place).tobytes() for place in places}
    got: dict[int, bool] = {}

    def read(thread: int) -> None:
        order = np.random.default_rng([turn, thread]).permutation(len(places))
        got[thread] = all(corpus.read_image(*places[n]).tobytes() == expected[places[n]] for n in order)

    threads = [threading.Thread(target=read, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [got[i] for i in range(4)] == [True] * 4


def test_a_missing_index_is_made_on_the_spot(folder: Path) -> None:
    expected = ShardCorpus([folder]).read_image(1, 2).tobytes()
    (folder / "train-000001.idx").unlink()
    assert ShardCorpus([folder]).read_image(1, 2).tobytes() == expected


def test_samples_without_label(tmp_path: Path) -> None:
    folder = drawn_corpus(tmp_path / "shards", (2,))
    index = folder / "train-000000.idx"
    lines = index.read_text().splitlines()
    words = lines[1].split(" ")
    index.write_text("\n".join([lines[0], " ".join(words[:4]), *lines[2:]]) + "\n")
    corpus = ShardCorpus([folder])
    assert corpus.label(0, 0) is None
    assert corpus.metadata(0, 0) == {}
    assert corpus.label(0, 1) == 1


def edit(folder: Path, **changes: object) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_errors(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data.shards=\[\]: empty"):
        ShardCorpus([])
    with pytest.raises(UserError, match="nowhere"):
        ShardCorpus([tmp_path / "nowhere"])
    with pytest.raises(UserError, match=r"no split 'valid'.*test, train"):
        ShardCorpus([folder], ["train", "valid"])
    with pytest.raises(UserError, match="no samples"):
        ShardCorpus([write_shards(tmp_path / "none", [("train", [])])])
    tar = folder / "train-000001.tar"
    content = tar.read_bytes()
    tar.write_bytes(content[:-512])
    with pytest.raises(UserError, match=r"train-000001\.tar has \d+ bytes, its manifest says \d+"):
        ShardCorpus([folder])
    ShardCorpus([folder], ["test"])  # the corrupt shard is not chosen
    tar.unlink()
    with pytest.raises(UserError, match=r"train-000001\.tar is missing"):
        ShardCorpus([folder])
    edit(folder, format=99)
    with pytest.raises(UserError, match="format 99"):
        ShardCorpus([folder])


def test_an_index_that_does_not_fit_is_refused(folder: Path) -> None:
    index = folder / "train-000000.idx"
    lines = index.read_text().splitlines()
    index.write_text("\n".join(["v1.2 12", *lines[1:13]]) + "\n")
    with pytest.raises(UserError, match="lists 12 samples, the manifest 13"):
        ShardCorpus([folder]).read_image(0, 0)
    words = lines[3].split(" ")
    words[1] = "99999999"
    index.write_text("\n".join([*lines[:3], " ".join(words), *lines[4:]]) + "\n")
    with pytest.raises(UserError, match="s000002 has no image inside the tar"):
        ShardCorpus([folder]).read_image(0, 0)


def test_the_index_of_another_tar_is_refused(folder: Path) -> None:
    """All its images lie inside the tar, but no header stands before them: one block was put before its start."""
    index = folder / "train-000000.idx"
    moved = re.sub(r"jpg (\d+)", lambda match: f"jpg {int(match[1]) + 512}", index.read_text())
    index.write_text(moved)
    with pytest.raises(UserError, match="is of another tar"):
        ShardCorpus([folder]).read_image(0, 0)


def test_an_index_whose_images_overlap_is_refused(folder: Path) -> None:
    """Each lies inside the tar, but a batch of them would take many times its size."""
    index = folder / "train-000000.idx"
    size = (folder / "train-000000.tar").stat().st_size
    first, *lines = index.read_text().splitlines()
    rest = [line.split(" ", 3)[3] for line in lines]
    index.write_text("\n".join([first, *(f"jpg 512 {size - 512} {words}" for words in rest)]) + "\n")
    with pytest.raises(UserError, match=r"index of .*train-000000\.tar lists more bytes than the tar has"):
        ShardCorpus([folder]).read_image(0, 0)


def test_a_tar_that_is_cut_while_it_is_open_costs_only_what_was_cut(folder: Path) -> None:
    corpus = ShardCorpus([folder])
    first = corpus.read_image(0, 0).tobytes()
    os.truncate(folder / "train-000000.tar", 4096)
    assert corpus.read_image(0, 0).tobytes() == first
    with pytest.raises(SampleError, match=r"train-000000\.tar: s000012 is truncated"):
        corpus.read_image(0, 12)


def test_files_are_closed_when_nobody_needs_them(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def tars() -> int:
        open_files = [link.readlink() for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
        return sum(file.parent == folder and file.suffix == ".tar" for file in open_files)

    monkeypatch.setattr(dataset, "TARS", 2)
    corpus = ShardCorpus([folder])
    for shard in range(4):
        corpus.read_image(shard, 0)
    assert tars() == 2
    del corpus
    gc.collect()
    assert tars() == 0


def test_the_sample_behind(folder: Path) -> None:
    corpus = ShardCorpus([folder], ["train"])
    assert [corpus.next_in_shard(number) for number in (0, 11, 12, 13, 21, 36)] == [1, 12, 0, 14, 13, 26]


def test_different_label_names(folder: Path, tmp_path: Path) -> None:
    other = drawn_corpus(tmp_path / "other", (3, 2))
    edit(other, labels=["x"])
    with pytest.raises(UserError, match="different label names"):
        _ = ShardCorpus([folder, other]).labels
