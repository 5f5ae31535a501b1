"""Evaluate backbones: independent tasks, skipped if complete, split across processes."""

import logging
import math
import os
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from shards.io.hashing import digest
from simfle.errors import UserError
from simfle.eval.analysis import metrics
from simfle.eval.analysis.metrics import MAIN
from simfle.eval.analysis.results import CLASSES, FORMAT, Result, Samples, read_result, write_result
from simfle.eval.analysis.summary import Summary, summarize, write_summary
from simfle.eval.backbones.external import open_backbone
from simfle.eval.backbones.load import BackboneMetadata, LoadedBackbone, random_backbone, recalibrate_batchnorm
from simfle.eval.config import EvalConfig
from simfle.eval.data.benchmarks import Benchmark, settings
from simfle.eval.data.folds import BenchmarkData, FoldSplits, describe, fold_splits, read_data
from simfle.eval.data.targets import NoTargetsError
from simfle.eval.features import feature_cache
from simfle.eval.features.decoders import DecoderPool
from simfle.eval.features.extractor import Extractor
from simfle.eval.features.resize import RULE
from simfle.eval.probe import probe_file, write_probe
from simfle.eval.protocols.base import PROTOCOLS, ProtocolInputs, ProtocolResult, parse
from simfle.eval.protocols.linear import epoch_order
from simfle.eval.tasks import BackboneIdentity, EvalTask, eval_tasks, identify, tensors_digest
from simfle.runtime.device import device_errors_as_user_errors
from simfle.runtime.provenance import git_revision, versions

log = logging.getLogger(__name__)

CALIBRATION = 1024  # training images for recomputing a random backbone's BatchNorm statistics


