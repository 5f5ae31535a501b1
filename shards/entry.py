"""What a corpus lists: one Entry for each face, or a Rejected for what cannot even be one."""

import importlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Every reason for which an entry may not be written, and what it means. A closed set: reports and tests rely on it.
REASONS = {
    "missing": "listed, but there is no such file",
    "outside": "listed with a path that leaves the folder of images",
    "empty": "a file of zero bytes",
    "not_an_image": "no image format is recognised",
    "truncated": "the image ends too early",
    "unreadable": "an image, but damaged or of a kind that cannot be decoded",
    "too_small": "a side of less than 16 pixels",
    "too_large": "more pixels than --max-pixels, a side of more than 65,500, or a file of more than 1 GiB",
    "too_many_scans": "a progressive JPEG of more than 100 scans, which would take minutes to decode",
    "no_box": "cropping is asked for, and its corpus gives no box",
    "bad_box": "a box without area, or with none of it inside the image",
    "no_face": "no face was found, or none where its corpus says that there is one",
    "no_image": "a sample in a tar without an image member",
    "repeated": "listed again with the same label; the first one counts",
    "conflicting_label": "listed again with another label; none of them counts",
    "leaked": "another split of the corpus has the same image, and --leaks drop is given",
    "bad_row": "the line or file that describes it is damaged, or says what its corpus cannot say",
    "no_split": "in no folder of a split, where split folders are asked for",
    "excluded_image": "an exact or near duplicate of an image in the shards of --exclude",
    "excluded_person": "of a person who is in the shards of --exclude",
    "removed": "taken out of finished shards by simfle shards remove; no trace of what it was is kept",
    "unlabelled": "no label where labels are asked for",
    "unknown_label": "a label that is not among --labels",
}


@dataclass(frozen=True, slots=True)
class Recipe:
    """Bytes made when they are wanted: `function` ("shards.x:name") is called with `arguments` (plain JSON).

    file: what it reads from, its first argument then; like an entry's path, it is no part of what decides the shards.
    """

    function: str
    arguments: tuple[Any, ...] = ()
    file: Path | None = None

    def __call__(self) -> bytes:
        """Make the bytes."""
        module, _, name = self.function.partition(":")
        if not module.startswith("shards."):
            raise ValueError(f"{self.function} is not a function of shards")
        given = self.arguments if self.file is None else (self.file, *self.arguments)
        made = getattr(importlib.import_module(module), name)(*given)
        return bytes(made)


@dataclass(frozen=True, slots=True)
class Entry:
    """One face as its corpus lists it. Cheap, picklable; the image is not read yet.

    key: its name, unique in the corpus (usually the relative path); the key in the shards is made from it.
    source: relative path as text, for people; read: where the bytes are: a path, the bytes, or a recipe.
    label, split, group: None where unknown; a group (person, film) is never divided between splits.
    box: left, top, width, height in pixels; landmarks: (x, y) in pixels; extras: anything else that is plain JSON.
    """

    key: str
    source: str
    read: Path | bytes | Recipe
    label: str | None = None
    split: str | None = None
    group: str | None = None
    box: tuple[float, float, float, float] | None = None
    landmarks: tuple[tuple[float, float], ...] | None = None
    extras: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Rejected:
    """An entry that is not written: where it was listed, one of REASONS, and what exactly was found."""

    source: str
    reason: str
    detail: str = ""
