"""Image decoders of an evaluation: OpenCV, DALI, or FFCV if a beton of the split exists."""

import importlib.util
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from simfle.config.schema import ViewsConfig
from simfle.errors import UserError
from simfle.eval.data.splits import SplitSource
from simfle.eval.features.ffcv_format import find_ffcv_files, load_ffcv

if TYPE_CHECKING:
    from simfle.data.backends.dali import Dali
    from simfle.eval.features.ffcv_loader import FfcvLoader

log = logging.getLogger(__name__)

OPENCV, FFCV, AUTO = "opencv", "ffcv", "auto"
_OPEN = 4  # betons open for reading at once, each with its buffers


@dataclass
class DecoderPool:
    """Select a decoder for each source. kind: opencv, dali, ffcv or auto; ffcv_files: files or folders with betons.

    A beton is used only for a source with exactly the same samples.
    """

    kind: str = OPENCV
    ffcv_files: tuple[str, ...] = ()
    _known: dict[str, Path | None] = field(default_factory=dict)  # betons by the digest of the source
    _ready: "dict[tuple[Path, int, int, int], FfcvLoader]" = field(default_factory=dict)
    _pipelines: "dict[tuple, tuple[Dali, ThreadPoolExecutor]]" = field(default_factory=dict)

    def name(self, source: SplitSource) -> str:
        """Return opencv, dali or ffcv.

        Raises:
            UserError: If ffcv is requested without a beton, or a given beton is missing or corrupt.
        """
        if self.kind not in (FFCV, AUTO):
            return self.kind
        beton = self._find(source)
        if self.kind == FFCV and beton is None:
            raise UserError(
                f"decoder=ffcv: no beton of split {source.name!r} of {', '.join(source.corpus.folders)}. Fix: run "
                "simfle shards ffcv, or set decoder=auto."
            )
        return FFCV if beton else OPENCV

    def open_ffcv(self, source: SplitSource, side: int, batch: int, threads: int) -> "FfcvLoader":
        """Open the beton of a source; compile its loader once per side and batch. Raises UserError without FFCV."""
        file = self._find(source)
        if file is None:
            raise ValueError(f"no beton of split {source.name!r}; call name() first")
        asked = file, side, batch, threads
        if asked not in self._ready:
            while len(self._ready) >= _OPEN:
                self._ready.pop(next(iter(self._ready)))
            self._ready[asked] = load_ffcv("simfle.eval.features.ffcv_loader").FfcvLoader(*asked)
        return self._ready[asked]

    def dali(
        self, size: int, ratio: tuple[float, float], threads: int, batch: int, device: torch.device, image: str
    ) -> "tuple[Dali, ThreadPoolExecutor]":
        """Return a pipeline that makes `image` of `size`, and its only thread; both are built once for all passes."""
        from simfle.data.backends.dali import Dali

        asked = size, ratio, threads, batch, device, image
        if asked not in self._pipelines:
            while len(self._pipelines) >= _OPEN:
                old, thread = self._pipelines.pop(next(iter(self._pipelines)))
                thread.shutdown()
                old.close()
            config = ViewsConfig(size=size, face_size=size, ratio=list(ratio))
            self._pipelines[asked] = (
                Dali(config, threads, batch, device, images=[image]),
                ThreadPoolExecutor(1, "dali", _set_device, (device,)),
            )
        return self._pipelines[asked]

    def _find(self, source: SplitSource) -> Path | None:
        if source.digest not in self._known:
            folders = [folder for folder in source.corpus.folders if Path(folder).is_dir()]
            found = find_ffcv_files([*self.ffcv_files, *folders]).get(source.digest)
            if found and self.kind == AUTO and importlib.util.find_spec("ffcv") is None:
                log.warning("%s exists, but ffcv cannot be imported (see docs/evaluation.md): using OpenCV", found)
                found = None
            self._known[source.digest] = found
        return self._known[source.digest]


def _set_device(device: torch.device) -> None:
    """Select the GPU of this thread, because each thread starts with GPU 0."""
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
