"""Store of results: one JSON file per backbone, benchmark, protocol and seed, written atomically.

    OUT/<backbone>/<benchmark>/<protocol>/seed-<n>.json

A file holds everything needed to reproduce its numbers, and the label and prediction of each test sample. Intervals,
confusion matrices and paired tests are later computed from these files, without another evaluation.
"""

# m test samples, K classes
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.io.atomic import read_bytes, write_atomic
from shards.io.hashing import digest
from shards.io.jsonl import loads_object
from shards.redact import redact_secrets, to_json
from simfle.errors import UserError

FORMAT = 3
NOT_MEASURED = ("checksum", "command", "config", "seconds")
MOST = 1e100  # maximum of any number, so that squares and sums stay finite
TYPES = {
    **dict.fromkeys(("backbone", "metrics", "data", "settings", "config", "versions"), dict),
    **dict.fromkeys(("benchmark", "protocol", "kind", "metric", "identity"), str),
    **{"seed": int, "classes": list, "command": list},
}
# Type of a sample's prediction, see `Samples`.
CLASSES, VOTES, AFFECT, LANDMARKS, CAM = "classes", "votes", "affect", "landmarks", "cam"


@dataclass(frozen=True)
class Samples:
    """Test samples, m in each list; with folds, those of all folds.

    keys: names in the shards; groups: the person (or film, or photo), or the key if unknown.
    Labels | predictions, for each kind of result:

    - classes: positions in `classes` | the same;
    - votes: distributions over the classes [m, K] | the same;
    - affect: valence and arousal [m, 2] | the same;
    - landmarks: the normalizer in pixels [m] | the normalized mean error [m];
    - cam: the fraction of the image near landmarks [m] | the fraction of the activation's energy there [m].
    """

    keys: list[str]
    groups: list[str]
    labels: list[Any]
    predictions: list[Any]


@dataclass(frozen=True)
class Result:
    """Result of one evaluation task.

    backbone: id (its folder below OUT), kind (online, target, random, or the card's), model (timm's name), sha256 (of
    the weights file, or of the tensors), file, card, calibrated (see `recalibrate_bn`).
    benchmark: its name; protocol: its name, with the fraction of labels if not all are used (finetune@0.01).
    kind: type of prediction; classes: names, () if there are none.
    metric: the primary metric; metrics: all metrics on the test samples, by name, of the candidate selected on
    validation.
    chosen: the selection on validation (one entry per fold) and its metric there.
    best_on_test: the best epoch or candidate selected *on the test samples*: optimistic, only for comparison with
    published tables.
    data: counts of the splits, chance, excluded classes, differences from the published counts, and people shared by
    splits.
    settings: settings of protocol and benchmark, size, data and decoders.
    identity: digest of all inputs that affect the numbers. seconds: computing time.
    """

    backbone: dict[str, Any]
    benchmark: str
    protocol: str
    seed: int
    kind: str
    classes: list[str]
    metric: str
    metrics: dict[str, Any]
    chosen: list[dict[str, Any]]
    best_on_test: dict[str, Any] | None
    data: dict[str, Any]
    samples: Samples
    settings: dict[str, Any]
    identity: str
    command: list[str]
    config: dict[str, Any]
    versions: dict[str, str]
    git: str | None
    seconds: float = 0.0
    format: int = FORMAT
    path: Path | None = field(default=None, compare=False)

    @property
    def score(self) -> float:
        """Value of the primary metric."""
        return float(self.metrics[self.metric])

    def labels(self) -> NDArray[np.float64]:
        """Labels as an array; integers if they are classes."""
        return _array(self.samples.labels, self.kind)

    def predictions(self) -> NDArray[np.float64]:
        """Predictions as an array; integers if they are classes."""
        return _array(self.samples.predictions, self.kind)


def _array(values: list[Any], kind: str) -> NDArray[Any]:
    return np.array(values, dtype=np.int64 if kind == CLASSES else np.float64)


def result_path(out: Path, backbone: str, benchmark: str, protocol: str, seed: int) -> Path:
    """Return the path of a task's file."""
    return out / backbone / benchmark / protocol / f"seed-{seed}.json"


