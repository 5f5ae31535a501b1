"""Shards that are replaced under a run while their manifest stays: noticed when the run resumes, named, at no risk."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from distributed.launch import processes
from faults.scenario import exchange_images
from helpers.data_fixtures import drawn_corpus

from shards.format.index import index_tar
from simfle.data.dataset import ShardCorpus
from simfle.errors import CollectiveError, UserError
from simfle.runtime.distributed import World
from simfle.train import shard_record

pytestmark = pytest.mark.slow

ALONE = World(0, 1, 0, 1, torch.device("cpu"))


@pytest.fixture
def group() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def resume(run: Path, place: Path) -> None:
    shard_record.check_shards_unchanged(run, ShardCorpus([place]), ALONE, resumed=True)


@pytest.fixture
def started(tmp_path: Path, group: None) -> tuple[Path, Path]:
    """A run's folder with its record, and its shards."""
    place, run = drawn_corpus(tmp_path / "faces"), tmp_path / "run"
    run.mkdir()
    shard_record.check_shards_unchanged(run, ShardCorpus([place]), ALONE, resumed=False)
    return run, place


def test_files_of_the_same_size_and_count_are_noticed(started: tuple[Path, Path]) -> None:
    run, place = started
    before = ShardCorpus([place]).digest()
    exchange_images(place / "train-000001.tar")
    assert ShardCorpus([place]).digest() == before  # what the manifest says has not changed
    with pytest.raises(UserError, match=r"train-000001\.tar or its index is not the files .* Fix: restore"):
        resume(run, place)
    exchange_images(place / "train-000000.tar")
    with pytest.raises(UserError, match=r"train-000000\.tar and 1 more are not the files"):
        resume(run, place)
    shard_record.check_shards_unchanged(
        run, ShardCorpus([place]), ALONE, resumed=False
    )  # nothing has been trained yet: recorded again
    resume(run, place)


def test_an_index_alone_and_a_tar_alone(started: tuple[Path, Path]) -> None:
    run, place = started
    index, tar = place / "train-000000.idx", place / "train-000000.tar"
    good = index.read_bytes()
    index.write_bytes(good.replace(b"s000001", b"s00000x"))
    with pytest.raises(UserError, match=r"train-000000\.tar or its index"):
        resume(run, place)
    index.write_bytes(good)
    with tar.open("r+b") as file:  # other images of the same sizes
        content = bytearray(file.read())
        for item in index_tar(tar).column("jpg")[0].tolist():
            content[item + 600 : item + 700] = bytes(100)
        file.seek(0)
        file.write(content)
    with pytest.raises(UserError, match=r"train-000000\.tar or its index"):
        resume(run, place)


def test_what_is_the_same_is_not_refused(started: tuple[Path, Path], tmp_path: Path) -> None:
    run, place = started
    record = (run / shard_record.NAME).read_bytes()
    moved = shutil.copytree(place, tmp_path / "moved")
    for number, file in enumerate(moved.iterdir()):
        os.utime(file, (number, number))
    index = moved / "train-000000.idx"
    index.write_bytes(index.read_bytes().rstrip())  # as another tool may write it
    resume(run, moved)
    resume(run, place)
    for file in moved.glob("*.idx"):
        file.unlink()  # indexes are then made on the spot
    resume(run, moved)
    assert (run / shard_record.NAME).read_bytes() == record


def test_a_record_that_says_less_is_completed_and_a_damaged_one_refused(started: tuple[Path, Path]) -> None:
    run, place = started
    file = run / shard_record.NAME
    whole = file.read_bytes()
    file.unlink()  # as of an earlier version
    resume(run, place)
    assert file.read_bytes() == whole
    told = json.loads(whole)
    told["tars"][1] = told["indexes"][2] = ""  # as of shards that came from a URL then
    file.write_text(json.dumps(told))
    resume(run, place)
    assert file.read_bytes() == whole
    for content in (b"", whole[:40], b"[]", json.dumps(told | {"tars": []}).encode()):
        file.write_bytes(content)
        with pytest.raises(UserError, match=r"shards\.json is corrupt .* Fix: restore it"):
            resume(run, place)


SCRIPT = """
import sys
from pathlib import Path
import torch
import torch.distributed as dist
from simfle.data.storage.stores import LocalStore
from simfle.data.dataset import ShardCorpus
from simfle.errors import CollectiveError, UserError
from simfle.runtime.distributed import World
from simfle.train import shard_record

run, same, other, unreadable = sys.argv[1:]
dist.init_process_group("gloo")
rank, looked, spots = dist.get_rank(), [], LocalStore.spot_check
LocalStore.spot_check = lambda self, shard: looked.append(shard.file) or spots(self, shard)

def check(place, *own):
    looked.clear()
    try:
        world = World(rank, 2, *own, torch.device("cpu"))
        shard_record.check_shards_unchanged(Path(run), ShardCorpus([place]), world, resumed=True)
        print("fine", len(looked))
    except CollectiveError as error:
        print(error.is_reporter, error)
    except UserError as error:
        print("mine:", error)

check(same, rank, 2)
check((same, other)[rank], 0, 1)
check((same, unreadable)[rank], 0, 1)
dist.destroy_process_group()
"""


def test_processes_share_the_work_and_machines_are_compared(started: tuple[Path, Path], tmp_path: Path) -> None:
    """Slow because two processes import torch."""
    run, place = started
    other, unreadable = (shutil.copytree(place, tmp_path / name) for name in ("other", "unreadable"))
    exchange_images(other / "train-000003.tar")
    (unreadable / "train-000003.idx").unlink()
    (unreadable / "train-000003.idx").mkdir()
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    told = processes(2, script, *map(str, (run, place, other, unreadable)))
    first, second = (text.splitlines() for text in told)
    assert (first[0], second[0]) == ("fine 2", "fine 2")  # half of the four shards each
    assert "train-000003.tar or its index is not the same on all machines. Fix: copy" in first[1]
    assert (first[1][:5], second[1][:6]) == ("True ", "False ")
    assert first[2] == "False another process cannot read the shards"
    assert (second[2][:14], "cannot read" in second[2]) == ("mine: shards: ", True)


def test_agreed_errors_are_said_once(started: tuple[Path, Path]) -> None:
    run, place = started
    exchange_images(place / "train-000000.tar")
    with pytest.raises(CollectiveError) as told:
        resume(run, place)
    assert told.value.is_reporter
