"""Probe a run on labeled shards during training: kNN and a linear probe, compared with a random network.

At every `monitor.probe_every`-th step the main process copies the backbone and measures the copy in eval mode. The
run's state and random state do not change. Meanwhile the other processes wait in the next collective, so a measurement
that takes longer than `monitor.max_seconds` is aborted.
"""

# n fitting samples, m validation samples, C channels
import json
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shards.io.atomic import read_bytes, write_atomic
from shards.io.jsonl import loads_object
from simfle.config.schema import MonitorConfig, PretrainConfig
from simfle.data.loader import threads_per_process
from simfle.errors import UserError
from simfle.eval.backbones.load import BackboneMetadata, LoadedBackbone, build_network, frozen, recalibrate_batchnorm
from simfle.eval.config import LinearFastConfig
from simfle.eval.data.splits import Split, name_classes, read_split
from simfle.eval.features.extractor import Extractor
from simfle.eval.protocols import knn, linear_fast
from simfle.models import collapse_metrics
from simfle.runtime.collective import main_process_tries
from simfle.runtime.distributed import World
from simfle.train.checkpointing.state_dict import State, gather_model_state

FILE = "monitor.json"
FAST = LinearFastConfig(epochs=40, lrs=[0.003, 0.01, 0.03, 0.1, 0.3], weight_decays=[0.0, 1e-3, 1e-2])
NEIGHBORS = (5, 10, 20, 50, 100, 200)
HEAT = 0.07
HELD = 10  # one in HELD fitting images is held out, to choose the probes' settings
CALIBRATION = 2000  # images for the BatchNorm statistics of a random network
BELOW = "online.backbone."
log = logging.getLogger(__name__)


class ProbeTimeoutError(Exception):
    """Error: a measurement takes longer than monitor.max_seconds."""


