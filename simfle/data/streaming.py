"""Samples of tars that can be neither indexed nor cached, by the webdataset library: shards drawn at random, for ever.

What it promises is less than what `simfle.data.order` does, see `PROMISES`.
"""

# n samples
import hashlib
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
from numpy.typing import ArrayLike, NDArray

from shards.files import open_regular
from shards.foreign import image_of, split_of, tars_in
from shards.index import split_name
from shards.manifest import NAME, read_manifest
from shards.redact import shown
from shards.remote import check_url, is_url, join, open_url, retried
from shards.tarred import BoundedTar
from simfle.config import DataConfig
from simfle.errors import UserError

log = logging.getLogger(__name__)
Ints = NDArray[np.int64]
Bytes = NDArray[np.uint8]

PROMISES = (
    "data.streaming: shards are drawn at random with replacement, each process for itself. There are no epochs: some "
    "samples come more often than others. A resumed run, or one on another number of processes, gets other samples. "
    "Nothing is compared with a manifest. Views still depend on (seed, step, sample) only. For exact order and resume "
    "use shards with a manifest"
)
SHUFFLED = 2048  # most samples in memory that are shuffled among each other, per process
FAILURES = 10  # shards in a row that cannot be read before the run ends
REMEMBERED = 256  # micro-batches whose ids and names can be asked for
TARS = (".tar", ".tar.gz", ".tgz")
MOST_IMAGE = 64 << 20  # bytes of an image file: a compressed tar of 64 kB may hold one of 64 MiB
_NO_SAMPLE = re.compile(r"__[^/]*__($|/)")  # members that webdataset keeps for words about the tar


