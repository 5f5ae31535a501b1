"""Helpers shared by the releases of AffectNet: numbering, and images paired with annotation files."""

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from shards.sources.corpus_files import list_dir

LABELS = (
    "neutral", "happy", "sad", "surprise", "fear", "disgust", "anger", "contempt", "none", "uncertain", "no-face",
)  # fmt: skip
UNKNOWN = -2.0  # valence and arousal of faces without them


class Pair(NamedTuple):
    """An image and its annotation with the same name; image: its file name, "" if there is none."""

    ident: str
    image: str
    annotated: bool


def pair(images: Path, annotations: Path, ending: str) -> Iterator[Pair]:
    """Pair two folders by name; annotations are called NAME + `ending`. A missing folder counts as empty."""
    pictures = {PurePosixPath(name).stem: name for name in list_dir(images)} if images.is_dir() else {}
    found = list_dir(annotations) if annotations.is_dir() else []
    notes = {name.removesuffix(ending) for name in found if name.endswith(ending)}
    for ident in sorted(pictures.keys() | notes):
        yield Pair(ident, pictures.get(ident, ""), ident in notes)


def first_name(folder: Path) -> str:
    """Return any name in a (possibly huge) folder, or "" if there is none: enough to detect the type of files."""
    if not folder.is_dir():
        return ""
    with os.scandir(folder) as listing:
        return next((item.name for item in listing if not item.name.startswith(".")), "")


def named(number: str) -> str | None:
    """Return the expression's name for its number, or None for anything else."""
    text = number.strip()
    return LABELS[int(text)] if text.isascii() and text.isdigit() and int(text) < len(LABELS) else None


def affect(valence: float | None, arousal: float | None) -> dict[str, float]:
    """Return valence and arousal as extras, if known."""
    pairs = (("valence", valence), ("arousal", arousal))
    return {name: value for name, value in pairs if value is not None and value != UNKNOWN}