def evaluate(config: EvalConfig, command: list[str]) -> Summary:
    """Run this process's part of the tasks, and write the summary of all complete tasks.

    Processes (torchrun, accelerate: RANK and WORLD_SIZE) take every n-th task without communicating. Each writes the
    summary at its end, so the last one writes the complete summary.

    A benchmark that lacks the data for a protocol (votes, landmarks) is skipped with a warning.

    Raises:
        UserError: If all tasks were skipped; see also `eval_tasks` and `run_task`.
    """
    work = eval_tasks(config)
    rank, size = (int(os.environ.get(name, default)) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1")))
    bench = Evaluator(config)
    mine: dict[int, Result] = {}
    lacking: dict[tuple[str, str], NoTargetsError] = {}
    for place in range(rank, len(work), size):
        what = work[place].benchmark.name, work[place].protocol
        if what in lacking:
            continue
        try:
            with device_errors_as_user_errors("lower forward_batch, or the batch of the protocol"):
                mine[place] = bench.run(work[place], command)
        except NoTargetsError as error:  # other benchmarks may have the data
            lacking[what] = error
            log.warning("%s / %s is skipped: %s", *what, error)
    found = [mine.get(place) or bench.cached_result(unit) for place, unit in enumerate(work)]
    done = [result for result in found if result is not None]
    if lacking and not done:
        raise next(iter(lacking.values()))
    log.info("%d of %d tasks are complete", len(done), len(work))
    summary = summarize(done, command, asdict(config), config.bootstrap_samples)
    write_summary(Path(config.out) / "summary.json", summary)
    return summary


def run_task(config: EvalConfig, task: EvalTask, command: list[str]) -> Result:
    """Compute one task and write its file, or read the file if it exists with the same identity.

    On one machine, the same inputs give the same numbers; an interrupted task starts from the beginning.

    Raises:
        UserError: If data for the protocol is missing, or the disk is full; see also `read_data`, `fold_splits` and
            `open_backbone`.
    """
    return Evaluator(config).run(task, command)


class Evaluator:
    """State shared by the tasks of one process: device, and the most recent backbones and data."""

    def __init__(self, config: EvalConfig) -> None:
        self.config = config
        self.device = _device(config)
        self._loaders = DecoderPool(config.decoder, tuple(config.ffcv_files))
        self._data: dict[str, BenchmarkData] = {}
        self._known: dict[str, BackboneIdentity] = {}
        feature_cache.delete_incomplete(self._cache)
        _use_deterministic_kernels(self.device)

    def run(self, task: EvalTask, command: list[str]) -> Result:
        """See `run_task`."""
        if found := self.cached_result(task):
            log.info("%s: already complete", task)
            return found
        data, known = self._read(task.benchmark), self._identify(task.source)
        identity = self._identity(task, data, known)
        path = task.path(self.config)
        if path.is_file():
            log.warning("%s: %s has other settings, data or weights; recomputing", task, path)
        log.info("%s", task)
        began = time.monotonic()
        backbone, jobs, outcomes = self._outcomes(task, data)
        result = self._result(task, known, backbone, data, jobs, outcomes)
        made = {**result, "identity": identity, "command": command, "seconds": round(time.monotonic() - began, 3)}
        finished = Result(**made, config=asdict(self.config), versions=versions(), git=git_revision())
        if not math.isfinite(finished.score):
            raise UserError(
                f"protocols: {task}: {finished.metric} is {finished.score}. "
                "Fix: choose smaller learning rates for this protocol, or export the backbone again."
            )
        try:
            self._store_probe(task, finished, outcomes, backbone.card.features)
            write_result(Path(self.config.out), finished)
        except OSError as error:
            raise UserError(
                f"out={self.config.out}: {path} cannot be written: {error.strerror}. "
                "Fix: check the disk, or choose another folder."
            ) from None
        log.info("%s: %s %.4f", task, finished.metric, finished.score)
        return read_result(path)  # returns exactly what later reads return

    def _store_probe(self, task: EvalTask, result: Result, outcomes: list[ProtocolResult], channels: int) -> None:
        """Write the fitted probe beside the result, or delete that of an earlier result.

        Only a probe of the backbone as it is in its file: not of random or recalibrated ones, nor of one of several
        folds.
        """
        file, probe = probe_file(task.path(self.config)), outcomes[0].probe
        for part in (file.with_suffix(".json"), file):
            part.unlink(missing_ok=True)
        if probe is None or task.random or self._calibrates(task) or len(outcomes) > 1:
            return
        about: dict[str, Any] = {
            "classes": result.classes,
            "features": channels,
            "size": result.settings["size"],
            "resize": RULE,
            "backbone": {name: result.backbone[name] for name in ("sha256", "source", "model")},
            **{name: getattr(result, name) for name in ("benchmark", "protocol", "seed")},
            "data": {name: result.data[name] for name in ("train", "val", "test")},
            "val": {result.metric: result.chosen[0][result.metric]},
            "test": {name: result.metrics[name] for name in ("accuracy", "balanced_accuracy", "macro_f1")},
            "intervals": {name: list(bounds) for name, bounds in result.metrics["intervals"].items()},
            "majority": float(np.bincount(outcomes[0].labels).max() / len(outcomes[0].labels)),
            "calibration_error": outcomes[0].calibration_error,
        }
        write_probe(file, probe, about)

    def cached_result(self, task: EvalTask) -> Result | None:
        """Return the result of a task if it exists for these settings, data and weights."""
        path = task.path(self.config)
        if not path.is_file():
            return None
        found = read_result(path)
        identity = self._identity(task, self._read(task.benchmark), self._identify(task.source))
        return found if found.identity == identity else None

    def _read(self, benchmark: Benchmark) -> BenchmarkData:
        if benchmark.name not in self._data:
            self._data = {benchmark.name: read_data(benchmark)}  # keeps one in memory: tasks are ordered by benchmark
        return self._data[benchmark.name]

    def _identify(self, source: str) -> BackboneIdentity:
        if source not in self._known:
            self._known[source] = identify(source)
        return self._known[source]

    def _identity(self, unit: EvalTask, data: BenchmarkData, known: BackboneIdentity) -> str:
        """Return a digest of all inputs that affect the numbers."""
        card = known.card
        shape = [card.name, card.size, card.mean, card.std]
        weights = [*(shape if unit.random else [known.sha256]), self._calibrates(unit)]
        return digest([FORMAT, weights, unit.protocol, unit.seed, self._settings(unit, data, card)])

    def _settings(self, unit: EvalTask, data: BenchmarkData, card: BackboneMetadata) -> dict[str, Any]:
        """Return all inputs except backbone, protocol and seed; they must be equal for averaging over seeds."""
        protocol = PROTOCOLS[parse(unit.protocol)[0]]
        read = {unit.protocol: protocol.part} | ({"linear_fast": "linear_fast"} if protocol.module == "cam" else {})
        splits = [split for split in (data.train, data.val, data.test) if split]
        return {
            "benchmark": settings(unit.benchmark),
            "size": self.config.image_size or card.size,
            "resize": RULE,
            **{name: asdict(getattr(self.config, part)) for name, part in read.items()},
            "data": data.digest(),
            "decoded": [
                self._loaders.name(split.source) for split in splits
            ],  # pixels differ slightly between decoders
        }

    def _outcomes(
        self, unit: EvalTask, data: BenchmarkData
    ) -> tuple[LoadedBackbone, list[FoldSplits], list[ProtocolResult]]:
        name, share = parse(unit.protocol)
        card = self._identify(unit.source).card
        extractor = self._extractor(self.config.image_size or card.size)
        found = list(fold_splits(data, share, unit.seed))
        backbone = random_backbone(card, unit.seed) if unit.random else open_backbone(unit.source)
        backbone.module.to(self.device)
        if self._calibrates(unit) and name != "scratch":
            train = found[0].train
            rows = train.rows[epoch_order(len(train), 0, 0)[:CALIBRATION]]
            recalibrate_batchnorm(backbone, extractor.images(train.source, rows))
        weights = tensors_digest(backbone)
        benchmark = unit.benchmark
        outcomes = []
        for each in found:
            normalizer = benchmark.nme_points.left, benchmark.nme_points.right
            job = ProtocolInputs(
                backbone,
                weights,
                each,
                self.config,
                PROTOCOLS[name].part,
                benchmark.metric,
                unit.seed,
                extractor,
                benchmark.landmark_indices,
                normalizer,
            )
            outcomes.append(PROTOCOLS[name].run(job))
        return backbone, found, outcomes

    def _calibrates(self, unit: EvalTask) -> bool:
        return self.config.recalibrate_bn == "all" or (self.config.recalibrate_bn == "random" and unit.random)

    def _extractor(self, size: int) -> Extractor:
        local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        threads = self.config.threads or max(1, len(os.sched_getaffinity(0)) // local)
        return Extractor(size, self.config.forward_batch, self.device, threads, self._cache, self._loaders)

    @property
    def _cache(self) -> Path:
        return Path(self.config.cache_dir or Path(self.config.out) / "features")

    def _result(
        self,
        unit: EvalTask,
        known: BackboneIdentity,
        backbone: LoadedBackbone,
        data: BenchmarkData,
        found: list[FoldSplits],
        outcomes: list[ProtocolResult],
    ) -> dict[str, Any]:
        """Return the fields of the result that come from the computation."""
        kind = PROTOCOLS[parse(unit.protocol)[0]].kind
        metric = unit.benchmark.metric if kind == CLASSES else MAIN[kind]
        samples = _samples(found, outcomes)
        labels, predictions = (
            np.concatenate([getattr(each, name) for each in outcomes]) for name in ("labels", "predictions")
        )
        measured: dict[str, Any] = {**metrics.measure(kind, labels, predictions, len(data.classes))}
        measured["intervals"] = metrics.intervals(
            kind, labels, [predictions], samples.groups, len(data.classes), self.config.bootstrap_samples
        )
        if kind == CLASSES:
            table = metrics.confusion(labels, predictions, len(data.classes))
            measured["confusion"] = table.astype(int).tolist()
            measured["recall"] = [row[i] / sum(row) if sum(row) else None for i, row in enumerate(table.tolist())]
        return {
            "backbone": {
                "id": unit.id,
                "kind": "random" if unit.random else known.card.network,
                "model": known.card.name,
                "sha256": tensors_digest(backbone) if unit.random else known.sha256,
                "file": None if unit.random or known.file is None else str(known.file),
                "source": f"random, seed {unit.seed}" if unit.random else unit.source,
                "calibrated": self._calibrates(unit),
                "card": asdict(backbone.card),
            },
            "benchmark": unit.benchmark.name,
            "protocol": unit.protocol,
            "seed": unit.seed,
            "kind": kind,
            "classes": list(data.classes),
            "metric": metric,
            "metrics": measured,
            "chosen": [each.chosen for each in outcomes],
            "best_on_test": _best_on_test(outcomes, metric),
            "data": describe(data, found),
            "samples": samples,
            "settings": self._settings(unit, data, known.card),
        }


def _samples(found: Sequence[FoldSplits], outcomes: Sequence[ProtocolResult]) -> Samples:
    keys: list[str] = []
    groups: list[str] = []
    for each, outcome in zip(found, outcomes, strict=True):
        split = each.test if outcome.test_rows is None else each.test.only(outcome.test_rows)
        keys += split.keys
        groups += split.groups
    labels, predictions = (
        [value for outcome in outcomes for value in _plain(getattr(outcome, name))]
        for name in ("labels", "predictions")
    )
    return Samples(keys, groups, labels, predictions)


def _plain(values: np.ndarray) -> list[Any]:
    """Keep integers, and round other numbers to six decimals, more than any displayed metric has."""
    return values.tolist() if values.dtype.kind in "iu" else np.round(values.astype(float), 6).tolist()


def _best_on_test(outcomes: Sequence[ProtocolResult], metric: str) -> dict[str, Any] | None:
    """Return the metrics of one fold, or the mean over folds weighted by their number of samples."""
    found = [outcome.best_on_test for outcome in outcomes]
    if None in found:
        return None
    if len(found) == 1:
        return found[0]
    weights = [len(outcome.labels) for outcome in outcomes]
    return {metric: float(np.average([best[metric] for best in found], weights=weights)), "folds": found}  # type: ignore[index]


def _device(config: EvalConfig) -> torch.device:
    if config.device == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda: torch finds no GPU. Fix: set device=cpu or repair the driver.")
    if config.device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


def _use_deterministic_kernels(device: torch.device) -> None:
    if device.type == "cuda":
        torch.use_deterministic_algorithms(True, warn_only=True)
        # The backward passes of these kernels add in any order; for them, the line above only prints a warning.
        torch.backends.cuda.enable_flash_sdp(False)
        torch.backends.cuda.enable_mem_efficient_sdp(False)
        torch.backends.cuda.enable_cudnn_sdp(False)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    cv2.setNumThreads(1)  # the extractor's threads decode; OpenCV's threads would compete with them
