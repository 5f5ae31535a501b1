"""Philox4x32-10, a counter-based generator: random words are a pure function of (key, counter).

Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011). Sample order and view
parameters use it because its output is fixed on every machine and in every library version, and because any word can be
computed without its predecessors.
"""

# n counters
import numpy as np
from numpy.typing import ArrayLike, NDArray

from simfle.errors import UserError

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (np.uint32(0x9E3779B9), np.uint32(0xBB67AE85))
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_ROUNDS = 10

# Purposes of random words. The purpose is half of the key, so no two purposes share a word.
SHARDS, ROTATION, WINDOW, VIEW, GROUP, PARTNER = 1, 2, 3, 4, 5, 6


def key(seed: int, purpose: int) -> NDArray[np.uint32]:
    """Return the key [2] of a run's seed and a purpose. Raises UserError if the seed is not in 0 ... 2**32 - 1."""
    if not 0 <= seed < 2**32:
        raise UserError(f"train.seed={seed}: out of range. Fix: choose 0 to {2**32 - 1}.")
    return np.array([seed, purpose], dtype=np.uint32)


def philox(counter: NDArray[np.uint32], key: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Return random words [n, 4] uint32 of counters [n, 4] uint32 under one key [2] or one per counter [n, 2]."""
    # uint64 columns, because a product of two words needs 64 bits
    c0, c1, c2, c3 = np.ascontiguousarray(counter.T).astype(np.uint64)
    k0, k1 = np.moveaxis(np.asarray(key, dtype=np.uint32), -1, 0).copy().reshape(2, -1)
    for turn in range(_ROUNDS):
        if turn:
            k0, k1 = k0 + _WEYL[0], k1 + _WEYL[1]  # intended to wrap at 2**32
        even, odd = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1 = (odd >> _HALF) ^ c1 ^ k0, odd & _LOW
        c2, c3 = (even >> _HALF) ^ c3 ^ k1, even & _LOW
    return np.stack([c0, c1, c2, c3], axis=-1).astype(np.uint32)


def uniform(words: ArrayLike) -> NDArray[np.float64]:
    """Convert words to numbers in [0, 1), multiples of 2**-32."""
    return np.asarray(words, dtype=np.float64) * 2.0**-32


def permutation(size: int, key: NDArray[np.uint32], tail: tuple[int, int, int]) -> NDArray[np.int64]:
    """Return a permutation [size] of 0 ... size - 1 from the counters (0, *tail), (1, *tail), ...

    A stable sort of 64 random bits per element is fully determined by this file (numpy does not promise a stable
    Generator.permutation).
    """
    blocks = (size + 1) // 2
    counter = np.empty((blocks, 4), dtype=np.uint32)
    counter[:, 0] = np.arange(blocks)
    counter[:, 1:] = tail
    words = philox(counter, key).astype(np.uint64)
    bits = (words[:, 0::2] | words[:, 1::2] << _HALF).reshape(-1)[:size]  # [blocks, 2] -> [size]
    return np.argsort(bits, kind="stable")
