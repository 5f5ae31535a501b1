"""Stream samples of tars without index or cache, with the webdataset library: random shards, endlessly.

Its guarantees are weaker than those of `simfle.data.sampler`, see `PROMISES`.
"""

# n samples
import logging
import math
import random
import re
import tarfile
from collections import deque
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from shards.format.external_tars import image_extension, list_tars, split_from_name
from shards.format.index import split_name
from shards.format.manifest import NAME, read_manifest
from shards.io.atomic import open_regular
from shards.io.bounded_tar import BoundedTar
from shards.io.hashing import short_hash
from shards.io.urls import check_url, is_url, join, open_url, with_retries
from shards.redact import redact_url
from simfle.config.schema import DataConfig
from simfle.errors import UserError

log = logging.getLogger(__name__)
Ints = NDArray[np.int64]
Bytes = NDArray[np.uint8]

PROMISES = (
    "data.resampled=true: each process draws shards at random with replacement. There are no epochs: some samples "
    "are drawn more often than others. A resumed run, or a run with a different number of processes, uses other "
    "samples. Nothing is compared with a manifest. Views still depend on (seed, step, sample) only. For exact order "
    "and resume use shards with a manifest"
)
SHUFFLED = 2048  # maximum number of samples in the shuffle buffer, per process
FAILURES = 10  # number of consecutive unreadable shards that ends the run
REMEMBERED = 256  # micro-batches whose ids and names can be looked up
TARS = (".tar", ".tar.gz", ".tgz")
MAX_IMAGE = 64 << 20  # bytes of an image file: a compressed tar of 64 kB may hold one of 64 MiB
_NO_SAMPLE = re.compile(r"__[^/]*__($|/)")  # members in which webdataset stores metadata of the tar


