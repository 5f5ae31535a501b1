"""A sample that cannot be decoded is replaced by the next sample of its shard, on any process and at any time."""

import dataclasses
import itertools
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.bombs import jpeg_of_scans
from helpers.data_fixtures import jpeg, picture, write_shards
from helpers.loader_cases import CPU, DATA, VIEWS, same, take, tensors

from shards.format.index import read_index
from simfle.data.backends.base import CORRUPT
from simfle.data.backends.dali import Dali
from simfle.data.backends.jpeg_header import MAX_PIXELS
from simfle.data.corrupt_samples import MAX_REPLACEMENT_TRIES
from simfle.data.dataset import ShardCorpus
from simfle.data.loader import Loader, RankSlice
from simfle.data.storage.resampled import ResampledStream
from simfle.data.training_data import OrderedShards, make_sampler
from simfle.data.views import sample_view_params
from simfle.errors import UserError

pytestmark = pytest.mark.slow

REPLACED = {3: 4, 7: 0, 11: 13, 12: 13}  # 7 is the last of its shard, 11 and 12 follow each other
BOTH = pytest.mark.parametrize("backend", ["opencv", "dali"])


def hurt(folder: Path, number: int, how: str = "scan") -> None:
    """Damage the JPEG of sample `number` (of shards of 8) where it lies in its tar."""
    tar = folder / f"train-{number // 8:06d}.tar"
    place = read_index(tar.with_suffix(".idx")).members(number % 8)["jpg"]
    with tar.open("r+b") as file:
        file.seek(place.offset)
        content = bytearray(file.read(place.size))
        if how == "scan":
            scan = content.index(b"\xff\xda")  # without this marker there is no picture behind the tables
            content[scan : scan + 2] = bytes(2)
        else:  # a frame of 65,535 x 65,535 pixels
            frame = content.index(b"\xff\xc0") + 5
            content[frame : frame + 4] = b"\xff\xff\xff\xff"
        file.seek(place.offset)
        file.write(content)


def shards(folder: Path, count: int = 24) -> Path:
    images = [jpeg(picture(i, 40 + i % 7, 44)) for i in range(count)]
    return write_shards(folder, [("train", images[start : start + 8]) for start in range(0, count, 8)])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = shards(tmp_path / "shards")
    for number in REPLACED:
        hurt(made, number)
    return made


def make(folder: Path, backend: str = "opencv", share: RankSlice = RankSlice()) -> Loader:  # noqa: B008
    corpus, data = ShardCorpus([folder]), dataclasses.replace(DATA, backend=backend)
    return Loader(OrderedShards(corpus, make_sampler(corpus, data, 5, 8)), VIEWS, data, share, CPU)


@BOTH
def test_the_next_good_sample_of_the_shard_comes_with_the_views_of_the_damaged_one(folder: Path, backend: str) -> None:
    loader, epoch = make(folder, backend), 1
    for step in range(3, 6):
        wanted, _ = loader.source.batch_ids(step)
        batch = loader.batch(step, 0)
        assert batch.ids.tolist() == [REPLACED.get(number, number) for number in wanted.tolist()]
        draws = sample_view_params(5, epoch, wanted, VIEWS)  # of the slots, not of what is fed in them
        images = [loader.source.read_image(n) for n in batch.ids.tolist()]
        alone = loader._backend.render(images, draws)
        assert alone.corrupt == []
        for got, expected in ((batch.view1, alone.view1), (batch.view2, alone.view2), (batch.face, alone.face)):
            assert torch.equal(got, expected)
        assert np.array_equal(batch.mask_uniform.numpy(), draws.group)
    loader.close()


@BOTH
def test_the_same_on_any_number_of_processes_and_started_anywhere(folder: Path, backend: str) -> None:
    whole = take(make(folder, backend), 0, 6)
    assert same(take(make(folder, backend), 4, 2), whole[4:])
    parts = [take(make(folder, backend, RankSlice(rank, 2, 2, 2)), 0, 12) for rank in range(2)]
    for step in range(6):
        joined = zip(*(tensors(batch) for part in parts for batch in part[2 * step : 2 * step + 2]), strict=True)
        assert all(torch.equal(torch.cat(got), want) for got, want in zip(joined, tensors(whole[step]), strict=True))