class Monitor:
    """Monitor of knn, linear, rank, and those of the random network. All processes call `due(step)`, then
    `measure(step, ...)`."""

    def __init__(self, config: PretrainConfig, world: World, steps: int, alive: Callable[[], None]) -> None:
        """Open the shards. alive: called during a measurement, to prevent a timeout of the watchdog. Raises UserError
        for invalid shards."""
        self.config, self.settings, self.world, self.steps = config, config.monitor, world, steps
        self.file, self.alive = Path(config.train.run_dir) / FILE, alive
        self.random: dict[str, float] = {}
        self.splits: tuple[Split, Split] | None = None
        if self.settings.probe_every and self.settings.shards:
            self._open()

    def due(self, step: int) -> bool:
        """Return whether a measurement follows this step; the same on every process."""
        every = self.settings.probe_every if self.settings.shards else 0
        return every > 0 and (step % every == 0 or step == self.steps)

    def begin(self, step: int, engine: Any) -> None:
        """Measure the random network before the first step; in a resumed run, read that measurement."""
        if not self.due(self.steps):
            return
        if step:
            self.random = _read(self.file) if self.world.is_main else {}
            return
        found = self._measured(engine, random=True)
        self.random = {f"random_{name}": value for name, value in found.items()}
        if self.world.is_main:
            with suppress(OSError):
                write_atomic(self.file, json.dumps(self.random, indent=1).encode())

    def measure(self, engine: Any) -> dict[str, float]:
        """Measure the backbone. Collective; returns the measures on the main process, nothing on others or on a
        timeout."""
        found = self._measured(engine, random=False)
        return found | self.random if found else {}

    def _measured(self, engine: Any, *, random: bool) -> dict[str, float]:
        weights = gather_model_state(engine, keep=self.world.is_main, below=BELOW)
        if self.splits is None:
            return {}
        try:
            return self._probe(weights, *self.splits, random=random)
        except ProbeTimeoutError:
            log.warning(
                "monitor.max_seconds=%g: the probes take longer and are skipped. Fix: set monitor.fit_samples=%d, or "
                "raise monitor.max_seconds",
                *(self.settings.max_seconds, self.settings.fit_samples // 2),
            )
        except (UserError, OSError) as error:  # a failure of the labeled shards must not end a run
            log.warning("monitor.shards: %s; this probe is skipped, the run continues", error)
        return {}

    def _probe(self, weights: State, fit: Split, val: Split, *, random: bool) -> dict[str, float]:
        end = time.monotonic() + self.settings.max_seconds
        threads = threads_per_process(self.config.data.decode_threads, self.world.local_world_size)
        extractor = Extractor(self.config.views.size, 256, self.world.device, threads)
        # The first weights of a run from model.init are not random: compare with a new network.
        backbone = self._copy({} if random and self.config.model.init else weights)
        if random:
            recalibrate_batchnorm(backbone, extractor.images(fit.source, fit.rows[:CALIBRATION]))
        features = []
        for split in (fit, val):
            parts = []
            for part in extractor.features(backbone, split):
                parts.append(part)
                self.alive()
                if time.monotonic() > end:
                    raise ProbeTimeoutError
            features.append(torch.cat(parts).cpu())
        labels, wanted = (torch.from_numpy(split.labels) for split in (fit, val))
        linear, near = accuracies(features[0], labels, features[1], wanted)
        self.alive()
        return {"linear": linear, "knn": near, "rank": float(collapse_metrics.effective_rank(features[1]))}

    def _copy(self, weights: State) -> LoadedBackbone:
        model, size = self.config.model, self.config.views.size
        with torch.random.fork_rng():
            network = build_network(model.backbone, size, model.output_stride)
        if weights:
            network.load_state_dict({name.removeprefix(BELOW): value for name, value in weights.items()})
        channels = int(network.num_features)  # type: ignore[arg-type]
        colors = tuple(model.mean), tuple(model.std)
        card = BackboneMetadata(
            model.backbone, "online", channels, *colors, size, {}, output_stride=model.output_stride
        )
        return LoadedBackbone(frozen(network.to(self.world.device), card).to(self.world.device), card)

    def _open(self) -> None:
        """Read the splits on the main process; if that fails, all processes exit with its reason."""

        def read() -> tuple[Split, Split]:
            try:
                return read_splits(self.settings)
            except UserError as error:
                advice = "set monitor.fit_split and monitor.val_split to splits with labels."
                joined = f" Or {advice}" if "Fix: " in str(error) else f". Fix: {advice}"
                raise UserError(f"monitor.shards: {error}{joined}") from None

        self.splits = main_process_tries(self.world, read)


def read_splits(settings: MonitorConfig) -> tuple[Split, Split]:
    """Return the fitting split, `monitor.fit_samples` fixed random images, and the validation split. Raises
    UserError."""
    fit, val = (read_split(settings.shards, name) for name in (settings.fit_split, settings.val_split))
    rows = np.random.Generator(np.random.Philox(key=0)).permutation(len(fit))[: settings.fit_samples]
    return fit.only(np.sort(rows)), name_classes(val, fit.classes)


def accuracies(fit: Tensor, labels: Tensor, val: Tensor, wanted: Tensor) -> tuple[float, float]:
    """Return accuracies of a linear probe and of kNN on validation features [m, C], fitted on `fit` [n, C].

    A tenth of `fit` selects the settings of both; validation is used once.
    """
    held = torch.arange(len(fit)) % HELD == 0
    classes = int(labels.max()) + 1
    scale = linear_fast.FeatureScaling.of(fit[~held])
    weight, bias = linear_fast.fit(scale(fit[~held]), torch.eye(classes)[labels[~held]], FAST, 0)
    best = (linear_fast.predict(scale(fit[held]), weight, bias).argmax(2) == labels[held]).float().mean(1).argmax()
    linear = (linear_fast.predict(scale(val), weight, bias)[best].argmax(1) == wanted).float().mean()
    cosines, places = knn.neighbors(fit[~held], fit[held], max(NEIGHBORS))
    votes = {k: knn.vote(cosines, places, labels[~held], classes, k, HEAT) for k in NEIGHBORS}
    k = max(NEIGHBORS, key=lambda each: int((votes[each] == labels[held]).sum()))
    near = knn.vote(*knn.neighbors(fit, val, k), labels, classes, k, HEAT)
    return float(linear), float((near == wanted).float().mean())


def _read(file: Path) -> dict[str, float]:
    try:
        found = loads_object(read_bytes(file))
    except (OSError, ValueError):
        return {}
    return {name: float(value) for name, value in found.items() if type(value) in (int, float)}
