"""Find identical image files in several splits of a corpus; report or drop them."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from shards.entry import Entry, Rejected
from shards.io.hashing import short_hash
from shards.sources.containers.corpus_archive import digest_of

KEEP, DROP = "keep", "drop"
CHOICES = (KEEP, DROP)
HELP = "images of val or test that are also in train (for val, also in test): keep or drop"
# split -> splits that have precedence over it
YIELDS = {"val": ("train", "test"), "test": ("train",)}

Items = Callable[[], Iterable[Entry | Rejected]]


@dataclass
class LeakReport:
    """Splits of each image. counts: (split, other split) -> number of shared images, after a pass."""

    seen: dict[bytes, set[str]] = field(default_factory=dict)
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)

    def check(self, items: Items, leaks: str) -> Iterator[Entry | Rejected]:
        """Yield the same items in order; with "drop", shared images as Rejected. `items` is called once or twice."""
        self.seen.clear()
        self.counts.clear()
        if leaks == DROP:
            for item in items():
                self._hash_item(item)
        kept: Counter[tuple[bytes, str]] = Counter()
        for item in items():
            digest = self._hash_item(item)
            if digest is not None and isinstance(item, Entry):
                kept[digest, str(item.split)] += 1
                other = self._other_split(digest, str(item.split))
                if leaks == DROP and other:
                    yield Rejected(item.source, "leaked", f"{other} has the same image")
                    continue
            yield item
        for (digest, split), count in kept.items():
            for other in self.seen[digest] - {split}:
                self.counts[split, other] += count

    def _hash_item(self, item: Entry | Rejected) -> bytes | None:
        if not isinstance(item, Entry) or item.split is None or not (data := digest_of(item.read)):
            return None
        digest = short_hash(data, 16)
        self.seen.setdefault(digest, set()).add(item.split)
        return digest

    def _other_split(self, digest: bytes, split: str) -> str:
        return next((other for other in YIELDS.get(split, ()) if other in self.seen[digest]), "")

    def notes(self, leaks: str) -> list[str]:
        """Return a note about the shared images, after a pass."""
        pairs = [(split, other) for split, others in YIELDS.items() for other in others if self.counts[split, other]]
        if not pairs:
            return []
        told = ", ".join(f"{self.counts[pair]} of {pair[0]} are in {pair[1]}" for pair in pairs)
        done = "dropped from the first" if leaks == DROP else "add --leaks drop to drop them from the first"
        return [f"identical images in two splits: {told}; {done}"]


def published(counts: dict[str, dict[str, int]], leaks: str) -> dict[str, dict[str, int]]:
    """Return the published counts of the splits that lose no images."""
    return {split: found for split, found in counts.items() if leaks == KEEP or split not in YIELDS}