class ResampledStream:
    """`TrainingData` without order: returns the next samples, regardless of the requested slots.

    data.shards: tars, paths or URLs, with {000..099} expanded; or folders whose manifest lists them. A sample's id is a
    hash of its shard's name and its key. samples is 0 and steps_per_epoch infinite, because both are unknown.

    Raises:
        UserError: If there are no shards, or a URL is not allowed. While reading, if shards cannot be read.
    """

    corpus = None
    remote = False
    samples = 0
    steps_per_epoch = math.inf

    def __init__(self, data: DataConfig, seed: int, global_batch: int, rank: int) -> None:
        self.urls = expand(data.shards, data.splits)
        self.folders = tuple(redact_url(place) for place in data.shards)
        self.seed, self.global_batch, self.rank = seed, global_batch, rank
        self.window = min(data.shuffle_window, SHUFFLED)
        self.skipped = 0  # samples without an image
        self._iterator: Iterator[tuple[int, str, bytes]] | None = None
        self._images: dict[int, bytes] = {}  # images of the latest micro-batch
        self._taken: deque[tuple[int, dict[int, str]]] = deque(maxlen=REMEMBERED)
        self._failures, self._error = 0, ""
        self._heard = 0  # samples and failures so far
        if rank == 0:
            log.warning("%s", PROMISES)

    @property
    def description(self) -> str:
        """Return a description for log lines."""
        return f"a stream of {len(self.urls)} shards"

    def digest(self) -> str:
        """Return 16 hexadecimal digits that identify the list of shards; their content is unknown."""
        names = "\n".join(redact_url(url) for url in self.urls)
        return short_hash(names.encode()).hex()

    def slot_ids(self, step: int, start: int, stop: int) -> tuple[Ints, int]:
        """Return ids of the next stop - start samples of this process; the step replaces the epoch of their views."""
        if self._iterator is None:  # another start step gives another order of shards
            self._iterator = self._samples(f"{self.seed} {self.rank} {step}")
        taken = []
        for _ in range(start, stop):
            sample = next(self._iterator, None)
            if sample is None:
                raise UserError(f"data.shards: {FAILURES} consecutive shards cannot be read; last error: {self._error}")
            taken.append(sample)
        self._images = {number: image for number, _, image in taken}
        self._taken.append((step, {number: name for number, name, _ in taken}))
        return np.array([number for number, _, _ in taken], dtype=np.int64), step

    def batch_ids(self, step: int) -> tuple[Ints, int]:
        """Return ids that this process took for a recent step; those of other processes are unknown."""
        ids = [number for at, names in list(self._taken) if at == step for number in names]
        return np.array(ids, dtype=np.int64), step

    def read_image(self, sample_id: int) -> Bytes:
        """Return the image file [size] uint8 of a sample of the latest micro-batch."""
        return np.frombuffer(self._images[sample_id], dtype=np.uint8)

    def next_in_shard(self, sample_id: int) -> int:
        """Return the next sample of the latest micro-batch; after the last sample, the first."""
        numbers = list(self._images)
        return numbers[(numbers.index(sample_id) + 1) % len(numbers)]

    def key(self, sample_id: int) -> str:
        """Return shard and key of a recent sample; the id of an older sample."""
        return next((names[sample_id] for _, names in list(self._taken) if sample_id in names), str(sample_id))

    def shard_location(self, sample_id: int) -> str:
        """Return the same as `key`: a sample's name includes its shard."""
        return self.key(sample_id)

    def start_prefetch(self, slots: tuple[int, int], share: float) -> None:
        """Do nothing: shards are read while they arrive."""

    def advance_to(self, step: int) -> None:
        """Do nothing: each call of `slot_ids` returns the next samples."""

    def close(self) -> None:
        """Do nothing: open shards close with the iterator."""

    def _samples(self, seed: str) -> Iterator[tuple[int, str, bytes]]:
        """Yield id, name and image file endlessly."""
        from webdataset import ResampledShards, filters, tariterators  # slow: it imports torch's data loaders

        shards = ResampledShards(list(self.urls), worker_seed=lambda: seed, deterministic=True)
        samples = tariterators.group_by_keys(self._files(self._open(shards)), handler=self._failed)
        shuffled = filters.shuffle(self.window, self.window // 2, rng=random.Random(seed))
        yield from shuffled(self._usable(samples))

    def _open(self, shards: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Open shards. webdataset's own opener would run `pipe:` URLs, and curl for others, in a shell."""
        for shard in shards:
            url = shard["url"]
            try:
                file = with_retries(url, partial(_open_tar, url))
            except (OSError, UserError) as error:
                if not self._failed(error):
                    return
                continue
            before = self._heard
            with file:
                yield {"url": url, "stream": file}
            # Shards are drawn without end: shards without images would loop forever.
            if self._heard == before and not self._failed(UserError(f"{redact_url(url)} has no image")):
                return

    def _files(self, tars: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Yield name and content of each member, and {} at the end of a tar. webdataset's own reader has no limits.

        Members that are not images, or are too large for an image, are yielded without content.
        """
        for tar in tars:
            try:
                with BoundedTar.open(fileobj=tar["stream"], mode="r|*") as archive:
                    for name, content in _members(archive):
                        yield {"fname": name, "data": content, "__url__": tar["url"]}
                yield {}
            except Exception as error:  # noqa: BLE001 - corrupt tars and failing networks raise anything
                if not self._failed(error):
                    return

    def _usable(self, samples: Iterator[dict[str, Any]]) -> Iterator[tuple[int, str, bytes]]:
        for sample in samples:
            name = image_extension(sample)
            if name is None or not sample[name]:
                self.skipped += 1
                if math.log10(self.skipped).is_integer():
                    log.warning("data.resampled: %d samples so far had no image", self.skipped)
                continue
            self._failures = 0
            self._heard += 1
            place = f"{PurePosixPath(redact_url(sample['__url__'])).name}: {sample['__key__']}"
            number = int.from_bytes(short_hash(place.encode()), "big") >> 1
            yield number, place, sample[name]

    def _failed(self, error: Exception) -> bool:
        """Report a failed shard; return whether to continue with another one."""
        self._failures += 1
        self._heard += 1
        # webdataset adds objects and the URL to an error's arguments.
        said = ", ".join(redact_url(part) for part in error.args if isinstance(part, str))
        self._error = f"{type(error).__name__}: {said or error}"
        log.warning("data.resampled: shard skipped: %s", self._error)
        return self._failures < FAILURES


def _members(archive: tarfile.TarFile) -> Iterator[tuple[str, bytes]]:
    while (item := archive.next()) is not None:
        archive.members.clear()  # type: ignore[attr-defined] # otherwise tarfile keeps every header
        if item.isreg() and not _NO_SAMPLE.match(item.name):
            wanted = image_extension([split_name(item.name)[1]]) is not None and item.size <= MAX_IMAGE
            file = archive.extractfile(item) if wanted else None
            yield item.name, file.read() if file else b""


def _open_tar(url: str) -> IO[bytes]:
    return open_url(url) if is_url(url) else open_regular(Path(url), "rb")


def expand(places: Sequence[str], splits: Sequence[str]) -> tuple[str, ...]:
    """Return the tars of `data.shards` for streaming: in folders only those of `splits`. Raises UserError."""
    import braceexpand

    tars: list[str] = []
    for place in (each for pattern in places for each in braceexpand.braceexpand(pattern)):
        if is_url(place):
            check_url(place)
        path = place.partition("?")[0]
        if path.endswith(TARS):
            if not is_url(place) and not Path(place).is_file():
                raise UserError(f"data.shards: {place} does not exist. Fix: check the path.")
            tars.append(place)
        elif is_url(place) or (Path(place) / NAME).exists():
            chosen = [shard for shard in read_manifest(place).shards if not splits or shard.split in splits]
            tars += [join(place, shard.file) if is_url(place) else str(Path(place) / shard.file) for shard in chosen]
        else:
            tars += [str(tar) for tar in list_tars(Path(place)) if not splits or split_from_name(tar.name) in splits]
    if not tars:
        raise UserError(
            f"data.shards: no shards to stream in {', '.join(map(redact_url, places))}, splits {list(splits)}. "
            "Fix: check data.shards and data.splits."
        )
    return tuple(tars)
