"""Items of a corpus listing: an Entry for each face, or a Rejected with the reason."""

import importlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# All reasons for rejecting an entry, with their meaning. The set is closed, because reports and tests rely on it.
REJECT_REASONS = {
    "missing": "listed, but the file does not exist",
    "outside": "listed with a path outside the image folder",
    "empty": "a file of zero bytes",
    "not_an_image": "no image format is recognized",
    "truncated": "the image data ends early",
    "unreadable": "an image that is corrupt or cannot be decoded",
    "too_small": "a side of less than 16 pixels",
    "too_large": "more pixels than --max-pixels, a side of more than 65,500, or a file of more than 1 GiB",
    "too_many_scans": "a progressive JPEG of more than 100 scans, which would take minutes to decode",
    "no_box": "cropping is requested, but the corpus has no box for this face",
    "bad_box": "a box without area or outside the image",
    "no_face": "no face detected, or none where the corpus expects it",
    "no_image": "a tar sample without an image member",
    "repeated": "listed again with the same label; the first is kept",
    "conflicting_label": "listed again with another label; none is kept",
    "leaked": "another split of the corpus has the same image, and --leaks drop is set",
    "bad_row": "its line or description file is corrupt or holds an invalid value",
    "no_split": "outside the requested split folders",
    "excluded_image": "an exact or near duplicate of an image in the shards of --exclude",
    "excluded_person": "shows a person in the shards of --exclude",
    "removed": "removed by simfle shards remove; no other information is kept",
    "unlabeled": "no label, but labels are required",
    "unknown_label": "its label is not in --labels",
}


# Readers of image bytes by name. Names are part of a build's digest and must not change; modules may move.
READERS = {
    "byte_range": "shards.sources.containers.byte_range:read_range",
    "zip_member": "shards.sources.containers.zips:read_zipped",
    "cofw_image": "shards.sources.corpora.cofw:read_image",
    "recordio_image": "shards.sources.corpora.recordio:read_image",
    "drawn_face": "shards.sources.synthetic.procedural:draw",
}


@dataclass(frozen=True, slots=True)
class LazyBytes:
    """Image bytes computed on demand by the reader of this name in `READERS`, with `arguments` (plain JSON).

    file: input file, passed as the first argument. Like an entry's path, it does not determine the shards.

    Raises:
        ValueError: If the reader is not in `READERS`; raised when called.
    """

    reader: str
    arguments: tuple[Any, ...] = ()
    file: Path | None = None

    def __call__(self) -> bytes:
        """Compute the bytes."""
        place = READERS.get(self.reader)
        if place is None:
            raise ValueError(f"{self.reader!r} is not a reader; known: {', '.join(READERS)}")
        module, _, name = place.partition(":")
        given = self.arguments if self.file is None else (self.file, *self.arguments)
        made = getattr(importlib.import_module(module), name)(*given)
        return bytes(made)


@dataclass(frozen=True, slots=True)
class Entry:
    """One face as its corpus lists it. Cheap and picklable; the image is not read yet.

    key: name, unique in the corpus (usually the relative path); the key in the shards is derived from it.
    source: relative path as text, for messages; read: a path, the bytes, or a `LazyBytes`.
    label, split, group: None if unknown; a group (person, film) is never split across splits.
    box: left, top, width, height in pixels; landmarks: (x, y) in pixels; extras: other fields, plain JSON.
    """

    key: str
    source: str
    read: Path | bytes | LazyBytes
    label: str | None = None
    split: str | None = None
    group: str | None = None
    box: tuple[float, float, float, float] | None = None
    landmarks: tuple[tuple[float, float], ...] | None = None
    extras: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Rejected:
    """A rejected entry: source, reason (one of REJECT_REASONS) and detail."""

    source: str
    reason: str
    detail: str = ""
