"""Outputs of a run: metrics.jsonl, TensorBoard, and the consumed samples on request."""

import json
import logging
import math
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from shards.io.atomic import open_regular, read_text, replace_text
from shards.io.jsonl import iter_valid_lines
from shards.redact import to_json
from simfle.batch import Batch

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FILE = "metrics.jsonl"
log = logging.getLogger(__name__)


class MetricLogger:
    """Logger of one JSON object per logged step in RUN/metrics.jsonl, and the same numbers in RUN/tensorboard.

    On resume, lines of steps after the checkpoint are dropped, because these steps will be computed again.
    """

    def __init__(self, run: Path, resumed_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # imported by the main process only

        file = run / FILE
        if file.exists():
            lines = read_text(file, errors="replace").splitlines()
            kept = [line for line in lines if any(_step(found) <= resumed_step for found in iter_valid_lines(line))]
            replace_text(file, "".join(f"{line}\n" for line in kept))
        self._file = open_regular(file, "a", buffering=1)
        self._run = run
        self._hook = threading.excepthook
        threading.excepthook = self._thread_failed
        self._board: SummaryWriter | None = SummaryWriter(str(run / "tensorboard"), purge_step=resumed_step + 1)

    def log(self, step: int, values: dict[str, Any]) -> None:
        """Log `values`, numbers or dicts of numbers such as losses. A line also has the time, in seconds since 1970."""
        self._file.write(to_json({"step": step, "time": round(time.time(), 3), **values}) + "\n")
        numbers = flatten_metrics(values)

        def scalars(board: "SummaryWriter") -> None:
            for name, number in numbers.items():
                board.add_scalar(name, number, step)

        self._show(scalars)

    def log_image(self, name: str, image: np.ndarray, step: int) -> None:
        """Write an image, [H, W, 3] uint8, to TensorBoard."""
        self._show(lambda board: board.add_image(name, image, step, dataformats="HWC"))

    def close(self) -> None:
        self._show(lambda board: board.close())
        threading.excepthook = self._hook
        self._file.close()

    def _thread_failed(self, failure: threading.ExceptHookArgs) -> None:
        """Ignore a write error in TensorBoard's thread: its next call raises the same error, which `_show` reports."""
        ours = type(failure.thread).__module__.startswith("tensorboard.")
        if not (ours and isinstance(failure.exc_value, OSError)):
            self._hook(failure)

    def _show(self, write: Callable[["SummaryWriter"], object]) -> None:
        """Write to TensorBoard until it fails: the run continues, because metrics.jsonl has the same numbers."""
        if self._board is None:
            return
        try:
            write(self._board)
        except OSError as error:
            self._board = None
            log.warning("%s/tensorboard cannot be written (%s); the run continues without it", self._run, error)


def flatten_metrics(values: dict[str, Any]) -> dict[str, float]:
    """Return numbers and dicts of numbers as one dict, with names such as losses/total."""
    return {
        f"{name}/{part}" if part else name: number
        for name, value in values.items()
        for part, number in (value.items() if isinstance(value, dict) else [("", value)])
    }


class SampleLog:
    """Ids and checksums of consumed samples: RUN/samples/rank-N.jsonl, for audits and resume tests."""

    def __init__(self, run: Path, rank: int) -> None:
        folder = run / "samples"
        folder.mkdir(exist_ok=True)
        file = folder / f"rank-{rank:05d}.jsonl"
        self._file = open_regular(file, "a", buffering=1)
        if _torn(file):  # a kill or a full disk truncated the last line: do not append to this line
            self._file.write("\n")

    def add(self, step: int, micro: int, batch: Batch) -> None:
        """Write one line per micro-batch: sample ids, and a CRC-32 per sample over its views, face and group draw."""
        arrays = [
            tensor.cpu().contiguous().numpy() for tensor in (batch.view1, batch.view2, batch.face, batch.mask_uniform)
        ]
        crcs = [zlib.crc32(b"".join(array[row].tobytes() for array in arrays)) for row in range(len(batch.ids))]
        line = {"step": step, "micro": micro, "ids": batch.ids.tolist(), "crcs": crcs}
        self._file.write(json.dumps(line) + "\n")

    def close(self) -> None:
        self._file.close()


def _torn(file: Path) -> bool:
    """Return whether the last line of a file is incomplete."""
    with open_regular(file, "rb") as content:
        content.seek(max(0, file.stat().st_size - 1))
        return content.read() not in (b"", b"\n")


def _step(line: dict[str, Any]) -> float:
    """Return the step of a metrics line, or infinity for a line without a step."""
    try:
        return int(line["step"])
    except (ValueError, KeyError, TypeError, OverflowError):
        return math.inf
