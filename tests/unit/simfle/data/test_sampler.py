import hashlib
import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simfle.data.sampler import Sampler
from simfle.errors import UserError


def make(
    counts: list[int], *, seed: int = 0, streams: int = 4, window: int = 16, batch: int = 8, gap: int = 0
) -> Sampler:
    """An order whose shards leave `gap` ids unused between them, as an unchosen split does."""
    first = np.concatenate([[0], np.cumsum(np.array(counts) + gap)[:-1]])
    return Sampler(np.array(counts), first, seed, math.gcd(streams, batch), window, batch)


def epoch_ids(order: Sampler, epoch: int) -> np.ndarray:
    steps = order.steps_per_epoch
    return np.stack([order.batch_ids(epoch * steps + t)[0] for t in range(steps)])


orders = st.builds(
    make,
    st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(lambda counts: sum(counts) >= 24),
    seed=st.integers(0, 2**32 - 1),
    streams=st.integers(1, 24),
    window=st.integers(1, 50),
    batch=st.integers(1, 24),
    gap=st.integers(0, 3),
)


@given(orders, st.integers(0, 1000))
@settings(deadline=None)
def test_an_epoch_and_what_it_drops_are_a_permutation(order: Sampler, epoch: int) -> None:
    used, dropped = epoch_ids(order, epoch), order.dropped_ids(epoch)
    everything = np.concatenate([first + np.arange(n) for first, n in zip(order.first_ids, order.counts, strict=True)])
    assert sorted([*used.reshape(-1).tolist(), *dropped.tolist()]) == everything.tolist()
    assert len(dropped) == order.samples % order.global_batch
    assert all(order.batch_ids(epoch * order.steps_per_epoch + t)[1] == epoch for t in range(order.steps_per_epoch))


@given(orders, st.integers(0, 100), st.data())
@settings(deadline=None)
def test_the_batch_does_not_depend_on_the_number_of_processes(order: Sampler, step: int, data: st.DataObject) -> None:
    batch = order.global_batch
    cuts = sorted(data.draw(st.lists(st.integers(0, batch), max_size=6)))
    fresh = Sampler(order.counts, order.first_ids, order.seed, order.streams, order.window, batch)
    parts = [fresh.slot_ids(step, a, b)[0] for a, b in zip([0, *cuts], [*cuts, batch], strict=True)]
    assert np.concatenate(parts).tolist() == order.batch_ids(step)[0].tolist()


@given(orders, st.data())
@settings(deadline=None)
def test_locate_is_the_inverse_of_first_ids(order: Sampler, data: st.DataObject) -> None:
    ids = order.batch_ids(data.draw(st.integers(0, 50)))[0]
    shard, index = order.locate(ids)
    assert (order.first_ids[shard] + index).tolist() == ids.tolist()
    assert np.all((index >= 0) & (index < order.counts[shard]))


@given(orders)
@settings(deadline=None)
def test_every_stream_gives_an_equal_share_of_its_own_places(order: Sampler) -> None:
    share = order.global_batch // order.streams
    used = epoch_ids(order, 0).reshape(-1, order.streams, share)  # [steps, K, q]
    ring = order._ids(0, np.arange(order.samples))
    place = {int(sample): i for i, sample in enumerate(ring)}
    length = order.samples // order.streams
    for stream in range(order.streams):
        streams = {place[int(sample)] // length for sample in used[:, stream].reshape(-1)}
        assert streams == {stream}


def test_a_stream_stays_inside_its_window() -> None:
    order = make([100] * 10, streams=2, window=50, batch=2)
    ring = order._ids(0, np.arange(1000)).tolist()
    used = epoch_ids(order, 0)  # [500, 2]
    for window in range(10):
        assert {*used[window * 50 : window * 50 + 50, 1].tolist()} == {*ring[500 + window * 50 : 550 + window * 50]}


def test_epochs_and_seeds_differ() -> None:
    order, other = make([30] * 8), make([30] * 8, seed=1)
    first, second = epoch_ids(order, 0), epoch_ids(order, 1)
    assert (first == second).mean() < 0.1
    assert (first == epoch_ids(other, 0)).mean() < 0.1
    assert first.tolist() == epoch_ids(make([30] * 8), 0).tolist()


def test_other_samples_are_dropped_in_each_epoch() -> None:
    order = make([11, 10], window=4)
    dropped = {tuple(sorted(order.dropped_ids(epoch).tolist())) for epoch in range(20)}
    assert len(dropped) > 10
    assert {sample for some in dropped for sample in some} == set(range(21))


def test_every_sample_comes_at_every_time_equally_often() -> None:
    """Chi-square of (sample, step) over 4000 epochs, seeds fixed."""
    order = make([5, 3, 0, 4, 4], streams=2, window=4, batch=4)
    epochs, steps, samples = 4000, order.steps_per_epoch, order.samples
    counts = np.zeros((samples, steps))
    for epoch in range(epochs):
        for step, ids in enumerate(epoch_ids(order, epoch)):
            slot_shard, index = order.locate(ids)
            position = np.cumsum([0, *order.counts])[slot_shard] + index
            counts[position, step] += 1
    expected = epochs * order.global_batch / samples
    statistic = ((counts - expected) ** 2 / expected).sum()
    # (samples - 1) * (steps - 1) = 45 degrees of freedom, 99.9 % point 80.1
    assert statistic < 80.1


def test_the_order_is_pinned_for_ever() -> None:
    """If this fails, resumed runs would see other samples than before: the code is wrong, not the number."""
    order = make([500, 123, 0, 777, 1000], seed=20240611, streams=64, window=100, batch=96, gap=7)
    ids = np.concatenate([order.batch_ids(step)[0] for step in [*range(60), 10**6]])
    assert hashlib.sha256(ids.astype("<i8").tobytes()).hexdigest()[:32] == "cd7191ed664dd43b0faa7ae7c6884e97"
    assert ids[:6].tolist() == [994, 954, 986, 1050, 1018, 1066]


def test_wide_windows() -> None:
    order = make([70000, 70000], streams=1, window=70000, batch=2)
    used = np.concatenate([order.batch_ids(step)[0] for step in range(500)])
    assert len(set(used.tolist())) == 1000
    assert order._windows((0, 0, 0), order._make_window).dtype == np.uint32


def test_a_thousand_million_samples_in_little_memory() -> None:
    tracemalloc.start()
    counts = np.full(200_000, 5000)
    order = Sampler(counts, np.arange(200_000) * 5000, 0, 64, 16384, 256)
    ids = [order.batch_ids(step)[0] for step in range(4)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert order.samples == 10**9
    assert len(np.unique(np.concatenate(ids))) == 4 * 256
    assert peak < 50e6


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"global_batch": 41, "streams": 1}, r"41: more than the 40 samples"),
        ({"streams": 3}, r"streams=3: does not divide the global batch of 8"),
        ({"window": 0}, r"window=0: must be at least 1"),
        ({"seed": -1}, r"train\.seed"),
    ],
)
def test_errors(change: dict[str, int], words: str) -> None:
    arguments = {"seed": 0, "streams": 4, "window": 8, "global_batch": 8} | change
    with pytest.raises(UserError, match=words):
        Sampler(np.array([40]), np.array([0]), **arguments)


def test_an_id_of_another_split_is_refused() -> None:
    with pytest.raises(ValueError, match="none of the chosen"):
        make([10, 10], gap=5).locate([12])
