"""Training data: the samples of each step, and their image files.

`TrainingData` is the interface that the loader and the trainer use. It has two implementations: `OrderedShards`, with
an exact order, and `simfle.data.storage.resampled.ResampledStream`, with webdataset's random shards.
"""

# n samples of a micro-batch
import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from simfle.config.schema import DataConfig
from simfle.data.dataset import ShardCorpus, open_corpus
from simfle.data.prefetch import ShardPrefetcher
from simfle.data.sampler import Sampler

Ints = NDArray[np.int64]
Bytes = NDArray[np.uint8]


class TrainingData(Protocol):
    """Samples in the order of training, addressed by their ids.

    folders: shards, for messages; corpus: the shards with their manifests, None if there is no manifest; remote:
    whether local files are copies of shards at a URL; seed: seed of order and views; samples: number per epoch (0 =
    there are no epochs, and steps_per_epoch is infinite).
    """

    @property
    def folders(self) -> Sequence[str]: ...
    @property
    def corpus(self) -> ShardCorpus | None: ...
    @property
    def remote(self) -> bool: ...
    @property
    def seed(self) -> int: ...
    @property
    def global_batch(self) -> int: ...
    @property
    def samples(self) -> int: ...
    @property
    def steps_per_epoch(self) -> float: ...
    @property
    def description(self) -> str: ...

    def digest(self) -> str:
        """Return 16 hexadecimal digits that identify the data."""

    def batch_ids(self, step: int) -> tuple[Ints, int]:
        """Return the ids of a step's global batch, and its epoch."""

    def slot_ids(self, step: int, start: int, stop: int) -> tuple[Ints, int]:
        """Return the ids in slots start ... stop - 1 of a step's global batch [n], and the epoch of their views."""

    def read_image(self, sample_id: int) -> Bytes:
        """Return an image file [size] uint8, read-only. Raises SampleError if its bytes cannot be read."""

    def next_in_shard(self, sample_id: int) -> int:
        """Return the id of the sample that replaces this one if it cannot be decoded."""

    def key(self, sample_id: int) -> str:
        """Return the name of a sample, for messages."""

    def shard_location(self, sample_id: int) -> str:
        """Return the path or URL of a sample's shard, for messages."""

    def start_prefetch(self, slots: tuple[int, int], share: float) -> None:
        """Prefetch the remote shards of positions slots[0] ... slots[1] - 1 of each global batch.

        share: fraction of the cache for this process, 0 to 1.
        """

    def advance_to(self, step: int) -> None:
        """Prefetch the shards of this step and later ones."""

    def close(self) -> None:
        """Stop downloads."""


class OrderedShards:
    """Samples of a corpus in the exact order of its sampler; local shards, or shards fetched into a cache."""

    def __init__(self, corpus: ShardCorpus, sampler: Sampler) -> None:
        self.corpus, self.sampler = corpus, sampler
        self.folders, self.remote = corpus.folders, corpus.remote
        self.seed, self.global_batch = sampler.seed, sampler.global_batch
        self.samples, self.steps_per_epoch = sampler.samples, sampler.steps_per_epoch
        self.description, self.digest = sampler.describe, corpus.digest
        self.batch_ids, self.slot_ids = sampler.batch_ids, sampler.slot_ids
        self.next_in_shard = corpus.next_in_shard
        self._prefetcher: ShardPrefetcher | None = None

    def read_image(self, sample_id: int) -> Bytes:
        """Return an image file [size] uint8, read-only. Raises SampleError on a read error."""
        return self.corpus.read_image(*self._locate(sample_id))

    def key(self, sample_id: int) -> str:
        """Return the key of a sample, its name in the tar without extension."""
        return self.corpus.key(*self._locate(sample_id))

    def shard_location(self, sample_id: int) -> str:
        """Return the path or URL of a sample's shard."""
        return str(self.corpus.shard_location(self._locate(sample_id)[0]))

    def start_prefetch(self, slots: tuple[int, int], share: float) -> None:
        """Prefetch remote shards; local shards need none. Raises UserError if they do not fit into the cache."""
        if self.remote and self._prefetcher is None:
            self._prefetcher = ShardPrefetcher(self.corpus, self.sampler, slots, share)

    def advance_to(self, step: int) -> None:
        """Prefetch the shards of this step and later ones."""
        if self._prefetcher is not None:
            self._prefetcher.advance_to(step)

    def close(self) -> None:
        """Stop downloads and release the shards in the cache."""
        if self._prefetcher is not None:
            self._prefetcher.close()
            self._prefetcher = None

    def _locate(self, sample_id: int) -> tuple[int, int]:
        shard, sample = self.corpus.locate([sample_id])
        return int(shard[0]), int(sample[0])


def make_sampler(corpus: ShardCorpus, data: DataConfig, seed: int, global_batch: int) -> Sampler:
    """Build the sampler of `corpus`; its streams are the gcd of data.canonical_streams and the global batch."""
    streams = math.gcd(data.canonical_streams, global_batch)
    return Sampler(corpus.counts, corpus.first_ids, seed, streams, data.shuffle_window, global_batch)


def open_data(data: DataConfig, seed: int, global_batch: int, rank: int) -> TrainingData:
    """Open the data of a configuration. Raises UserError like `ShardCorpus` and `Sampler`."""
    if data.resampled:
        from simfle.data.storage.resampled import ResampledStream

        return ResampledStream(data, seed, global_batch, rank)
    corpus = open_corpus(data)
    return OrderedShards(corpus, make_sampler(corpus, data, seed, global_batch))
