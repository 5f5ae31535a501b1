"""Prefetch the remote shards that this process's streams need next, and keep them in the cache."""

import logging
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import IO

from shards.io.open_files import raise_limit
from shards.reading.cache import GB, CacheFullError, DownloadCancelledError, cached_bytes
from simfle.data.dataset import ShardCorpus
from simfle.data.sampler import Sampler
from simfle.data.storage.stores import RemoteStore
from simfle.errors import UserError

log = logging.getLogger(__name__)
DOWNLOADS = 4  # concurrent downloads
OTHER_FILES = 448  # open files of the rest of the program
MORE = 8  # minimum number of prefetched shards beyond those in use


class ShardPrefetcher:
    """Keep the shards of the current and the next windows open, and therefore in the cache.

    slots: start and stop of this process's slots in a global batch; share: this process's fraction of the cache, 0 to
    1. No process keeps more than its fraction, so that processes never wait for each other.

    Call `advance_to` before the samples of a step are read, and `close` at the end.

    Raises:
        UserError: If the shards in use at one time do not fit into the fraction.
    """

    def __init__(self, corpus: ShardCorpus, order: Sampler, slots: tuple[int, int], share: float) -> None:
        self._corpus, self._order, self._share = corpus, order, share
        each = order.global_batch // order.streams
        self._streams = range(slots[0] // each, -(-slots[1] // each))
        self._budget = min(place.cache.limit for place in corpus.stores if isinstance(place, RemoteStore)) * share
        self._held: dict[int, IO[bytes]] = {}
        self._wanted: frozenset[int] = frozenset()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._at: tuple[int, range] | None = None
        self._pool = ThreadPoolExecutor(DOWNLOADS, thread_name_prefix="ahead")

    def advance_to(self, step: int) -> None:
        """Release the shards used only by earlier steps; start to fetch those of this step and later ones."""
        at = self._order.windows(step)
        if at == self._at:
            return
        self._at = at
        wanted = self._choose(*at)
        raise_limit(2 * len(wanted) + OTHER_FILES)
        with self._lock:
            self._wanted = frozenset(wanted)
            for shard in self._held.keys() - self._wanted:
                self._held.pop(shard).close()
            missing = [shard for shard in wanted if shard not in self._held]
        self._corpus.retain_open(self._wanted)
        for shard in missing:
            self._pool.submit(self._fetch, shard)

    def wait(self) -> None:
        """Wait until each requested shard has been fetched or has failed."""
        self._pool.shutdown(wait=True)
        self._pool = ThreadPoolExecutor(DOWNLOADS, thread_name_prefix="ahead")

    def close(self) -> None:
        """Stop downloads and release all shards."""
        self._stop.set()
        self._pool.shutdown(wait=True, cancel_futures=True)
        for file in self._held.values():
            file.close()
        self._held = {}

    def _choose(self, epoch: int, windows: range) -> list[int]:
        """Return all remote shards in use, then those needed next, as many as the budget allows."""
        sizes: dict[int, int] = {}
        for window in windows:
            sizes |= self._sizes(epoch, window)
        needed, used = len(sizes), sum(sizes.values())
        if used > self._budget:
            raise UserError(
                f"data.cache_gb: this process uses shards of {used / GB:.3g} GB at once, but its part of the cache is "
                f"{self._budget / GB:.3g} GB. Fix: set data.cache_gb to at least {used / self._share / GB:.3g}, or "
                "reduce data.canonical_streams or data.shuffle_window."
            )
        for more in self._later(epoch, windows):
            for shard, size in more.items():
                if shard not in sizes:
                    used += size
                    if used > self._budget or len(sizes) >= 2 * needed + MORE:
                        return list(sizes)
                    sizes[shard] = size
        return list(sizes)

    def _later(self, epoch: int, windows: range) -> Iterator[dict[int, int]]:
        """Yield the shards of each later window, to the end of the next epoch."""
        last = self._order.windows((epoch + 1) * self._order.steps_per_epoch - 1)[1].stop
        yield from (self._sizes(epoch, window) for window in range(windows.stop, last))
        yield from (self._sizes(epoch + 1, window) for window in range(last))

    def _sizes(self, epoch: int, window: int) -> dict[int, int]:
        """Return remote shards of a window in this process's streams, with their bytes."""
        found = {}
        for stream in self._streams:
            for shard in self._order.window_shards(epoch, stream, window).tolist():
                place, info = self._corpus.shards[shard]
                if place.remote:
                    found[shard] = cached_bytes(info)
        return found

    def _fetch(self, shard: int) -> None:
        place, info = self._corpus.shards[shard]
        if shard not in self._wanted or not isinstance(place, RemoteStore):
            return
        try:
            file = place.fetch(info, wait=0.0, stop=lambda: self._stop.is_set() or shard not in self._wanted)
        except (CacheFullError, DownloadCancelledError):
            return  # other processes use the space, so the shard is fetched when it is read
        except UserError as error:
            log.warning("cannot prefetch a shard: %s", error)
            return
        with self._lock:
            if shard in self._wanted and shard not in self._held and not self._stop.is_set():
                self._held[shard] = file
                return
        file.close()
