import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simfle.data.philox import key, permutation, philox, uniform
from simfle.errors import UserError

# Known answers of Philox4x32-10 that came with the paper's library: counter, key, words.
KNOWN = [
    ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


@pytest.mark.parametrize(("counter", "key_", "words"), KNOWN)
def test_known_answers(counter: list[int], key_: list[int], words: list[int]) -> None:
    got = philox(np.array([counter], dtype=np.uint32), np.array(key_, dtype=np.uint32))
    assert got.dtype == np.uint32
    assert got.tolist() == [words]


def test_one_key_per_counter() -> None:
    counters = np.array([k[0] for k in KNOWN], dtype=np.uint32)
    keys = np.array([k[1] for k in KNOWN], dtype=np.uint32)
    assert philox(counters, keys).tolist() == [k[2] for k in KNOWN]


def test_words_of_consecutive_counters_are_uniform() -> None:
    counter = np.zeros((1 << 14, 4), dtype=np.uint32)
    counter[:, 0] = np.arange(1 << 14)
    values = uniform(philox(counter, key(3, 1)))
    assert 0 <= values.min() <= values.max() < 1
    counts = np.histogram(values, bins=64, range=(0, 1))[0]
    expected = values.size / 64
    assert ((counts - expected) ** 2 / expected).sum() < 103.4  # the 99.9 % point of chi-square with 63 degrees


def test_uniform_never_reaches_one() -> None:
    assert uniform(np.array([0, 0xFFFFFFFF], dtype=np.uint32)).tolist() == [0.0, 1 - 2.0**-32]


@given(st.integers(0, 300), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=50)
def test_permutation_is_one(size: int, seed: int, tail: int) -> None:
    got = permutation(size, key(seed, 1), (tail, 0, 7))
    assert sorted(got.tolist()) == list(range(size))
    assert got.tolist() == permutation(size, key(seed, 1), (tail, 0, 7)).tolist()


def test_every_permutation_of_four_is_as_likely() -> None:
    seen: dict[tuple[int, ...], int] = {}
    draws = 4800
    for i in range(draws):
        which = tuple(permutation(4, key(5, 1), (i, 0, 0)).tolist())
        seen[which] = seen.get(which, 0) + 1
    assert len(seen) == 24
    assert sum((n - draws / 24) ** 2 / (draws / 24) for n in seen.values()) < 49.7  # 99.9 %, 23 degrees


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seed_out_of_range(seed: int) -> None:
    with pytest.raises(UserError, match=r"train\.seed"):
        key(seed, 1)
