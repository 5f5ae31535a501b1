"""Find all pairs of 64-bit hashes that differ in at most d bits, exactly and without comparing all pairs.

Hashes are cut into bands (multi-index hashing: Norouzi, Punjani, Fleet, "Fast exact search in Hamming space with
multi-index hashing", arXiv 1307.2982). With d = bands * r + a, two hashes that differ in at most d bits agree to within
r bits in one of the first a + 1 bands, or to within r - 1 in one of the others, so only a few buckets are searched.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, pairwise
from math import comb

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]
Ints = NDArray[np.int64]

PIECE = 1 << 20  # candidates per step; limits the memory needed in addition to the words
PROBE_COST = 4.0  # cost of one bucket lookup, in candidates
CALL_COST = 5000.0  # cost per band and call, in candidates: matters for single queries
WIDEST = 22  # bits of a band; its bucket table has 2^bits entries


@dataclass(frozen=True)
class Band:
    """Bits `shift` to `shift + width` of a word; radius: number of bits that may differ."""

    shift: int
    width: int
    radius: int

    @property
    def probes(self) -> int:
        """Number of buckets searched per word."""
        return sum(comb(self.width, bits) for bits in range(self.radius + 1))

    def of(self, words: Words) -> Ints:
        """Return the band's value in each word."""
        return ((words >> np.uint64(self.shift)) & np.uint64((1 << self.width) - 1)).astype(np.int64)

    def masks(self) -> Ints:
        """Return all values with at most `radius` bits set."""
        chosen = [bits for number in range(self.radius + 1) for bits in combinations(range(self.width), number)]
        return np.array([sum(1 << bit for bit in bits) for bits in chosen], np.int64)


def plan_bands(words: int, distance: int, at_once: int = 1 << 16) -> tuple[Band, ...]:
    """Return the cheapest bands for `words` random words; a single band of 0 bits means "compare all pairs".

    at_once: number of words per query.
    """
    plans: list[tuple[Band, ...]] = [(Band(0, 0, 0),)]
    for number in range(3, 17):
        radius, rest = divmod(distance, number)
        edges = [place * 64 // number for place in range(number + 1)]
        bands = [
            Band(first, last - first, radius if place <= rest else radius - 1)
            for place, (first, last) in enumerate(pairwise(edges))
        ]
        plans.append(tuple(band for band in bands if band.radius >= 0))
    wide = [bands for bands in plans if max(band.width for band in bands) <= WIDEST]
    call = CALL_COST / at_once
    return min(wide, key=lambda bands: sum(call + b.probes * (PROBE_COST + words / 2**b.width) for b in bands))


class HammingIndex:
    """Index of words [n]: 8 bytes per word and 4 more per band."""

    def __init__(self, words: Words, distance: int, at_once: int = 1 << 16) -> None:
        self.words = words
        self.distance = distance
        self.bands = plan_bands(len(words), distance, at_once)

    @cached_property
    def _buckets(self) -> list[tuple[NDArray[np.uint32], Ints, Ints]]:
        """Return for each band the words sorted by its value, the start of each value, and the masks."""
        found = []
        for band in self.bands:
            values = band.of(self.words)
            order = np.argsort(values, kind="stable").astype(np.uint32)
            starts = np.zeros((1 << band.width) + 1, np.int64)
            np.cumsum(np.bincount(values, minlength=1 << band.width), out=starts[1:])
            found.append((order, starts, band.masks()))
        return found

    def pairs(self, queries: Words) -> Iterator[tuple[Ints, Ints, NDArray[np.uint8]]]:
        """Yield every (query, word, distance) with a distance of at most `self.distance` once, in chunks [k]."""
        for place, (order, starts, masks) in enumerate(self._buckets):
            step = max(1, PIECE // len(masks))
            for first in range(0, len(queries), step):
                asked = queries[first : first + step]
                probes = (self.bands[place].of(asked)[:, None] ^ masks).ravel()  # [asked * masks]
                for probe, slot in _ranges(starts[probes], starts[probes + 1]):
                    query, word = probe // len(masks), order[slot].astype(np.int64)
                    differ = asked[query] ^ self.words[word]
                    distance = np.bitwise_count(differ)
                    near = distance <= self.distance
                    for band in self.bands[:place]:  # already found by that band
                        near &= np.bitwise_count(band.of(differ)) > band.radius
                    if near.any():
                        yield query[near] + first, word[near], distance[near]


def _ranges(low: Ints, high: Ints) -> Iterator[tuple[Ints, Ints]]:
    """Yield all positions in the ranges low[i] ... high[i] - 1 with their i, at most PIECE positions at a time."""
    ends = np.cumsum(high - low)
    begins = ends - (high - low)
    total = int(ends[-1]) if len(ends) else 0
    for start in range(0, total, PIECE):
        stop = min(start + PIECE, total)
        first, last = np.searchsorted(ends, [start, stop - 1], side="right")
        here = slice(int(first), int(last) + 1)
        counts = np.minimum(ends[here], stop) - np.maximum(begins[here], start)
        which = np.repeat(np.arange(here.start, here.stop), counts)
        yield which, low[which] + np.arange(start, stop) - begins[which]
