"""`results.json`: the numbers of an evaluation, with everything that is needed to get them again."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shards.files import write_atomic
from simfle.errors import UserError

FORMAT = 1


@dataclass(frozen=True)
class Results:
    """command: the exact words; data: classes, counts, chance; rows: one per backbone, protocol and seed; summary: one
    per backbone and protocol, averaged over its seeds, with a bootstrap 95 % interval of the balanced accuracy."""

    command: list[str]
    config: dict[str, Any]
    versions: dict[str, str]
    git: str | None
    data: dict[str, Any]
    rows: list[dict[str, Any]]
    summary: list[dict[str, Any]]
    format: int = FORMAT


def write(path: Path, results: Results) -> None:
    """Write results atomically, making the folder if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, (json.dumps(asdict(results), indent=1) + "\n").encode())


def read(path: Path) -> Results:
    """Read results. Raises UserError: missing, another format version, damaged."""
    try:
        content = json.loads(path.read_bytes())
        if content.get("format") != FORMAT:
            raise UserError(f"results: {path} has format {content.get('format')}, this program reads {FORMAT}")
        return Results(**content)
    except FileNotFoundError:
        raise UserError(f"results: {path} does not exist; make it with launchers/evaluate.py") from None
    except (ValueError, TypeError, AttributeError, OSError) as error:
        raise UserError(f"results: {path} is damaged ({error}); evaluate again") from None
