"""Detect collapse of features during training, from the features that each method's forward pass computes anyway.

On every `train.log_every`-th step the methods keep the features of that step (`Method.note`). One all-gather brings at
most SAMPLES of them to the main process, which computes the measures. Other steps cost nothing. The first step has the
features of the initial weights: a random network of the same shape (or the weights of model.init), the baseline for
all later measures.
"""

# n samples, C dimensions
import json
import logging
from contextlib import suppress
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from shards.io.atomic import read_bytes, write_atomic
from shards.io.jsonl import loads_object
from simfle.models import collapse_metrics
from simfle.models.base import Method, to_fp32
from simfle.runtime import run_files
from simfle.runtime.distributed import World

FILE = "initial.json"
SAMPLES = 256  # samples over all processes; the eigenvalues of their Gram matrix take 5 ms on one core
LASTING = 3  # consecutive low measures before a warning
log = logging.getLogger(__name__)
Measures = dict[str, dict[str, float]]


class FeatureTelemetry:
    """Measures by branch: features (the backbone's), projection, face (FaceMAE's mean token).

    Names of the measures: rank (effective rank of the first view), dimensions and samples (bounds of the rank), random
    (the same measures of the initial weights), alignment (if a branch has two views). The class uses no random number
    and changes no loss.
    """

    def __init__(self, run: Path, model: Method, world: World, first: int) -> None:
        self.file, self.model, self.world = run / FILE, model, world
        self.random = _read(self.file) if world.is_main and first else {}
        self._low = 0
        self._warned = False

    def begin(self, due: bool) -> None:
        """Set whether the methods keep features; called before the forward passes of a step."""
        self.model.record_enabled = due
        self.model.recorded_features.clear()

    @torch.no_grad()
    def measure(self, step: int) -> Measures:
        """Compute the measures after the forward passes of a step. Collective; returns {} on other processes."""
        kept, self.model.record_enabled = dict(self.model.recorded_features), False
        self.model.recorded_features.clear()
        branches = _gathered(kept, self.world)
        if not self.world.is_main or not all(
            bool(view.isfinite().all()) for each in branches.values() for view in each
        ):
            return {}
        found = {name: _measures(views) for name, views in branches.items()}
        if step == 1:
            self.random = {name: {"rank": each["rank"], "spread": each["spread"]} for name, each in found.items()}
            with suppress(OSError):  # a full disk must not end a run here
                write_atomic(self.file, json.dumps(self.random, indent=1).encode())
        for name, each in found.items():
            each.update({f"random_{what}": value for what, value in self.random.get(name, {}).items()})
        self._warn(found.get("features", {}))
        return found

    def _warn(self, features: dict[str, float]) -> None:
        """Log one warning when LASTING consecutive measurements show collapsed features."""
        self._low = self._low + 1 if run_files.is_collapsed(features) else 0
        if self._low == LASTING and not self._warned:
            self._warned = True
            log.warning("%s", warning(features, self.model.config.init))


def warning(features: dict[str, float], init: str = "") -> str:
    """Return one line: the problem and how to fix it. init: model.init of the run."""
    baseline = f"the weights of model.init={init}" if init else "a random network of this shape"
    return (
        f"features use {features['rank']:.1f} of {features['dimensions']:.0f} dimensions, {baseline} "
        f"{features['random_rank']:.1f}: the features collapse. Fix: start a new train.run_dir with "
        f"model.decorrelation_weight=0.02 (byol, simfle) or a lower optim.lr; see {run_files.COLLAPSE_PAGE}"
    )


def _measures(views: tuple[Tensor, ...]) -> dict[str, float]:
    first = views[0]
    found = {
        "rank": float(collapse_metrics.effective_rank(first)),
        "dimensions": float(first.shape[1]),
        "samples": float(first.shape[0]),
        "spread": float(collapse_metrics.spread(first)),
        "uniformity": float(collapse_metrics.uniformity(first)),
    }
    if len(views) > 1:
        found["alignment"] = float(collapse_metrics.alignment(*views))
    return found


def _gathered(kept: dict[str, list[tuple[Tensor, ...]]], world: World) -> dict[str, tuple[Tensor, ...]]:
    """Gather features of all micro-batches and processes, at most SAMPLES rows, in one all-gather of one matrix."""
    if not kept:
        return {}
    views = [(name, to_fp32(torch.cat(parts))) for name, micros in kept.items() for parts in zip(*micros, strict=True)]
    columns = [view for _, view in views]
    widths = [column.shape[1] for column in columns]
    rows = torch.cat(columns, dim=1)[: max(1, SAMPLES // world.world_size)].contiguous()
    if world.world_size > 1:
        parts = [torch.empty_like(rows) for _ in range(world.world_size)]
        dist.all_gather(parts, rows)
        rows = torch.cat(parts)
    found: dict[str, tuple[Tensor, ...]] = {}
    for (name, _), part in zip(views, rows.split(widths, dim=1), strict=True):
        found[name] = (*found.get(name, ()), part)
    return found


def _read(file: Path) -> Measures:
    """Read the measures of the first step, or return {} if the file is missing or invalid."""
    try:
        content = loads_object(read_bytes(file))
    except (OSError, ValueError):
        return {}
    tables = {name: each for name, each in content.items() if isinstance(each, dict)}
    return {
        name: {what: float(value) for what, value in each.items() if type(value) in (int, float)}
        for name, each in tables.items()
    }
