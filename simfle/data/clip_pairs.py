"""Use another frame of the same clip as view 2, for corpora with clip metadata.

Source: TimeAug in Shu, Gu, Yang, Lo 2022 (arXiv 2210.03853): the positives of contrastive learning are two frames of
one video, a short time apart. In this project, the second frame is drawn uniformly from the clip's other samples within
a window, as a pure function of (seed, epoch, sample id). The sample order does not change: an epoch still uses every
sample once as view 1.

A clip is the samples of one shard folder with equal `group` and `extras.sequence` in their metadata, ordered by
`extras.frame`, such as CK+ built with --all-frames. A build spreads the frames of a clip over all shards, so view 2
reads different shards from view 1, and shards must be local. The table of clips takes 32 bytes per sample and is read
once, at the start, from the metadata of every sample.
"""

# N samples with a clip, n samples of a micro-batch, S side of a view
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from simfle.config.schema import DataConfig
from simfle.data.backends.base import ViewBackend, used_here
from simfle.data.corrupt_samples import NOTHING, rows
from simfle.data.dataset import SampleError, ShardCorpus
from simfle.data.philox import PARTNER, key, philox
from simfle.data.views import BatchViewParams
from simfle.errors import UserError

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ClipTable:
    """Table of the samples with clip metadata, sorted by clip, frame and id.

    ids: [N] int64, global sample ids; clips: [N] int64, 0, 1, 2, ... without a gap; frames: [N], positions in the clip.
    """

    ids: Ints
    clips: Ints
    frames: Floats

    @cached_property
    def _order(self) -> Ints:
        return np.argsort(self.ids)

    def partners(self, seed: int, epoch: int, ids: ArrayLike, window: float = 0.0) -> Ints:
        """Return for each sample the id of another frame of its clip, or its own id if there is none.

        Args:
            seed: seed of the run.
            epoch: epoch of the samples.
            ids: global sample ids [n].
            window: maximum distance of both frames, in units of `extras.frame` (0 = the whole clip).

        Returns:
            Global sample ids [n].
        """
        wanted = np.asarray(ids, dtype=np.int64)
        at = np.minimum(np.searchsorted(self.ids, wanted, sorter=self._order), max(0, len(self.ids) - 1))
        words = _words(seed, epoch, wanted)
        partners = wanted.copy()
        for i, row in enumerate(self._order[at].tolist() if len(self.ids) else []):
            if self.ids[row] == wanted[i]:
                partners[i] = self.ids[self._other_row(row, words[i], window)]
        return partners

    def _other_row(self, row: int, word: int, window: float) -> int:
        """Choose a row of the same clip within the window by a random word, or the row itself if there is no other."""
        first, last = np.searchsorted(self.clips, [self.clips[row], self.clips[row] + 1]).tolist()
        reach = window or math.inf
        near = self.frames[first:last]
        low = first + int(np.searchsorted(near, self.frames[row] - reach, side="left"))
        high = first + int(np.searchsorted(near, self.frames[row] + reach, side="right"))
        others = high - low - 1
        if others < 1:
            return row
        chosen = low + (word * others >> 32)
        return chosen + (chosen >= row)  # skips the row itself


class ClipPairs:
    """Renderer of view 2 from each sample's partner. `backend` renders only `view2`."""

    def __init__(self, corpus: ShardCorpus, data: DataConfig, seed: int, backend: ViewBackend) -> None:
        self.corpus, self.seed, self.window, self.backend = corpus, seed, data.pair_window, backend
        self.table = read_clips(corpus)

    def view2(self, epoch: int, ids: Ints, draws: BatchViewParams) -> Tensor:
        """Render view 2 [n, 3, S, S] of decodable samples `ids` [n] with their view parameters.

        A partner that cannot be decoded is replaced by the sample itself.
        """
        rendered = self.backend.render(self._images(self.table.partners(self.seed, epoch, ids, self.window)), draws)
        if bad := rendered.corrupt:
            again = self.backend.render(self._images(ids[bad]), rows(draws, bad))
            used_here(rendered.view2, again.view2)
            rendered.view2[bad] = again.view2
        return rendered.view2

    def close(self) -> None:
        """Close the backend."""
        self.backend.close()

    def _images(self, ids: Ints) -> list[NDArray[np.uint8]]:
        images = []
        for shard, sample in zip(*self.corpus.locate(ids), strict=True):
            try:
                images.append(self.corpus.read_image(int(shard), int(sample)))
            except SampleError:
                images.append(NOTHING)
        return images


def check_pair(data: DataConfig, remote: bool = False) -> None:
    """Raise a UserError if this data does not support the configured pairing."""
    if data.pair == "clip" and (data.resampled or remote):
        what = "data.resampled=true" if data.resampled else "shards from URLs"
        raise UserError(f"data.pair=clip: not possible with {what}. Fix: use local shards, or data.pair=image.")


def read_clips(corpus: ShardCorpus) -> ClipTable:
    """Read the clip of every sample from its metadata; samples that cannot be read have none.

    Raises:
        UserError: If no two samples share a clip, or a sample's metadata are corrupt.
    """
    folders = {id(store): number for number, store in enumerate(corpus.stores)}
    found: list[tuple[tuple[int, str, str], float, int]] = []  # clip, frame, id
    for shard, (store, info) in enumerate(corpus.shards):
        for sample in range(info.samples):
            try:
                known = corpus.metadata(shard, sample)
            except SampleError:
                continue
            clip = _clip(known)
            if clip is not None:
                group, sequence, frame = clip
                number = int(corpus.first_ids[shard]) + sample
                found.append(((folders[id(store)], group, sequence), frame, number))
    found.sort()
    names = [name for name, _, _ in found]
    clips = np.cumsum([0, *(a != b for a, b in pairwise(names))], dtype=np.int64)[: len(names)]
    if len(set(names)) == len(names):
        raise UserError(
            "data.pair=clip: no two samples of these shards have the same group and extras.sequence and a frame. "
            "Fix: build shards with the frames of each sequence, such as ckplus --all-frames, or set data.pair=image."
        )
    ids = np.array([number for _, _, number in found], dtype=np.int64)
    return ClipTable(ids, clips, np.array([frame for _, frame, _ in found], dtype=np.float64))


def _clip(known: dict[str, object]) -> tuple[str, str, float] | None:
    """Return group, sequence and frame of a sample's metadata, or None if sequence or frame is missing or invalid."""
    extras = known.get("extras")
    if not isinstance(extras, dict):
        return None
    sequence, frame = extras.get("sequence"), extras.get("frame")
    if not isinstance(sequence, str | int) or not isinstance(frame, int | float) or not math.isfinite(frame):
        return None
    return str(known.get("group", "")), str(sequence), float(frame)


def _words(seed: int, epoch: int, ids: Ints) -> Sequence[int]:
    """Return one random word, 0 to 2**32 - 1, of each sample in an epoch."""
    samples = ids.astype(np.uint64)
    counter = np.zeros((len(ids), 4), dtype=np.uint32)
    counter[:, 0] = samples.astype(np.uint32)  # the lower 32 bits
    counter[:, 1] = (samples >> np.uint64(32)).astype(np.uint32)
    counter[:, 2] = epoch
    return philox(counter, key(seed, PARTNER))[:, 0].tolist()
