"""Replace samples that cannot be read or decoded.

The replacement is the next decodable sample of the same shard (after the last sample, the first). It receives the view
parameters and the group of the corrupt sample, so that no image appears twice in the same view. The replacement depends
only on the shards and the decoder, not on the process, the number of processes, or earlier samples. Decoders tolerate
different errors: a run resumed with another backend may replace other samples.
"""

# n samples of a micro-batch
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simfle.data.backends.base import RenderedViews, ViewBackend, used_here
from simfle.data.dataset import SampleError
from simfle.data.training_data import TrainingData
from simfle.data.views import BatchViewParams, ViewParams
from simfle.errors import UserError

Ints = NDArray[np.int64]
Bytes = NDArray[np.uint8]

MAX_REPLACEMENT_TRIES = 64  # samples tried after a corrupt one; if none can be decoded, the shard is probably corrupt
NOTHING: Bytes = np.zeros(0, np.uint8)  # no decoder accepts an empty file


@dataclass(frozen=True)
class Replacement:
    """Record of an undecodable sample: `id`, `key` in `shard`, was replaced by `replaced_by` at `step` (from 0)."""

    step: int
    id: int
    replaced_by: int
    key: str
    shard: str


class CorruptSampleReplacer:
    """Renderer of micro-batches that replaces corrupt samples, at no cost unless the backend finds one."""

    def __init__(self, data: TrainingData, backend: ViewBackend) -> None:
        self.data, self.backend = data, backend
        self._known: dict[int, int] = {}  # found earlier by this process, not tried again
        self._found: deque[Replacement] = deque()
        self._lock = threading.Lock()

    def render(self, step: int, ids: Ints, draws: BatchViewParams) -> tuple[Ints, RenderedViews]:
        """Return the views of n samples, rendered with their view parameters, and the ids [n] of the samples in them.

        Raises:
            UserError: If no sample near a corrupt one can be decoded, or a shard cannot be opened.
        """
        fed = ids
        if self._known and self.data.corpus is not None:  # in a stream, the next samples change
            fed = np.array([self._known.get(number, number) for number in ids.tolist()])
        rendered = self.backend.render(self._images(fed), draws)
        if rendered.corrupt:
            fed = self._replace(fed.copy(), rendered, draws)
            for i in rendered.corrupt:
                self._note(step, int(ids[i]), int(fed[i]))
        return fed, rendered

    def is_decodable(self, number: int, draws: BatchViewParams) -> bool:
        """Return whether a sample can be decoded now; False in a stream. draws: view parameters of any one sample."""
        if self.data.corpus is None:
            return False
        try:
            return not self.backend.render(self._images(np.array([number])), draws).corrupt
        except (UserError, ValueError):  # its shard cannot be opened, or is not selected
            return False

    def count_replacements(self, step: int) -> int:
        """Return the number of replacements in steps up to `step` that have not been returned yet."""
        with self._lock:
            return sum(each.step <= step for each in self._found)

    def pop_replacements(self, step: int) -> list[Replacement]:
        """Return and forget the replacements in steps up to `step`, each sample once."""
        with self._lock:
            return [self._found.popleft() for _ in range(sum(each.step <= step for each in self._found))]

    def _replace(self, fed: Ints, rendered: RenderedViews, draws: BatchViewParams) -> Ints:
        """Render a decodable sample in place of each corrupt one and write the id of that sample to `fed` [n]."""
        bad = rendered.corrupt
        for _ in range(MAX_REPLACEMENT_TRIES):
            for i in bad:
                fed[i] = self.data.next_in_shard(int(fed[i]))
            again = self.backend.render(self._images(fed[bad]), rows(draws, bad))
            used_here(again.view1, again.view2, again.face)
            good = [j for j in range(len(bad)) if j not in again.corrupt]
            places = [bad[j] for j in good]
            for name in ("view1", "view2", "face"):
                getattr(rendered, name)[places] = getattr(again, name)[good]
            bad = [bad[j] for j in again.corrupt]
            if not bad:
                return fed
        raise UserError(
            f"shards: {self.data.shard_location(int(fed[bad[0]]))}: {MAX_REPLACEMENT_TRIES} consecutive samples "
            "cannot be decoded. Fix: run simfle shards verify, then copy or build the corrupt shards again."
        )

    def _images(self, ids: Ints) -> list[Bytes]:
        return [self._image(number) for number in ids.tolist()]

    def _image(self, number: int) -> Bytes:
        try:
            return self.data.read_image(number)
        except SampleError:
            return NOTHING

    def _note(self, step: int, number: int, by: int) -> None:
        first = number not in self._known
        self._known[number] = by
        if first:
            found = Replacement(step, number, by, self.data.key(number), self.data.shard_location(number))
            with self._lock:
                self._found.append(found)


def rows(draws: BatchViewParams, chosen: Sequence[int]) -> BatchViewParams:
    """Select the view parameters of some of n samples."""
    first, second = (ViewParams(**{name: value[chosen] for name, value in vars(view).items()}) for view in draws.views)
    return BatchViewParams((first, second), draws.group[chosen])
