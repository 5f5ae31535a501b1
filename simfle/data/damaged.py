"""What is fed in the place of a sample that cannot be read or decoded.

The rule: the next sample of the same shard that can be decoded (after the shard's last comes its first), with the views
and the group that were drawn for the damaged one, so that no image comes twice in the same view. It depends on the
shards and the decoder alone: not on the process, the number of processes, or what came before. Decoders differ in what
they forgive; a run that goes on with another backend may replace other samples.
"""

# n samples of a micro-batch
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simfle.data.reader import Corpus, SampleError
from simfle.data.rendered import Backend, Rendered, used_here
from simfle.data.streaming import Stream
from simfle.data.views import View, ViewDraws
from simfle.errors import UserError

Ints = NDArray[np.int64]
Bytes = NDArray[np.uint8]

TRIES = 64  # samples behind a damaged one; where none of them can be decoded, more is wrong than a sample
NOTHING: Bytes = np.zeros(0, np.uint8)  # no decoder takes it


@dataclass(frozen=True)
class Replacement:
    """Sample `id`, `key` in `shard`, could not be decoded when `step` (from 0) needed it; `by` was fed instead."""

    step: int
    id: int
    by: int
    key: str
    shard: str


class Mender:
    """Renders micro-batches without damaged samples. Nothing is done for it unless the backend finds one."""

    def __init__(self, corpus: Corpus | Stream, backend: Backend) -> None:
        self.corpus, self.backend = corpus, backend
        self._known: dict[int, int] = {}  # found before, here: they need not be tried again
        self._found: deque[Replacement] = deque()
        self._lock = threading.Lock()

    def render(self, step: int, ids: Ints, draws: ViewDraws) -> tuple[Ints, Rendered]:
        """The views of n samples with their draws, and the ids [n] of those that were really fed.

        Raises:
            UserError: no sample near a damaged one can be decoded; a shard that cannot be opened.
        """
        fed = ids
        if self._known and isinstance(self.corpus, Corpus):  # a stream has other samples behind a sample each time
            fed = np.array([self._known.get(number, number) for number in ids.tolist()])
        rendered = self.backend.render(self._images(fed), draws)
        if rendered.damaged:
            fed = self._mend(fed.copy(), rendered, draws)
            for i in rendered.damaged:
                self._note(step, int(ids[i]), int(fed[i]))
        return fed, rendered

    def sound(self, number: int, draws: ViewDraws) -> bool:
        """Whether a sample can be decoded now. draws: any of one sample. Of a stream nothing can be tried again."""
        if not isinstance(self.corpus, Corpus):
            return False
        try:
            return not self.backend.render(self._images(np.array([number])), draws).damaged
        except (UserError, ValueError):  # its shard cannot be opened; it is of no chosen shard
            return False

    def take(self, step: int) -> list[Replacement]:
        """Those found in steps up to `step` and not taken yet, each sample once."""
        with self._lock:
            return [self._found.popleft() for _ in range(sum(each.step <= step for each in self._found))]

    def _mend(self, fed: Ints, rendered: Rendered, draws: ViewDraws) -> Ints:
        """Render what stands in for the damaged samples into their places; `fed` [n] gets the ids."""
        bad = rendered.damaged
        for _ in range(TRIES):
            for i in bad:
                fed[i] = self.corpus.following(int(fed[i]))
            again = self.backend.render(self._images(fed[bad]), rows(draws, bad))
            used_here(again.view1, again.view2, again.face)
            good = [j for j in range(len(bad)) if j not in again.damaged]
            places = [bad[j] for j in good]
            for name in ("view1", "view2", "face"):
                getattr(rendered, name)[places] = getattr(again, name)[good]
            bad = [bad[j] for j in again.damaged]
            if not bad:
                return fed
        shard = self.corpus.locate(fed[bad[:1]])[0][0]
        raise UserError(
            f"shards: {self.corpus.tar(int(shard))}: {TRIES} samples in a row cannot be decoded; "
            "simfle shards verify tells what is damaged; copy or build the shards again"
        )

    def _images(self, ids: Ints) -> list[Bytes]:
        shards, samples = self.corpus.locate(ids)
        return [self._image(int(shard), int(sample)) for shard, sample in zip(shards, samples, strict=True)]

    def _image(self, shard: int, sample: int) -> Bytes:
        try:
            return self.corpus.image(shard, sample)
        except SampleError:
            return NOTHING

    def _note(self, step: int, number: int, by: int) -> None:
        first = number not in self._known
        self._known[number] = by
        if first:
            shard, sample = (int(part[0]) for part in self.corpus.locate([number]))
            found = Replacement(step, number, by, self.corpus.key(shard, sample), str(self.corpus.tar(shard)))
            with self._lock:
                self._found.append(found)


def rows(draws: ViewDraws, chosen: Sequence[int]) -> ViewDraws:
    """The draws of some of n samples."""
    first, second = (View(**{name: value[chosen] for name, value in vars(view).items()}) for view in draws.views)
    return ViewDraws((first, second), draws.group[chosen])