def write_result(out: Path, result: Result) -> Path:
    """Write a result to its path below `out` atomically and return the path."""
    path = result_path(out, result.backbone["id"], result.benchmark, result.protocol, result.seed)
    content = {name: value for name, value in asdict(result).items() if name != "path"}
    samples = content.pop("samples")
    content = redact_secrets(content)
    content["checksum"] = _checksum({**content, "samples": samples})
    # Each long list takes one line, which keeps the rest readable.
    text = to_json(content, indent=1)[:-2] + ',\n "samples": {\n'
    text += ",\n".join(f'  "{name}": {json.dumps(values, separators=(",", ":"))}' for name, values in samples.items())
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, (text + "\n }\n}\n").encode())
    return path


def _checksum(content: dict[str, Any]) -> str:
    """Return a digest of the measurement, without its command and duration."""
    return digest(json.loads(json.dumps({name: content[name] for name in content if name not in NOT_MEASURED})))


def read_result(path: Path) -> Result:
    """Read one file. Raises UserError if it is missing, corrupt or of another format version."""
    try:
        content = loads_object(read_bytes(path))
        if content.get("format") != FORMAT:
            raise UserError(
                f"results: {path} has format {content.get('format')}, not {FORMAT}. Fix: delete it and evaluate again."
            )
        told = content.pop("checksum", None)
        checksum = _checksum(content)
        samples = Samples(**content.pop("samples"))
        if len({len(values) for values in vars(samples).values()}) != 1:
            raise ValueError("its lists of samples differ in length")  # noqa: TRY301
        result = Result(**content, samples=samples, path=path)
        check(result)
        if told not in (None, checksum):  # missing in files of earlier versions
            raise ValueError("a value was changed after the file was written")  # noqa: TRY301
        return result  # noqa: TRY300
    except FileNotFoundError:
        raise UserError(f"results: {path} does not exist. Fix: run simfle evaluate.") from None
    except (ValueError, TypeError, AttributeError, KeyError, OverflowError, OSError) as error:
        raise UserError(f"results: {path} is corrupt ({error}). Fix: delete it and evaluate again.") from None


def check(result: Result) -> None:
    """Raise ValueError for the first field that does not match `Result`."""
    for name, kind in TYPES.items():
        if type(getattr(result, name)) is not kind:
            raise ValueError(f"{name} is not of type {kind.__name__}")
    texts = {
        "backbone": [result.backbone.get(name) for name in ("id", "kind", "model")],
        **{name: getattr(result, name) for name in ("classes", "command")},
        **{name: getattr(result.samples, name) for name in ("keys", "groups")},
    }
    wrong = [name for name, values in texts.items() if not all(isinstance(value, str) for value in values)]
    numbers = {"metrics": result.metrics, "best_on_test": result.best_on_test}
    wrong += [name for name, values in numbers.items() if values is not None and not _finite(values.get(result.metric))]
    if wrong:
        raise ValueError(f"{wrong[0]} has an invalid value")
    if not result.samples.keys or not isinstance(result.data.get("test", {}), dict):
        raise ValueError("it has no samples, or no counts of them")
    labels, predictions = result.labels(), result.predictions()
    columns = {CLASSES: (), VOTES: (len(result.classes),), AFFECT: (2,), LANDMARKS: (), CAM: ()}[result.kind]
    for name, values in (("labels", labels), ("predictions", predictions)):
        if values.shape != (len(result.samples.keys), *columns) or not (abs(values) < MOST).all():
            raise ValueError(f"samples.{name} are not {result.kind}")
        if result.kind == CLASSES and values.size and not 0 <= values.min() <= values.max() < len(result.classes):
            raise ValueError(f"samples.{name} are not of {len(result.classes)} classes")


def _finite(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < MOST


def read_results(folders: Iterable[str | Path]) -> list[Result]:
    """Read all results below some folders (OUT of an evaluation, or a run), sorted by path.

    Raises:
        UserError: If a folder is missing, or a file is corrupt or of another format.
    """
    found: dict[Path, Path] = {}
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise UserError(f"results: {folder} is not a folder. Fix: pass an output folder of simfle evaluate.")
        found |= {path.resolve(): path for path in sorted(folder.rglob("seed-*.json"))}
    return [read_result(path) for path in found.values()]
