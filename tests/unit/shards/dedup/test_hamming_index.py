"""The search for near words against comparing all with all."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from shards.dedup import hamming_index
from shards.dedup.hamming_index import HammingIndex, plan_bands

pytestmark = pytest.mark.slow


def words(count: int, seed: int, flips: int) -> NDArray[np.uint64]:
    """Random words, half of them copies of others with up to `flips` bits changed, some of them equal."""
    rng = np.random.default_rng(seed)
    made = rng.integers(0, 2**64, count, dtype=np.uint64)
    for place in range(count // 2):
        bits = rng.choice(64, rng.integers(0, flips + 1), replace=False)
        made[place] = made[-1 - place % (count // 2)] ^ np.uint64(sum(1 << int(bit) for bit in bits))
    return made


def by_comparing(queries: NDArray[np.uint64], known: NDArray[np.uint64], distance: int) -> list[tuple[int, int, int]]:
    bits = np.bitwise_count(queries[:, None] ^ known)
    rows, columns = np.nonzero(bits <= distance)
    return sorted(zip(rows.tolist(), columns.tolist(), bits[rows, columns].tolist(), strict=True))


def by_search(search: HammingIndex, queries: NDArray[np.uint64]) -> list[tuple[int, int, int]]:
    found = []
    for part in search.pairs(queries):
        found += zip(*(column.tolist() for column in part), strict=True)
    return sorted(found)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 150), st.integers(0, 60), st.integers(0, 16), st.integers(0, 99), st.integers(1, 3000))
def test_finds_what_comparing_all_finds(known: int, queries: int, distance: int, seed: int, piece: int) -> None:
    both = words(known + queries, seed, distance + 3)
    before, hamming_index.PIECE = hamming_index.PIECE, piece
    try:
        search = HammingIndex(both[:known], distance)
        assert by_search(search, both) == by_comparing(both, both[:known], distance)
    finally:
        hamming_index.PIECE = before


@pytest.mark.parametrize("distance", [0, 3, 8, 16])
def test_large_numbers_go_through_bands(distance: int) -> None:
    """Bands as they are planned for a hundred million words, on a few."""
    made = words(1500, 1, distance + 2)
    search = HammingIndex(made, distance)
    search.bands = plan_bands(100_000_000, distance)
    assert search.bands[0].width > 0
    assert by_search(search, made[:400]) == by_comparing(made[:400], made, distance)


def test_bands_cover_the_word_and_the_distance() -> None:
    """The search is exact: words that differ in every band by more than its radius differ by more than d."""
    for count in (10, 10**4, 10**6, 10**9):
        for distance in range(17):
            bands = plan_bands(count, distance)
            if bands[0].width == 0:
                continue
            every = sum(band.radius + 1 for band in bands)  # the fewest bits that escape all these bands
            assert every > distance
            places = sorted((band.shift, band.shift + band.width) for band in bands)
            assert all(last <= first for (_, last), (first, _) in pairwise(places))


def test_work_grows_slower_than_pairs() -> None:
    """Candidates looked at, counted: not a thousandth of all pairs among 200,000 words."""
    made = words(200_000, 3, 6)
    search = HammingIndex(made, 6)
    looked = 0
    for place, (_, starts, masks) in enumerate(search._buckets):
        values = search.bands[place].of(made[:500])[:, None] ^ masks
        looked += int((starts[values + 1] - starts[values]).sum())
    assert looked < 500 * 200_000 / 1000
