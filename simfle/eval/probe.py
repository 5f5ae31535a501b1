"""Linear probe in files: frozen features to probabilities of expressions, with its classes, backbone and accuracy.

`probe-SEED.safetensors` holds the tensors of `LinearProbe`, `probe-SEED.json` beside it the fields of `ProbeMetadata`.
"""

# n samples, C channels, K classes
import hashlib
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from shards.io.atomic import read_bytes, write_atomic
from shards.io.jsonl import loads_object
from shards.redact import to_json
from simfle.errors import UserError

FORMAT = 1
TENSORS = ("weight", "bias", "mean", "deviation", "temperature")
BINS = 15  # of the calibration error
TEMPERATURES = (0.25, 10.0)  # range of the temperature


@dataclass(frozen=True)
class LinearProbe:
    """Softmax regression on standardized features.

    weight: [C, K]; bias: [K]; mean, deviation: [C], of the training features; temperature: [], divides the logits.
    """

    weight: Tensor
    bias: Tensor
    mean: Tensor
    deviation: Tensor
    temperature: Tensor

    def logits(self, features: Tensor) -> Tensor:
        """Map features [n, C] to logits [n, K] before the temperature."""
        return ((features - self.mean) / self.deviation) @ self.weight + self.bias

    def probabilities(self, features: Tensor) -> Tensor:
        """Map features [n, C] to calibrated probabilities [n, K] float64, whose rows sum to 1."""
        return (self.logits(features).double() / self.temperature.double()).softmax(1)


@dataclass(frozen=True)
class ProbeMetadata:
    """Origin and limits of a probe.

    classes: K names; features: C; size: side of the images in pixels; resize: rule, see `features.resize`.
    backbone: sha256 (see `tasks.identify`), source and model; benchmark, protocol, seed: of the evaluation.
    data: per split (train, val, test), its name, samples, people (None = unknown) and counts per class.
    val, test: metrics on these splits from 0 to 1; intervals: 95 %, of the metrics on test.
    majority: accuracy on test of always naming its most frequent class; calibration_error: on test, from 0 to 1.
    sha256: of the tensors' file.
    """

    classes: list[str]
    features: int
    size: int
    resize: str
    backbone: dict[str, str]
    benchmark: str
    protocol: str
    seed: int
    data: dict[str, dict[str, Any]]
    val: dict[str, float]
    test: dict[str, float]
    intervals: dict[str, list[float]]
    majority: float
    calibration_error: float
    sha256: str = ""
    format: int = FORMAT

    def describe(self) -> str:
        """Describe in a line what the probe was fitted on and how accurate it is."""
        low, high = self.intervals["accuracy"]
        people = self.data["test"]["people"]
        doubt = "" if low > self.majority else ", not shown to be worse"
        return (
            f"probe: {len(self.classes)} classes of {self.benchmark}, fitted on {self.data['train']['samples']:,} "
            f"images; on split {self.data['test']['split']} ({self.data['test']['samples']:,} images"
            f"{f' of {people:,} people' if people else ', people unknown'}): accuracy {self.test['accuracy']:.3f} "
            f"(95 % {low:.3f} to {high:.3f}; the most frequent class alone: {self.majority:.3f}{doubt}), mean "
            f"recall {self.test['balanced_accuracy']:.3f}, calibration error {self.calibration_error:.3f}"
        )


def fit_temperature(logits: Tensor, labels: NDArray[np.int64]) -> float:
    """Fit the temperature that divides logits [n, K] to minimize the negative log-likelihood of labels [n].

    Temperature scaling (Guo et al. 2017, arXiv 1706.04599, section 4.2), on the validation split, in `TEMPERATURES`.
    """
    from scipy.optimize import minimize_scalar

    values, truth = logits.double().cpu(), torch.from_numpy(labels)

    def loss(log_temperature: float) -> float:
        return float(torch.nn.functional.cross_entropy(values / math.exp(log_temperature), truth))

    low, high = map(math.log, TEMPERATURES)
    return math.exp(minimize_scalar(loss, bounds=(low, high), method="bounded").x)


