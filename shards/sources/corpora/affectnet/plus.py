"""AffectNet+ (2024): the same faces with soft labels, a difficulty score and personal attributes."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shards.entry import Entry, Rejected
from shards.errors import UserError
from shards.io.atomic import read_bytes
from shards.io.jsonl import MAX_JSON
from shards.sources.corpora.affectnet.common import affect, named, pair
from shards.sources.corpus_files import points

HUMAN = (("human_annotated/train_set", "train"), ("human_annotated/validation_set", "val"))
MACHINE = ("no_human_annotated", "automatic")
PARTS = (*HUMAN, MACHINE)


def read_plus(root: Path, automatic: bool) -> Iterator[Entry | Rejected]:
    """Yield all entries below human_annotated, and optionally no_human_annotated, by name."""
    if automatic and not (root / MACHINE[0]).is_dir():
        raise UserError(f"affectnet: {root} has no {MACHINE[0]}. Fix: remove --automatic.")
    for folder, split in PARTS if automatic else HUMAN:
        annotations = root / folder / "annotations"
        for ident, image, annotated in pair(root / folder / "images", annotations, ".json"):
            source = f"{folder}/images/{image or ident + '.jpg'}"
            if not image:
                yield Rejected(source, "missing")
                continue
            known = _known(annotations / f"{ident}.json") if annotated else {}
            if known is None:
                yield Rejected(source, "bad_row", f"{folder}/annotations/{ident}.json is corrupt")
                continue
            yield _entry(root, folder, split, source, known)


def _known(file: Path) -> dict[str, Any] | None:
    """Read a JSON object; return None if it is invalid. Non-JSON numbers (NaN) become None."""
    try:
        found = json.loads(read_bytes(file, MAX_JSON), parse_constant=lambda _: None)
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _entry(root: Path, folder: str, split: str, source: str, known: dict[str, Any]) -> Entry | Rejected:
    number = known.get("human-label")
    label = None if number is None or number == -1 else named(str(number))
    if label is None and number not in (None, -1):
        return Rejected(source, "bad_row", f"human-label {number!r}")
    about = known.get("meta-data")
    about = dict(about) if isinstance(about, dict) else {}
    marks = _numbers(about.pop("landmark-68", None))
    feeling = affect(_number(about.pop("valence", None)), _number(about.pop("arousal", None)))
    own = {"soft_label": known.get("soft-label"), "subset": known.get("subset"), "meta": about}
    return Entry(
        key=source.replace("/images/", "/"),
        source=source,
        read=root / source,
        label=label,
        split=split,
        landmarks=points(marks) if len(marks) == 2 * 68 else None,
        extras=feeling | {name: value for name, value in own.items() if value not in (None, {})},
    )


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _numbers(values: Any) -> tuple[float, ...]:
    found = tuple(_number(value) for value in values) if isinstance(values, list) else ()
    return tuple(value for value in found if value is not None) if None not in found else ()
