import dataclasses
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.data_fixtures import drawn_corpus, picture
from helpers.loader_cases import CPU, DATA, VIEWS, same, take, tensors

from simfle.config.schema import DataConfig
from simfle.data.dataset import ShardCorpus
from simfle.data.loader import Loader, RankSlice, choose_backend, threads_per_process
from simfle.data.training_data import OrderedShards, make_sampler
from simfle.errors import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return drawn_corpus(tmp_path_factory.mktemp("corpus"))


def make(folder: Path, share: RankSlice = RankSlice(), data: DataConfig = DATA, batch: int = 8) -> Loader:  # noqa: B008
    corpus = ShardCorpus([folder], ["train"])
    return Loader(OrderedShards(corpus, make_sampler(corpus, data, 5, batch)), VIEWS, data, share, CPU)


def test_a_batch_is_what_the_joint_says(folder: Path) -> None:
    (batch,) = take(make(folder), 0, 1)
    assert batch.view1.shape == batch.view2.shape == (8, 3, 32, 32)
    assert batch.face.shape == (8, 3, 16, 16)
    assert batch.view1.dtype == batch.face.dtype == torch.uint8
    assert batch.view1.is_contiguous(memory_format=torch.channels_last)
    assert (batch.ids.dtype, batch.ids.shape) == (torch.int64, (8,))
    assert (batch.mask_uniform.dtype, batch.mask_uniform.shape) == (torch.float64, (8,))
    assert ((batch.mask_uniform >= 0) & (batch.mask_uniform < 1)).all()


def test_faces_are_those_of_their_ids(folder: Path) -> None:
    (batch,) = take(make(folder), 0, 1)
    for sample_id, face in zip(batch.ids.tolist(), batch.face, strict=True):
        drawn = torch.from_numpy(picture(sample_id, 64 + sample_id % 7, 64 + sample_id % 5)).float()
        small = torch.nn.functional.interpolate(drawn.permute(2, 0, 1)[None], (16, 16), mode="area")[0]
        assert (small - face).abs().mean() < 12


def test_started_at_step_k_it_goes_on_as_if_started_at_0(folder: Path) -> None:
    """12 steps are more than two epochs of 4 steps."""
    share = RankSlice(grad_accum_steps=2)
    whole = take(make(folder, share), 0, 24)
    for step in (1, 4, 7):
        assert same(take(make(folder, share), step, 24 - 2 * step), whole[2 * step :])
    assert not same(whole[:2], whole[8:10])


def test_any_number_of_processes_sees_the_same_global_batch(folder: Path) -> None:
    reference = take(make(folder), 3, 4)
    for size, accumulation in ((1, 4), (2, 1), (2, 2), (4, 1), (4, 2), (8, 1)):
        parts = [
            take(make(folder, RankSlice(rank, size, size, accumulation)), 3, 4 * accumulation) for rank in range(size)
        ]
        for step in range(4):
            micro = slice(step * accumulation, (step + 1) * accumulation)
            joined = zip(*(tensors(batch) for rank in parts for batch in rank[micro]), strict=True)
            for got, expected in zip(joined, tensors(reference[step]), strict=True):
                assert torch.equal(torch.cat(got), expected)


def test_prefetch_and_threads_change_nothing(folder: Path) -> None:
    fast = DataConfig(backend="opencv", decode_threads=3, prefetch_batches=5, canonical_streams=8, shuffle_window=6)
    assert same(take(make(folder), 0, 6), take(make(folder, data=fast), 0, 6))


def test_the_same_promises_with_dali(folder: Path) -> None:
    dali = dataclasses.replace(DATA, backend="dali")
    whole = take(make(folder, data=dali), 2, 3)
    assert same(whole[1:], take(make(folder, data=dali), 3, 2))
    halves = [take(make(folder, RankSlice(rank, 2, 2, 2), dali), 2, 6) for rank in range(2)]
    for step in range(3):
        joined = zip(*(tensors(batch) for half in halves for batch in half[2 * step : 2 * step + 2]), strict=True)
        assert all(torch.equal(torch.cat(got), want) for got, want in zip(joined, tensors(whole[step]), strict=True))
    opencv = take(make(folder), 2, 3)
    assert all(
        torch.equal(a.ids, b.ids) and torch.equal(a.mask_uniform, b.mask_uniform)
        for a, b in zip(whole, opencv, strict=True)
    )


def test_dali_missing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    with pytest.raises(UserError, match=r"simfle\[dali\]"):
        make(folder, data=dataclasses.replace(DATA, backend="dali"))


def loader_threads() -> int:
    return sum(thread.name.startswith(("loader", "opencv")) for thread in threading.enumerate())


def test_no_thread_stays_behind(folder: Path) -> None:
    before = loader_threads()
    loader = make(folder, data=DataConfig(backend="opencv", decode_threads=2, prefetch_batches=1))
    batches = loader.batches(0)
    next(batches)
    assert loader_threads() > before
    batches.close()
    loader.close()
    assert loader_threads() == before
    forgotten = make(folder)
    next(forgotten.batches(0))
    assert loader_threads() == before


def test_an_error_while_preparing_reaches_the_consumer(folder: Path, tmp_path: Path) -> None:
    corpus = ShardCorpus([drawn_corpus(tmp_path / "shards")], ["train"])
    loader = Loader(OrderedShards(corpus, make_sampler(corpus, DATA, 5, 8)), VIEWS, DATA, RankSlice(), CPU)
    for path in (tmp_path / "shards").glob("*.idx"):
        path.write_text("v0.9 1\n")
    batches = loader.batches(0)
    with pytest.raises(UserError, match=r"has version 'v0\.9'"):
        next(batches)
    loader.close()
    assert loader_threads() == 0


def test_waiting_is_counted(folder: Path) -> None:
    loader = make(folder)
    batches = loader.batches(0)
    next(batches)
    first = loader.data_wait_seconds
    assert first > 0
    time.sleep(0.3)  # the next ones are ready by now
    next(batches)
    assert loader.data_wait_seconds >= first
    batches.close()
    loader.close()


@pytest.mark.parametrize(
    ("share", "words"), [(RankSlice(0, 3), "3 processes"), (RankSlice(grad_accum_steps=3), "3 micro-batches")]
)
def test_a_batch_that_does_not_divide(folder: Path, share: RankSlice, words: str) -> None:
    with pytest.raises(UserError, match=words):
        make(folder, share)


def test_backends() -> None:
    assert choose_backend("auto", CPU) == "opencv"
    assert choose_backend("dali", CPU) == "dali"
    assert choose_backend("opencv", torch.device("cuda")) == "opencv"
    with pytest.raises(UserError, match=r"data\.backend='pil': unknown\. Fix: choose from"):
        choose_backend("pil", CPU)


def test_threads() -> None:
    assert threads_per_process(3, 8) == 3
    assert threads_per_process(0, 10**6) == 1
    assert threads_per_process(0, 1) >= 1


def test_streams_are_made_to_divide_the_batch(folder: Path) -> None:
    corpus = ShardCorpus([folder])
    assert make_sampler(corpus, DataConfig(canonical_streams=64), 0, 24).streams == 8
    assert np.array_equal(make_sampler(corpus, DATA, 0, 24).counts, corpus.counts)
