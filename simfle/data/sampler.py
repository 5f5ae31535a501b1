"""Sample order: a pure function of (shard sizes, seed, step), the same for any number of processes.

An epoch arranges all N samples as follows:
1. the shards are permuted and their samples concatenated: N places, read as a ring that starts at a random place;
2. the ring is cut into `streams` contiguous streams of N // streams places;
3. inside a stream, each window of `window` consecutive places is shuffled;
4. global batch t takes the next q = global_batch / streams places of every stream. Its slots are stream-major: slots
k*q ... (k+1)*q - 1 belong to stream k, so a process that takes a contiguous range of slots opens only its streams'
shards.

An epoch drops the N - streams * (N // streams) places outside all streams, and the last (N // streams) % q places of
each stream, which is exactly N % global_batch samples in total. The used and the dropped places are a permutation of
the corpus. Each epoch permutes shards, ring and windows again, so each epoch drops other samples.

Only Philox words and a stable sort determine the order. Generator.permutation and shuffle, which numpy may change
between versions, are not used, so an order never changes. tests/unit/simfle/data/test_sampler.py pins the order.

Memory grows with the number of shards (some 50 bytes each), plus the shuffled windows in use, one per stream, of 2
bytes per place (4 if a window is larger than 65,536).
"""

# S shards, N samples, K streams, q places that a step takes from a stream
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from simfle.data.philox import ROTATION, SHARDS, WINDOW, key, permutation, philox
from simfle.data.storage.lru_cache import LruCache
from simfle.errors import UserError

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class _Ring:
    """One epoch's permuted shards: the shard at ring position i covers places ends[i-1] ... ends[i] - 1."""

    start: int
    shards: NDArray[np.int32]
    ends: Ints


