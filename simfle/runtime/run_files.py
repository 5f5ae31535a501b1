"""Read a run's own files; skip truncated or invalid lines."""

import hashlib
import math
import re
from pathlib import Path
from typing import Any

from shards.io.atomic import read_bytes
from shards.io.jsonl import iter_valid_lines, loads_object

MAX_NUMBER = 1e100  # larger numbers overflow sums and axes
MARKER = "COMPLETE"  # marks a complete checkpoint: written last
STATE = "state.json"
INITIAL_WEIGHTS = "init.json"  # source and tensors of model.init; missing for random initial weights
# Eight digits, more only for larger steps: a user's copy `step-10` is not a checkpoint.
CHECKPOINT = re.compile(r"step-(\d{8}|[1-9]\d{8,11})(\.png)?", re.ASCII)
TABLES = ("features", "projection", "face", "monitor")  # optional tables of numbers by name in a line
COLLAPSED = 0.6  # fraction of the random network's rank below which features have collapsed
COLLAPSE_PAGE = "docs/collapse.md"


def parse_metrics(text: str | bytes) -> list[dict[str, Any]]:
    """Parse metrics.jsonl. Lines hold `step`, optional `samples` (int), `losses` and TABLES (tables), and numbers."""
    return [line for line in iter_valid_lines(text) if _is_metrics(line)]


def is_collapsed(features: dict[str, float]) -> bool:
    """Return whether features use far fewer dimensions than those of a random network of the same shape."""
    return features.get("rank", math.inf) < COLLAPSED * features.get("random_rank", 0.0)


def read_initial_weights(run: Path) -> dict[str, Any]:
    """Return RUN/init.json: `source`, `sha256`, and the counts `loaded` and `wanted`; empty for random weights."""
    try:
        return loads_object(read_bytes(run / INITIAL_WEIGHTS))
    except (OSError, ValueError):
        return {}


def baseline_name(run: Path) -> str:
    """Name the network that a run's features are compared with: its first weights, random without `model.init`."""
    return "at the start" if (run / INITIAL_WEIGHTS).is_file() else "random network"


def is_count(value: Any) -> bool:
    """Return whether a value is a valid number of steps or samples."""
    return type(value) is int and 0 <= value < 1 << 53


def step_from_name(path: Path) -> int | None:
    """Return the step in the name of a checkpoint folder or an image, `step-00000010`, or None for other names."""
    match = CHECKPOINT.fullmatch(path.name)
    return int(match[1]) if match else None


def complete_checkpoint_dirs(run: Path) -> list[Path]:
    """Return folders of complete checkpoints, newest first."""
    found = [folder for folder in checkpoint_dirs(run) if (folder / MARKER).exists()]
    return sorted(found, key=lambda folder: step_from_name(folder) or 0, reverse=True)


def checkpoint_dirs(run: Path) -> list[Path]:
    """Return checkpoint folders, complete or not; a user's copy such as step-00000002-backup does not count."""
    return [folder for folder in _named(run) if not _is_copy(folder)]


def copied_checkpoints(run: Path) -> list[Path]:
    """Return folders named like checkpoints but with the state of another step: copies by a user, never deleted."""
    return sorted(folder for folder in _named(run) if _is_copy(folder))


def read_state(folder: Path) -> dict[str, Any]:
    """Return state.json of a complete checkpoint, checked by the hash in its marker, or {} if either is corrupt."""
    try:
        marker = loads_object(read_bytes(folder / MARKER))
        content = read_bytes(folder / STATE)
        return loads_object(content) if hashlib.sha256(content).hexdigest() == marker[STATE]["sha256"] else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _named(run: Path) -> list[Path]:
    return [path for path in run.glob("checkpoints/step-*") if step_from_name(path) is not None and path.is_dir()]


def _is_copy(folder: Path) -> bool:
    """Return whether a valid state.json does not have its folder's step. A corrupt file may have any step."""
    try:
        step = loads_object(read_bytes(folder / STATE)).get("step")
    except (OSError, ValueError):
        return False
    if type(step) is not int or step == step_from_name(folder):
        return False
    return not (folder / MARKER).exists() or bool(read_state(folder))


def planned_steps(run: Path) -> int:
    """Return the total number of steps in run.json, or 0 if the file is missing or truncated."""
    try:
        found = loads_object(read_bytes(run / "run.json")).get("steps")
    except (OSError, ValueError):
        return 0
    return found if isinstance(found, int) and is_count(found) else 0


def _is_metrics(line: dict[str, Any]) -> bool:
    losses = line.get("losses")
    if not is_count(line.get("step")) or not is_count(line.get("samples", 0)) or not isinstance(losses, dict):
        return False
    tables = [line[name] for name in TABLES if name in line]
    if not all(isinstance(table, dict) for table in tables):
        return False
    rest = [value for name, value in line.items() if name not in ("losses", *TABLES)]
    return all(map(_is_number, [*losses.values(), *rest, *(value for table in tables for value in table.values())]))


def _is_number(value: Any) -> bool:
    """Return whether a value is a number. Infinity and NaN count, because a loss may be non-finite."""
    return type(value) in (int, float) and (not abs(value) > MAX_NUMBER or abs(value) == float("inf"))
