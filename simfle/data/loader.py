"""Convert step numbers to batches: order -> bytes -> views, prefetched by a background thread."""

# B global batch, R processes, n samples of a micro-batch
import importlib.util
import logging
import os
import queue
import threading
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass

import torch

from shards.io.wait_status import current_wait
from simfle.batch import Batch
from simfle.config.schema import DataConfig, ViewsConfig
from simfle.data.backends.base import IMAGES, ViewBackend, used_here
from simfle.data.clip_pairs import ClipPairs, check_pair
from simfle.data.corrupt_samples import CorruptSampleReplacer, Replacement
from simfle.data.training_data import TrainingData
from simfle.data.views import check, sample_view_params
from simfle.errors import UserError
from simfle.runtime.entrypoint import OWN_CORES

log = logging.getLogger(__name__)
BACKENDS = ("auto", "opencv", "dali")
LAUNCHING = (
    2  # cores left by DALI's threads, which are busy all the time: forward's thread and backward's launch on them
)


@dataclass(frozen=True)
class RankSlice:
    """Part of each global batch for one process: process `rank` of `world_size`, in `grad_accum_steps` micro-batches.

    Its samples are the slots rank * B/R ... (rank + 1) * B/R - 1, split into `grad_accum_steps` equal parts.
    local_world_size: number of processes on this machine, which share its cores.
    """

    rank: int = 0
    world_size: int = 1
    local_world_size: int = 1
    grad_accum_steps: int = 1


def choose_backend(name: str, device: torch.device) -> str:
    """Return opencv or dali for `DataConfig.backend`; auto is dali with a GPU and DALI, otherwise opencv.

    Raises:
        UserError: If the name is unknown.
    """
    if name not in BACKENDS:
        raise UserError(f"data.backend={name!r}: unknown. Fix: choose from {', '.join(BACKENDS)}.")
    if name != "auto":
        return name
    if device.type != "cuda":
        return "opencv"
    if not has_dali():
        log.warning("data.backend: DALI is not installed; decoding uses the CPU. Fix: pip install 'simfle[dali]'.")
        return "opencv"
    return "dali"


def has_dali() -> bool:
    """Return whether DALI is installed, without importing it."""
    return importlib.util.find_spec("nvidia") is not None and importlib.util.find_spec("nvidia.dali") is not None


