"""Known corpora: reader, labels, published counts and terms of use of each.

A source file defines one frozen dataclass, the source, and one `CORPUS = CorpusSpec(...)`. The source's first field is
`root`, the folder as delivered; its other fields have defaults and become options of the subcommand (create them with
`option`; bool, int, str, Path or `Path | None`). Iterating yields an Entry or Rejected for each item of the corpus, in
a fixed order, any number of times.

A source can also have: `labels` (a property: the names selected by its options, instead of CorpusSpec.labels),
`release` (a property: the release found in its root, for the manifest), `notes()` (hints for the user, after
iterating).

Imports here and at the top of a source file must be fast: every `--help` of the command imports all of them.
"""

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from shards.entry import Entry, Rejected
from shards.errors import UserError

SOURCES: tuple[str, ...] = (
    "affectnet",
    "rafdb",
    "fer2013",
    "ferplus",
    "sfew",
    "ckplus",
    "expw",
    "celeba",
    "vggface2",
    "lfw",
    "ffhq",
    "digiface",
    "facesynthetics",
    "recordio",
    "ibug300w",
    "wflw",
    "cofw",
    "aflw19",
    "mtfl",
)
"""Modules below shards.sources.corpora that define a CORPUS, in the order of the command's listing."""


@dataclass(frozen=True)
class CorpusSpec:
    """Specification of a corpus.

    name: the subcommand; title: one line for the help; source: the dataclass; labels: names in the corpus's numbering,
    () if unlabeled; terms: terms of use in one sentence, for the manifest.
    published_counts(source) -> {split: {label: count}} as published for the release in the source's root, {} if no
    counts are published; the label "" counts a whole split. A mismatch is reported, but is not an error.
    first_label_id: number of the corpus's first label; in shards, numbers start at 0.
    needs_crop(source) -> whether the images are whole photos in which a box locates the face of an entry: building them
    without cropping prints a note.
    """

    name: str
    title: str
    source: Callable[..., Iterable[Entry | Rejected]]
    terms: str
    labels: tuple[str, ...] = ()
    published_counts: Callable[..., dict[str, dict[str, int]]] = field(default=lambda source: {})
    first_label_id: int = 0
    needs_crop: Callable[..., bool] = field(default=lambda source: False)


def option(default: Any, text: str, choices: tuple[Any, ...] = ()) -> Any:
    """Define a source field with its option's help text and allowed values, if limited."""
    return field(default=default, metadata={"help": text, "choices": choices})


def check_options(source: Any) -> None:
    """Raise UserError for a field whose value is not among its choices. A source's __post_init__ calls this."""
    for item in dataclasses.fields(source):
        choices, value = item.metadata.get("choices"), getattr(source, item.name)
        if choices and value not in choices:
            name = item.name.replace("_", "-")
            raise UserError(f"--{name}={value!s}: unknown. Fix: choose one of {', '.join(map(str, choices))}.")


def all_corpora() -> list[CorpusSpec]:
    """Return all known corpora."""
    return [import_module(f"shards.sources.corpora.{name}").CORPUS for name in SOURCES]