class Stream:
    """Stands in for a `Corpus` and its `Order` in a `Loader`: its samples are what comes next, whatever is asked for.

    data.shards: tars, paths or URLs, with {000..099} expanded; or folders whose manifest lists them. A sample's id is a
    hash of its shard's name and its key. samples, steps_per_epoch: unknown, 0 and infinite.

    Raises:
        UserError: no shards, a URL that is not allowed; later: shards that cannot be read.
    """

    remote = False
    samples = 0
    steps_per_epoch = math.inf

    def __init__(self, data: DataConfig, seed: int, global_batch: int, rank: int) -> None:
        self.urls = expand(data.shards, data.splits)
        self.folders = tuple(shown(place) for place in data.shards)
        self.seed, self.global_batch, self.rank = seed, global_batch, rank
        self.window = min(data.window, SHUFFLED)
        self.skipped = 0  # samples without an image
        self._iterator: Iterator[tuple[int, str, bytes]] | None = None
        self._images: dict[int, bytes] = {}  # of the micro-batch taken last
        self._taken: deque[tuple[int, dict[int, str]]] = deque(maxlen=REMEMBERED)
        self._failures, self._error = 0, ""
        self._heard = 0  # samples and failures so far
        if rank == 0:
            log.warning("%s", PROMISES)

    @property
    def extent(self) -> str:
        """What there is, for people."""
        return f"a stream of {len(self.urls)} shards"

    def digest(self) -> str:
        """16 hexadecimal digits that name the list of shards; their content is not known."""
        names = "\n".join(shown(url) for url in self.urls)
        return hashlib.blake2b(names.encode(), digest_size=8).hexdigest()

    def slots(self, step: int, start: int, stop: int) -> tuple[Ints, int]:
        """Ids of the next stop - start samples of this process; the step stands in for the epoch of their views."""
        if self._iterator is None:  # started at another step, it draws other shards
            self._iterator = self._samples(f"{self.seed} {self.rank} {step}")
        taken = []
        for _ in range(start, stop):
            sample = next(self._iterator, None)
            if sample is None:
                raise UserError(f"data.shards: {FAILURES} shards in a row could not be read, at last {self._error}")
            taken.append(sample)
        self._images = {number: image for number, _, image in taken}
        self._taken.append((step, {number: name for number, name, _ in taken}))
        return np.array([number for number, _, _ in taken], dtype=np.int64), step

    def batch(self, step: int) -> tuple[Ints, int]:
        """Ids that this process took for a step not long ago: the other processes' are not known."""
        ids = [number for at, names in list(self._taken) if at == step for number in names]
        return np.array(ids, dtype=np.int64), step

    def locate(self, ids: ArrayLike) -> tuple[Ints, Ints]:
        """Places for `image`, `key` and `tar`: the ids themselves."""
        numbers = np.asarray(ids, dtype=np.int64)
        return numbers, np.zeros_like(numbers)

    def image(self, number: int, _: int) -> Bytes:
        """The image file [size] uint8 of a sample of the micro-batch taken last."""
        return np.frombuffer(self._images[number], dtype=np.uint8)

    def following(self, number: int) -> int:
        """The sample behind one of the micro-batch taken last, the first behind its last."""
        numbers = list(self._images)
        return numbers[(numbers.index(number) + 1) % len(numbers)]

    def key(self, number: int, _: int) -> str:
        """Shard and key of a sample taken not long ago; the id where it is forgotten."""
        return next((names[number] for _, names in list(self._taken) if number in names), str(number))

    def tar(self, number: int) -> str:
        """The same: a sample's name says where it lies."""
        return self.key(number, 0)

    def _samples(self, seed: str) -> Iterator[tuple[int, str, bytes]]:
        """Without end: id, name and image file."""
        from webdataset import ResampledShards, filters, tariterators  # it imports torch's data loaders, and is slow

        shards = ResampledShards(list(self.urls), worker_seed=lambda: seed, deterministic=True)
        samples = tariterators.group_by_keys(self._files(self._open(shards)), handler=self._failed)
        shuffled = filters.shuffle(self.window, self.window // 2, rng=random.Random(seed))
        yield from shuffled(self._usable(samples))

    def _open(self, shards: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """webdataset's own opener would run `pipe:` URLs, and curl for others, in a shell."""
        for shard in shards:
            url = shard["url"]
            try:
                file = retried(url, partial(_open_tar, url))
            except (OSError, UserError) as error:
                if not self._failed(error):
                    return
                continue
            before = self._heard
            with file:
                yield {"url": url, "stream": file}
            # Shards are drawn without end: of those that hold nothing, no sample would ever come.
            if self._heard == before and not self._failed(UserError(f"{shown(url)} holds no image")):
                return

    def _files(self, tars: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Name and content of each member, {} behind the last one of a tar; webdataset's own reader has no bounds.

        Members that are no images, or too large for one, come without content.
        """
        for tar in tars:
            try:
                with BoundedTar.open(fileobj=tar["stream"], mode="r|*") as archive:
                    for name, content in _members(archive):
                        yield {"fname": name, "data": content, "__url__": tar["url"]}
                yield {}
            except Exception as error:  # noqa: BLE001 - of damaged tars, and networks that fail, anything is raised
                if not self._failed(error):
                    return

    def _usable(self, samples: Iterator[dict[str, Any]]) -> Iterator[tuple[int, str, bytes]]:
        for sample in samples:
            name = image_of(sample)
            if name is None or not sample[name]:
                self.skipped += 1
                if math.log10(self.skipped).is_integer():
                    log.warning("data.streaming: %d samples so far had no image", self.skipped)
                continue
            self._failures = 0
            self._heard += 1
            place = f"{PurePosixPath(shown(sample['__url__'])).name}: {sample['__key__']}"
            number = int.from_bytes(hashlib.blake2b(place.encode(), digest_size=8).digest(), "big") >> 1
            yield number, place, sample[name]

    def _failed(self, error: Exception) -> bool:
        """Whether to go on with another shard."""
        self._failures += 1
        self._heard += 1
        # webdataset adds objects and the URL to an error's arguments.
        said = ", ".join(shown(part) for part in error.args if isinstance(part, str))
        self._error = f"{type(error).__name__}: {said or error}"
        log.warning("data.streaming: a shard is passed over: %s", self._error)
        return self._failures < FAILURES


def _members(archive: tarfile.TarFile) -> Iterator[tuple[str, bytes]]:
    while (item := archive.next()) is not None:
        archive.members.clear()  # type: ignore[attr-defined] # tarfile keeps every header otherwise
        if item.isreg() and not _NO_SAMPLE.match(item.name):
            wanted = image_of([split_name(item.name)[1]]) is not None and item.size <= MOST_IMAGE
            file = archive.extractfile(item) if wanted else None
            yield item.name, file.read() if file else b""


def _open_tar(url: str) -> IO[bytes]:
    return open_url(url) if is_url(url) else open_regular(Path(url), "rb")


def expand(places: Sequence[str], splits: Sequence[str]) -> tuple[str, ...]:
    """The tars that `data.shards` means when it is streamed: of folders only those of `splits`. Raises UserError."""
    import braceexpand

    tars: list[str] = []
    for place in (each for pattern in places for each in braceexpand.braceexpand(pattern)):
        if is_url(place):
            check_url(place)
        path = place.partition("?")[0]
        if path.endswith(TARS):
            if not is_url(place) and not Path(place).is_file():
                raise UserError(f"data.shards: there is no {place}")
            tars.append(place)
        elif is_url(place) or (Path(place) / NAME).exists():
            chosen = [shard for shard in read_manifest(place).shards if not splits or shard.split in splits]
            tars += [join(place, shard.file) if is_url(place) else str(Path(place) / shard.file) for shard in chosen]
        else:
            tars += [str(tar) for tar in tars_in(Path(place)) if not splits or split_of(tar.name) in splits]
    if not tars:
        raise UserError(f"data.shards: no shards to stream in {', '.join(map(shown, places))}, splits {list(splits)}")
    return tuple(tars)
