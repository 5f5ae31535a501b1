"""Corpora that we know by name: how each is read, what its labels mean, what it should hold, what it may be used for.

A source file defines one frozen dataclass, the source, and one `CORPUS = Known(...)`. The source's first field is
`root`, the folder as its users received it; its other fields have defaults and become options of the subcommand.
Iterated, it yields an Entry or Rejected for everything that the corpus lists, in a fixed order, as often as asked.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib import import_module

from shards.entry import Entry, Rejected

SOURCES: tuple[str, ...] = ()
"""Modules below shards.sources that hold a CORPUS, in the order in which the command lists them."""


@dataclass(frozen=True)
class Known:
    """One corpus.

    name: the subcommand; title: one line for people; source: the dataclass; labels: names in the corpus's own
    numbering, () for unlabelled; terms: of use, in a sentence, for the manifest.
    expected(source) -> {split: {label: count}} as published for the release that `source` finds in its root, {} where
    nothing is published; the label "" counts a whole unlabelled split. A difference is reported, not refused.
    """

    name: str
    title: str
    source: Callable[..., Iterable[Entry | Rejected]]
    terms: str
    labels: tuple[str, ...] = ()
    expected: Callable[..., dict[str, dict[str, int]]] = field(default=lambda source: {})


def known() -> list[Known]:
    """Every corpus that has a source file."""
    return [import_module(f"shards.sources.{name}").CORPUS for name in SOURCES]