@BOTH
def test_each_is_told_once_with_its_step(folder: Path, backend: str) -> None:
    loader = make(folder, backend)
    for step in range(6):
        loader.batch(step, 0)
    assert loader.corrupt_samples(-1) == []
    first = loader.corrupt_samples(0)
    assert [each.step for each in first] == [0] * len(first)
    told = first + loader.corrupt_samples(5)
    assert {each.id: each.replaced_by for each in told} == REPLACED
    assert len(told) == len(REPLACED)
    assert {each.id: each.key for each in told} == {number: f"s{number:06d}" for number in REPLACED}
    assert all(each.shard == str(folder / f"train-{each.id // 8:06d}.tar") for each in told)
    assert loader.corrupt_samples(100) == []
    loader.close()


@BOTH
def test_a_damaged_sample_is_tried_again_by_the_decoder_that_found_it(folder: Path, backend: str) -> None:
    loader = make(folder, backend)
    assert [loader.is_decodable(number) for number in (3, 4, 7, 99)] == [False, True, False, False]
    loader.close()


def test_bytes_that_cannot_be_read_count_as_damage(tmp_path: Path) -> None:
    folder = shards(tmp_path / "shards")
    loader = make(folder)
    loader.batch(0, 0)
    place = read_index(folder / "train-000001.idx").members(6)["jpg"]
    os.truncate(folder / "train-000001.tar", place.offset + 1)  # open already, and shorter from now on
    fed = list(itertools.chain.from_iterable(loader.batch(step, 0).ids.tolist() for step in range(3, 6)))
    assert {each.id: each.replaced_by for each in loader.corrupt_samples(5)} == {14: 8, 15: 8}
    assert sorted(fed) == sorted([*range(14), 8, 8, *range(16, 24)])
    loader.close()


def test_an_image_of_too_many_pixels_is_not_decoded(tmp_path: Path) -> None:
    folder = shards(tmp_path / "shards")
    hurt(folder, 5, "bomb")
    assert MAX_PIXELS < 65535**2
    loader = make(folder)
    for step in range(3):
        loader.batch(step, 0)
    assert [(each.id, each.replaced_by) for each in loader.corrupt_samples(2)] == [(5, 6)]
    loader.close()


@BOTH
def test_a_jpeg_of_4000_scans_is_not_decoded(tmp_path: Path, backend: str) -> None:
    images = [jpeg(picture(i, 40, 44)) for i in range(8)]
    images[5] = jpeg_of_scans(4000)
    loader = make(write_shards(tmp_path / "shards", [("train", images)]), backend)
    loader.batch(0, 0)
    assert [(each.id, each.replaced_by) for each in loader.corrupt_samples(0)] == [(5, 6)]
    loader.close()


def test_a_shard_without_a_good_sample_ends_the_run(tmp_path: Path) -> None:
    folder = shards(tmp_path / "shards")
    for number in range(8, 16):
        hurt(folder, number)
    loader = make(folder)
    with pytest.raises(
        UserError, match=rf"train-000001\.tar: {MAX_REPLACEMENT_TRIES} consecutive samples cannot be decoded"
    ):
        [loader.batch(step, 0) for step in range(3)]
    loader.close()


def test_in_a_stream_the_next_of_the_micro_batch_stands_in(tmp_path: Path) -> None:
    folder = shards(tmp_path / "shards")
    for number in range(0, 24, 8):
        hurt(folder, number)
    data = dataclasses.replace(DATA, shards=[str(folder)], resampled=True)
    stream = ResampledStream(data, 0, 8, 0)
    loader = Loader(stream, VIEWS, data, RankSlice(), CPU)
    for step in range(8):
        batch = loader.batch(step, 0)
        assert len(batch.ids) == 8
        assert not (batch.face == CORRUPT).flatten(1).all(1).any()
    told = loader.corrupt_samples(8)
    assert {each.key.rpartition(" ")[2] for each in told} <= {"s000000", "s000008", "s000016"}
    assert told
    loader.close()


def test_memory_that_is_at_its_end_is_no_damaged_image() -> None:
    """DALI gives every error as a RuntimeError; good samples must not be replaced for want of memory."""
    dali = Dali(VIEWS, 1, 2, CPU)
    good = [np.frombuffer(jpeg(picture(i, 40, 44)), np.uint8) for i in range(2)]

    def run() -> None:
        raise RuntimeError("Critical error in pipeline: CUDA allocation failed")

    dali._pipeline.run = run
    with pytest.raises(RuntimeError, match="allocation failed"):
        dali.render(good, sample_view_params(3, 0, range(2), VIEWS))
    dali._pipeline.run = lambda: (_ for _ in ()).throw(RuntimeError("whatever it was"))
    with pytest.raises(RuntimeError, match="whatever it was"):  # each image alone can be decoded
        dali.render(good, sample_view_params(3, 0, range(2), VIEWS))
