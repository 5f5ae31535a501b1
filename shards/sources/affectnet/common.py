"""What the releases of AffectNet share: the numbering, and images beside files of annotations."""

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from shards.sources.layout import names

LABELS = (
    "neutral", "happy", "sad", "surprise", "fear", "disgust", "anger", "contempt", "none", "uncertain", "no-face",
)  # fmt: skip
UNKNOWN = -2.0  # valence and arousal of faces that have none


class Pair(NamedTuple):
    """An image and its annotation by the name that they share; image: its file name, "" if there is none."""

    ident: str
    image: str
    annotated: bool


def pair(images: Path, annotations: Path, ending: str) -> Iterator[Pair]:
    """All that is in two folders, by name; annotations are called NAME + `ending`. A missing folder is an empty one."""
    pictures = {PurePosixPath(name).stem: name for name in names(images)} if images.is_dir() else {}
    found = names(annotations) if annotations.is_dir() else []
    notes = {name.removesuffix(ending) for name in found if name.endswith(ending)}
    for ident in sorted(pictures.keys() | notes):
        yield Pair(ident, pictures.get(ident, ""), ident in notes)


def first_name(folder: Path) -> str:
    """Any name in a folder that may be very large, "" if there is none: enough to see what kind of files it holds."""
    if not folder.is_dir():
        return ""
    with os.scandir(folder) as listing:
        return next((item.name for item in listing if not item.name.startswith(".")), "")


def named(number: str) -> str | None:
    """The expression's name by its number, None for anything that is no number of theirs."""
    text = number.strip()
    return LABELS[int(text)] if text.isascii() and text.isdigit() and int(text) < len(LABELS) else None


def affect(valence: float | None, arousal: float | None) -> dict[str, float]:
    """Valence and arousal as extras, where they are known."""
    pairs = (("valence", valence), ("arousal", arousal))
    return {name: value for name, value in pairs if value is not None and value != UNKNOWN}
