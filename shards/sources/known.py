"""Corpora that we know by name: how each is read, what its labels mean, what it should hold, what it may be used for.

A source file defines one frozen dataclass, the source, and one `CORPUS = Known(...)`. The source's first field is
`root`, the folder as its users received it; its other fields have defaults and become options of the subcommand (make
them with `option`; bool, int, str, Path or `Path | None`). Iterated, it yields an Entry or Rejected for everything that
the corpus lists, in a fixed order, as often as asked.

A source may also have: `labels` (a property: the names that its options leave, instead of Known.labels), `release` (a
property: which release it found in its root, for the manifest), `notes()` (what the user may have overlooked, once it
has been gone through).

Nothing here or at the top of a source file may be slow to import: every `--help` of the command imports them all.
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
"""Modules below shards.sources that hold a CORPUS, in the order in which the command lists them."""


@dataclass(frozen=True)
class Known:
    """One corpus.

    name: the subcommand; title: one line for people; source: the dataclass; labels: names in the corpus's own
    numbering, () for unlabelled; terms: of use, in a sentence, for the manifest.
    expected(source) -> {split: {label: count}} as published for the release that `source` finds in its root, {} where
    nothing is published; the label "" counts a whole split, labelled or not. A difference is reported, not refused.
    first: the number that the corpus gives its first label; in shards, numbers start at 0.
    photos(source) -> whether its images are whole photos, of which an entry means one face, by its box: who crops
    nothing is told.
    """

    name: str
    title: str
    source: Callable[..., Iterable[Entry | Rejected]]
    terms: str
    labels: tuple[str, ...] = ()
    expected: Callable[..., dict[str, dict[str, int]]] = field(default=lambda source: {})
    first: int = 0
    photos: Callable[..., bool] = field(default=lambda source: False)


def option(default: Any, text: str, choices: tuple[Any, ...] = ()) -> Any:
    """A field of a source with the help text of its option and, where they are few, the values that it may have."""
    return field(default=default, metadata={"help": text, "choices": choices})


def check_options(source: Any) -> None:
    """Raise UserError for a field with a value that is not among its choices: for a source's __post_init__."""
    for item in dataclasses.fields(source):
        choices, value = item.metadata.get("choices"), getattr(source, item.name)
        if choices and value not in choices:
            name = item.name.replace("_", "-")
            raise UserError(f"--{name} {value!s} is not known; give one of {', '.join(map(str, choices))}")


def known() -> list[Known]:
    """Every corpus that has a source file."""
    return [import_module(f"shards.sources.{name}").CORPUS for name in SOURCES]