@dataclass(frozen=True, eq=False)
class Sampler:
    """Sample order of a corpus.

    counts, first_ids: [S] int64, number of samples of each shard and global id of its first sample; first_ids must not
    decrease. streams: must divide global_batch (`math.gcd(config.streams, global_batch)`).

    Raises:
        UserError: If there are fewer samples than one global batch, the streams do not divide it, or the seed is out of
            range.
    """

    counts: Ints
    first_ids: Ints
    seed: int
    streams: int
    window: int
    global_batch: int
    _rings: LruCache[int, _Ring] = field(init=False, repr=False)
    _windows: LruCache[tuple[int, int, int], NDArray[np.uint32]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("counts", "first_ids"):
            object.__setattr__(self, name, np.ascontiguousarray(getattr(self, name), dtype=np.int64))
        if self.counts.shape != self.first_ids.shape or np.any(np.diff(self.first_ids) < 0):
            raise ValueError("counts and first_ids must have the same length, and first_ids must not decrease")
        for name in ("streams", "window", "global_batch"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)}: must be at least 1. Fix: increase it.")
        if self.global_batch % self.streams:
            raise UserError(
                f"streams={self.streams}: does not divide the global batch of {self.global_batch}. "
                "Fix: choose a divisor."
            )
        if self.samples < self.global_batch:
            raise UserError(
                f"train.global_batch={self.global_batch}: more than the {self.samples} samples of the chosen "
                "shards and splits. Fix: use a smaller batch or more samples."
            )
        key(self.seed, SHARDS)  # raises an error for a seed that is out of range
        object.__setattr__(self, "_rings", LruCache(2))
        object.__setattr__(self, "_windows", LruCache(self.streams + 2))

    @cached_property
    def samples(self) -> int:
        """Number of samples N in the order."""
        return int(self.counts.sum())

    @property
    def steps_per_epoch(self) -> int:
        """Number of global batches per epoch, N // global_batch."""
        return self.samples // self.global_batch

    @property
    def describe(self) -> str:
        """Return a description for log lines."""
        return f"{self.samples:,} samples, {self.steps_per_epoch} steps per epoch"

    def batch_ids(self, step: int) -> tuple[Ints, int]:
        """Return global sample ids [global_batch] of a step counted over all epochs, and its epoch."""
        return self.slot_ids(step, 0, self.global_batch)

    def slot_ids(self, step: int, start: int, stop: int) -> tuple[Ints, int]:
        """Return the ids of slots start ... stop - 1 of a step, computed without the streams of other slots."""
        epoch, turn = divmod(step, self.steps_per_epoch)
        share = self.global_batch // self.streams
        places = []
        for stream in range(start // share, -(-stop // share)):
            low = turn * share + max(start - stream * share, 0)
            high = turn * share + min(stop - stream * share, share)
            places.append(self._places(epoch, stream, low, high))
        return self._ids(epoch, np.concatenate(places) if places else np.empty(0, np.int64)), epoch

    def windows(self, step: int) -> tuple[int, range]:
        """Return the epoch of a step, and the windows of its samples, the same in every stream."""
        epoch, turn = divmod(step, self.steps_per_epoch)
        share = self.global_batch // self.streams
        return epoch, range(turn * share // self.window, ((turn + 1) * share - 1) // self.window + 1)

    def window_shards(self, epoch: int, stream: int, window: int) -> Ints:
        """Return the shards (indices into counts) that a window of a stream reads, in ring order."""
        length = self.samples // self.streams
        first = stream * length + window * self.window
        last = stream * length + min((window + 1) * self.window, length) - 1
        ring = self._rings(epoch, self._make_ring)
        turned = (np.array([first, last]) + ring.start) % self.samples
        low, high = np.searchsorted(ring.ends, turned, side="right").tolist()
        if turned[0] <= turned[1]:
            positions = np.arange(low, high + 1)
        else:  # the window crosses the end of the ring
            positions = np.concatenate([np.arange(low, len(ring.shards)), np.arange(high + 1)])
        shards = ring.shards[positions].astype(np.int64)
        return shards[self.counts[shards] > 0]

    def dropped_ids(self, epoch: int) -> Ints:
        """Return the ids of the samples that an epoch drops: N % global_batch of them."""
        length, share = self.samples // self.streams, self.global_batch // self.streams
        used = self.steps_per_epoch * share
        places = [self._places(epoch, stream, used, length) for stream in range(self.streams)]
        places.append(np.arange(length * self.streams, self.samples))
        return self._ids(epoch, np.concatenate(places))

    def locate(self, ids: ArrayLike) -> tuple[Ints, Ints]:
        """Map global ids [n] to (index into counts [n], index in the shard [n]). Raises ValueError for an unknown
        id."""
        return locate(self.counts, self.first_ids, ids)

    def _places(self, epoch: int, stream: int, low: int, high: int) -> Ints:
        """Return the ring places at positions low ... high - 1 of a stream, after the shuffle of the windows."""
        first = stream * (self.samples // self.streams)
        parts = []
        while low < high:
            window, inside = divmod(low, self.window)
            part = self._windows((epoch, stream, window), self._make_window)[inside : inside + high - low]
            parts.append(part + np.int64(first + window * self.window))
            low += len(part)
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def _ids(self, epoch: int, places: Ints) -> Ints:
        """Map places of an epoch's ring to global ids."""
        ring = self._rings(epoch, self._make_ring)
        turned = (places + ring.start) % self.samples
        position = np.searchsorted(ring.ends, turned, side="right")
        shard = ring.shards[position]
        return self.first_ids[shard] + turned - (ring.ends[position] - self.counts[shard])

    def _make_ring(self, epoch: int) -> _Ring:
        shards = permutation(len(self.counts), key(self.seed, SHARDS), (epoch, 0, 0)).astype(np.int32)
        word = philox(np.array([[epoch, 0, 0, 0]], dtype=np.uint32), key(self.seed, ROTATION))[0]
        start = (int(word[0]) | int(word[1]) << 32) % self.samples
        return _Ring(start, shards, np.cumsum(self.counts[shards]))

    def _make_window(self, at: tuple[int, int, int]) -> NDArray[np.uint32]:
        epoch, stream, window = at
        size = min(self.window, self.samples // self.streams - window * self.window)
        kind = np.uint16 if size <= 65536 else np.uint32
        return permutation(size, key(self.seed, WINDOW), (window, epoch, stream)).astype(kind)


def locate(counts: Ints, first_ids: Ints, ids: ArrayLike) -> tuple[Ints, Ints]:
    """Map global ids [n] to (shard [n], sample in its shard [n]), for shards of these sizes and first ids [S].

    Raises:
        ValueError: If an id lies in none of the shards.
    """
    wanted = np.asarray(ids, dtype=np.int64)
    shard = np.searchsorted(first_ids, wanted, side="right") - 1
    sample = wanted - first_ids[shard]
    if np.any(shard < 0) or np.any(sample >= counts[shard]):
        raise ValueError("a sample id is in none of the chosen shards")
    return shard, sample