def threads_per_process(threads: int, local_size: int, spare: int = 0) -> int:
    """Return the number of decoding threads: as configured, or the available cores divided by the sharing processes.

    spare: cores of the process that stay free for other threads.
    """
    sharing = 1 if OWN_CORES in os.environ else local_size
    return threads if threads > 0 else max(1, len(os.sched_getaffinity(0)) // sharing - spare)


class Loader:
    """Loader of the micro-batches of one process. Its only state is the step at which `batches` starts.

    The same step gives the same ids, view parameters and pixels, independent of earlier steps and of the number of
    processes. `data_wait_seconds`: seconds that the consumer has waited for batches so far. The ids of a batch are
    those of its actual samples: an undecodable sample is replaced (see `simfle.data.corrupt_samples`). images: the
    requested images of a `Batch`; the others have side 0.

    Raises:
        UserError: If the global batch is not divisible by processes x micro-batches, a setting of the views is out of
            range, or the backend is unknown or not installed.
    """

    def __init__(
        self,
        source: TrainingData,
        views: ViewsConfig,
        data: DataConfig,
        share: RankSlice,
        device: torch.device,
        images: Sequence[str] = IMAGES,
    ) -> None:
        check(views)
        parts = share.world_size * share.grad_accum_steps
        if source.global_batch % parts:
            raise UserError(
                f"train.global_batch={source.global_batch}: not divisible by {share.world_size} processes x "
                f"{share.grad_accum_steps} micro-batches. Fix: choose a multiple of {parts}."
            )
        self.source, self.views, self.share, self.device = source, views, share, device
        self.micro_batch = source.global_batch // parts
        self.prefetch = max(1, data.prefetch_batches)
        self.data_wait_seconds = 0.0
        self._since: float | None = None  # time at which the consumer began to wait for the current batch
        self._thread: int | None = None
        self.backend_name = choose_backend(data.backend, device)
        on_gpu = self.backend_name == "dali" and device.type == "cuda"
        threads = threads_per_process(data.decode_threads, share.local_world_size, LAUNCHING if on_gpu else 0)
        check_pair(data, remote=source.corpus is None or source.remote)  # checked before downloads start
        slots = source.global_batch // share.world_size
        source.start_prefetch((share.rank * slots, (share.rank + 1) * slots), 1 / max(1, share.local_world_size))
        self._pairs: ClipPairs | None = None
        if data.pair == "clip" and source.corpus is not None and "view2" in images:
            second = _make_backend(self.backend_name, views, threads, self.micro_batch, device, ("view2",))
            self._pairs = ClipPairs(source.corpus, data, source.seed, second)
            images = [name for name in images if name != "view2"]
        self._backend = _make_backend(self.backend_name, views, threads, self.micro_batch, device, images)
        self._replacer = CorruptSampleReplacer(source, self._backend)

    def batches(self, start_step: int) -> Generator[Batch, None, None]:
        """Yield the `grad_accum_steps` micro-batches of each optimizer step from `start_step`, endlessly.

        Batches are on the device. One thread prefetches `data.prefetch_batches` micro-batches. The thread's errors are
        raised here; the thread ends when the iterator is closed or garbage-collected. Use one iterator at a time:
        iterators share the backend.
        """
        ready: queue.Queue[Batch | BaseException] = queue.Queue(self.prefetch)
        stop = threading.Event()
        thread = threading.Thread(target=self._produce, args=(start_step, ready, stop), name="loader", daemon=True)
        thread.start()
        self._thread = thread.ident
        try:
            while True:
                self._since = begin = time.perf_counter()
                batch = ready.get()
                self._since = None
                self.data_wait_seconds += time.perf_counter() - begin
                if isinstance(batch, BaseException):
                    raise batch
                yield _to_consumer_stream(batch, self.device)
        finally:
            self._since = None
            stop.set()
            thread.join()

    def waiting_for(self) -> str:
        """Return the data that delays the current batch, or "" if the consumer has waited for less than a second."""
        since = self._since
        if since is None or time.perf_counter() - since < 1:
            return ""
        return current_wait(self._thread) or f"a batch (for {time.perf_counter() - since:.0f} s)"

    def batch(self, step: int, micro: int) -> Batch:
        """Make micro-batch `micro` of a step synchronously."""
        start = (self.share.rank * self.share.grad_accum_steps + micro) * self.micro_batch
        ids, epoch = self.source.slot_ids(step, start, start + self.micro_batch)
        draws = sample_view_params(self.source.seed, epoch, ids, self.views)
        fed, rendered = self._replacer.render(step, ids, draws)
        view2 = rendered.view2 if self._pairs is None else self._pairs.view2(epoch, fed, draws)
        return Batch(rendered.view1, view2, rendered.face, torch.from_numpy(fed), torch.from_numpy(draws.group))

    def count_corrupt(self, step: int) -> int:
        """Return the number of samples that `corrupt_samples` would return."""
        return self._replacer.count_replacements(step)

    def corrupt_samples(self, step: int) -> list[Replacement]:
        """Return the samples found corrupt in the batches up to `step`, each once."""
        return self._replacer.pop_replacements(step)

    def is_decodable(self, number: int) -> bool:
        """Return whether a sample found to be corrupt can be decoded now. Do not call this while batches are made."""
        return self._replacer.is_decodable(number, sample_view_params(self.source.seed, 0, [number], self.views))

    def close(self) -> None:
        """Stop the backend's threads and downloads. Close iterators first."""
        self.source.close()
        if self._pairs is not None:
            self._pairs.close()
        self._backend.close()

    def _produce(self, step: int, ready: "queue.Queue[Batch | BaseException]", stop: threading.Event) -> None:
        try:
            if self.device.type == "cuda" and self.device.index is not None:
                torch.cuda.set_device(self.device)  # set in each thread: this one would otherwise allocate on GPU 0
            while not stop.is_set():
                self.source.advance_to(step)
                for micro in range(self.share.grad_accum_steps):
                    if stop.is_set() or not _put(ready, self.batch(step, micro), stop):
                        return
                step += 1
        except BaseException as error:  # noqa: BLE001 - the consumer must see every error
            _put(ready, error, stop)


def _to_consumer_stream(batch: Batch, device: torch.device) -> Batch:
    """Prepare a batch for work on the current stream of `device`."""
    used_here(batch.view1, batch.view2, batch.face)
    return batch.to(device)


def _put(ready: "queue.Queue[Batch | BaseException]", item: Batch | BaseException, stop: threading.Event) -> bool:
    """Put into a bounded queue unless stopped; return False if stopped."""
    while not stop.is_set():
        try:
            ready.put(item, timeout=0.1)
        except queue.Full:
            continue
        return True
    return False


def _make_backend(
    name: str, views: ViewsConfig, threads: int, micro_batch: int, device: torch.device, images: Sequence[str]
) -> ViewBackend:
    # Imported here: neither backend needs the other's library.
    if name == "opencv":
        from simfle.data.backends.opencv import OpenCV

        return OpenCV(views, threads, pin=device.type == "cuda", images=images)
    from simfle.data.backends.dali import Dali

    return Dali(views, threads, micro_batch, device, images=images)
