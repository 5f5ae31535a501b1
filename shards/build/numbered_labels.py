"""Map numeric labels to label names: number n is the n-th name, counted from 0 or 1."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from shards.entry import Entry, Rejected
from shards.errors import UserError
from shards.rules import normalize_label

NUMBER = re.compile(r"[0-9]{1,9}")


@dataclass(frozen=True)
class NamedLabels:
    """Re-iterable entries whose numeric labels are replaced by names. first: 0 or 1."""

    entries: Iterable[Entry | Rejected]
    names: tuple[str, ...]
    first: int

    def __iter__(self) -> Iterator[Entry | Rejected]:
        for item in self.entries:
            label = normalize_label(item.label) if isinstance(item, Entry) else None
            if isinstance(item, Entry) and label and NUMBER.fullmatch(label):
                place = int(label) - self.first
                yield replace(item, label=self.names[place]) if 0 <= place < len(self.names) else item
            else:
                yield item


def map_numbered_labels(entries: Iterable[Entry | Rejected], names: tuple[str, ...]) -> Iterable[Entry | Rejected]:
    """Replace numeric labels by `names` if no name is a number and all labels are; else keep the entries.

    Raises:
        UserError: If it is ambiguous whether the numbers start at 0 or 1.
    """
    if not names or any(NUMBER.fullmatch(name) for name in names):
        return entries
    found = {normalize_label(item.label) for item in entries if isinstance(item, Entry)} - {None}
    numbers = {int(label) for label in found if label and NUMBER.fullmatch(label)}
    if not numbers or len(numbers) < len(found):
        return entries
    fitting = [first for first in (0, 1) if min(numbers) >= first and max(numbers) < len(names) + first]
    if len(fitting) != 1:
        told = ", ".join(map(str, sorted(numbers)[:10]))
        why = "may start at 0 or 1" if fitting else f"do not match {len(names)} names"
        raise UserError(
            f"--labels={','.join(names)}: the labels are the numbers {told}, which {why}. "
            "Fix: remove --labels, or write names to the list."
        )
    return NamedLabels(entries, names, fitting[0])