def calibration_error(probabilities: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """Compute the expected calibration error of probabilities [n, K], from 0 to 1.

    The mean of |accuracy - confidence| over 15 equal bins of the confidence, weighted by their samples (Guo et al.
    2017, equation 3).
    """
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    places = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = np.bincount(places, right - confidence, BINS)
    return float(np.abs(gaps).sum() / len(labels))


def probe_file(result: Path) -> Path:
    """Return the tensors' file that belongs to a result's file."""
    return result.with_name(f"{result.stem.replace('seed-', 'probe-', 1)}.safetensors")


def write_probe(file: Path, probe: LinearProbe, about: dict[str, Any]) -> None:
    """Write the tensors and, last, the metadata. about: fields of `ProbeMetadata` without sha256."""
    content = save({name: getattr(probe, name).detach().cpu().contiguous() for name in TENSORS})
    metadata = ProbeMetadata(**about, sha256=hashlib.sha256(content).hexdigest())
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(file, content)
    write_atomic(file.with_suffix(".json"), (to_json(asdict(metadata), indent=1) + "\n").encode())


def read_probe(file: Path) -> tuple[LinearProbe, ProbeMetadata]:
    """Read a probe by either of its two files.

    Raises:
        UserError: If a file is missing or corrupt, or has another format version.
    """
    tensors, about = file.with_suffix(".safetensors"), file.with_suffix(".json")
    try:
        metadata = read_probe_metadata(about)
        content = read_bytes(tensors)
        if hashlib.sha256(content).hexdigest() != metadata.sha256:
            raise ValueError(f"does not match {about.name}")  # noqa: TRY301
        probe = LinearProbe(**load(content))
        _check(probe, metadata)
    except FileNotFoundError:
        raise UserError(f"probe: {tensors} does not exist. Fix: run simfle evaluate, or check the path.") from None
    except (SafetensorError, ValueError, TypeError, OSError) as error:
        raise UserError(f"probe: {tensors} is corrupt ({error}). Fix: delete its folder and evaluate again.") from None
    return probe, metadata


def read_probe_metadata(file: Path) -> ProbeMetadata:
    """Read the metadata of a probe.

    Raises:
        UserError: If the file is missing or corrupt, or has another format version.
    """
    try:
        content = loads_object(read_bytes(file))
        if content.get("format") != FORMAT:
            raise UserError(
                f"probe: {file} has format {content.get('format')}, not {FORMAT}. Fix: delete its folder and evaluate "
                "again."
            )
        found = ProbeMetadata(**content)
        known = all(isinstance(name, str) for name in [*found.classes, found.sha256, found.backbone["sha256"]])
        if not known or len(found.classes) < 2 or type(found.size) is not int or found.size < 1:
            raise ValueError("an invalid value")  # noqa: TRY301
        found.describe()
    except FileNotFoundError:
        raise UserError(f"probe: {file} does not exist. Fix: run simfle evaluate, or check the path.") from None
    except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
        raise UserError(f"probe: {file} is corrupt ({error!r}). Fix: delete its folder and evaluate again.") from None
    return found


def _check(probe: LinearProbe, metadata: ProbeMetadata) -> None:
    """Raise ValueError for tensors of other shapes than the metadata's, or values that are not finite."""
    channels, classes = metadata.features, len(metadata.classes)
    shapes = [(channels, classes), (classes,), (channels,), (channels,), ()]
    for name, shape in zip(TENSORS, shapes, strict=True):
        value = getattr(probe, name)
        if tuple(value.shape) != shape or not value.is_floating_point() or not torch.isfinite(value).all():
            raise ValueError(f"{name} is not {list(shape)} finite numbers")
    if not (probe.deviation > 0).all() or not probe.temperature > 0:
        raise ValueError("a deviation or the temperature is not above 0")
