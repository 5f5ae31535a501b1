"""Choose a pretraining configuration from the number of images and the device; record it for reruns.

| | CPU | GPU |
|---|---|---|
| configuration | configs/pretrain/faces_cpu.yaml (ResNet-18) | configs/pretrain/simfle_resnet50.yaml |
| views | 64 px below 2,000 images, else 96 px | 224 px |
| global batch | the configuration's, at most half the images | the same |
| steps | 8 epochs, at least 300, at most 3,000 | 100 epochs, at least 2,000, at most 100,000 |
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from shards.io.atomic import read_bytes, replace_text
from shards.io.jsonl import loads_object
from shards.redact import to_json
from simfle.config.overrides import format_override
from simfle.config.schema import CONFIGS, PretrainConfig, load
from simfle.errors import UserError
from simfle.runtime import run_files

NAME = "defaults.json"
LEAST = 32  # minimum number of images: a batch of 16, twice per epoch
FEW = 2000  # images below which views on a CPU are small


@dataclass(frozen=True)
class DeviceRecipe:
    """Configuration for a device. steps: minimum and maximum."""

    config: str
    epochs: int
    steps: tuple[int, int]


RECIPES = {
    "cpu": DeviceRecipe("configs/pretrain/faces_cpu.yaml", 8, (300, 3000)),
    "cuda": DeviceRecipe("configs/pretrain/simfle_resnet50.yaml", 100, (2000, 100_000)),
}


@dataclass(frozen=True)
class PretrainDefaults:
    """Chosen configuration: a bundled file and values that override it, with their reasons: images and device."""

    config: str
    images: int
    device: str
    values: dict[str, int] = field(default_factory=dict)

    @property
    def file(self) -> Path:
        return CONFIGS.joinpath(*Path(self.config).parts[1:])

    def words(self) -> list[str]:
        """Return the values as key=value."""
        return [format_override(name, value) for name, value in self.values.items()]

    def __str__(self) -> str:
        words = " ".join(self.words())
        return f"defaults for {self.images:,} images on {self.device}: {self.config} {words}".rstrip()


def choose_defaults(run: Path, shards: Sequence[str], overrides: Sequence[str], processes: int) -> PretrainDefaults:
    """Return the defaults that a run was started with, or new ones.

    Args:
        run: run folder; RUN/defaults.json is used if the run has a checkpoint.
        shards: locations of the data.
        overrides: key=value that take precedence; values that they set are left out.
        processes: number of processes, which divides the global batch.

    Raises:
        UserError: If overrides or shards are invalid, or there are too few images.
    """
    asked = load(PretrainConfig, None, [format_override("data.shards", shards), *overrides])
    if run_files.complete_checkpoint_dirs(run) and (found := _read(run / NAME)):
        return found
    from simfle.data.dataset import open_corpus

    given = {word.partition("=")[0] for word in overrides}
    device = _device(asked.train.device)
    recipe = RECIPES[device]
    if asked.data.resampled:
        raise UserError("data.resampled=true: a stream has no number of images. Fix: start from a configuration file.")
    images = len(open_corpus(asked.data))
    values: dict[str, int] = {}
    if "train.global_batch" in given:
        batch = asked.train.global_batch
    else:
        values["train.global_batch"] = batch = _batch(recipe, images, processes)
    if not given & {"train.steps", "train.epochs"}:
        steps = math.ceil(recipe.epochs * images / batch)
        values["train.steps"] = min(max(steps, recipe.steps[0]), recipe.steps[1])
    if device == "cpu" and images < FEW:
        values |= {name: 64 for name in ("views.size", "views.face_size") if name not in given}
    return PretrainDefaults(recipe.config, images, device, values)


def write_defaults(run: Path, defaults: PretrainDefaults) -> None:
    """Write RUN/defaults.json."""
    replace_text(run / NAME, to_json(asdict(defaults), indent=1) + "\n")


def _read(file: Path) -> PretrainDefaults | None:
    """Read recorded defaults; None if there are none. Raises UserError if they are corrupt."""
    try:
        content: dict[str, Any] = loads_object(read_bytes(file))
        found = PretrainDefaults(**content)
        if not found.file.is_file() or not all(type(value) is int for value in found.values.values()):
            raise ValueError("an unknown configuration or value")  # noqa: TRY301
        return found  # noqa: TRY300
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, AttributeError, OSError) as error:
        raise UserError(
            f"{file}: corrupt ({error}). Fix: delete it; name the values of RUN/config.yaml on the command line."
        ) from None


def _batch(recipe: DeviceRecipe, images: int, processes: int) -> int:
    """Return the recipe's batch, or a smaller power of two per process, at most half the images."""
    largest = load(PretrainConfig, CONFIGS.joinpath(*Path(recipe.config).parts[1:])).train.global_batch
    each = min(largest, images // 2) // processes
    if images < LEAST or each < 2:
        raise UserError(
            f"data: only {images} images for training, at least {max(LEAST, 4 * processes)} are needed. "
            "Fix: add images, or name fewer processes."
        )
    return processes * (1 << (each.bit_length() - 1))


def _device(asked: str) -> str:
    if asked != "auto":
        return asked
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
