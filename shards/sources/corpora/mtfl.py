"""MTFL: faces with five landmarks, gender, smile, glasses and pose; Zhang et al., ECCV 2014.

`training.txt` (photos in `lfw_5590/` and `net_7876/`) and `testing.txt` (in `AFLW/`), in a folder or a zip. A line has
the path, x1 to x5, y1 to y5 (left eye, right eye, nose, left and right mouth corner; pixels), then four attributes.
Lines start with a space and end with CR LF; paths use backslashes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from shards.entry import Entry, Rejected
from shards.sources.containers.corpus_archive import CorpusFiles, require_corpus_files
from shards.sources.corpus_files import numbers, safe_relative_path
from shards.sources.registry import CorpusSpec

LISTS = {"train": "training.txt", "test": "testing.txt"}
PARTS = {
    "lfw_5590": ("train", 4151),
    "net_7876": ("train", 5849),
    "AFLW": ("test", 2995),
}  # folder -> split, number of faces
LANDMARKS = 5
SMILES = ("smiling", "not smiling")
# Meaning of each attribute's numbers, which start at 1.
ATTRIBUTES = {
    "gender": ("male", "female"),
    "smile": SMILES,
    "glasses": ("glasses", "no glasses"),
    "pose": ("left profile", "left", "frontal", "right", "right profile"),
}


@dataclass(frozen=True)
class MTFL:
    """Source: the faces of both lists. Label: smiling or not; extras: all attributes by name."""

    root: Path

    @cached_property
    def files(self) -> CorpusFiles:
        """Files of the corpus. Raises UserError if the folder or zip does not contain them."""
        return require_corpus_files("mtfl", self.root, LISTS["test"], "AFLW")

    def __iter__(self) -> Iterator[Entry | Rejected]:
        """Yield faces in the order of the lists.

        Raises:
            UserError: If a list is missing or corrupt.
        """
        for split in LISTS:
            for number, line in self.lines(split):
                yield _entry(self.files, split, number, line)

    def lines(self, split: str) -> list[tuple[int, str]]:
        """Return line number (from 1) and text of a list's non-blank lines."""
        found = enumerate(self.files.text("mtfl", LISTS[split]).split("\n"), 1)
        return [(number, line.strip()) for number, line in found if line.strip()]


def _entry(files: CorpusFiles, split: str, number: int, line: str) -> Entry | Rejected:
    source = f"{LISTS[split]} line {number}"
    words = line.rsplit(maxsplit=2 * LANDMARKS + len(ATTRIBUTES))  # a path can contain spaces
    values = numbers(" ".join(words[1 : 2 * LANDMARKS + 1]), 2 * LANDMARKS)
    attributes = _attributes(words[2 * LANDMARKS + 1 :])
    if values is None or attributes is None:
        return Rejected(source, "bad_row", "not a path, 10 numbers and 4 attributes")
    path = safe_relative_path(words[0].replace("\\", "/"))
    if path is None:
        return Rejected(source, "outside", words[0])
    read = files.read(path)
    if isinstance(read, Rejected):
        return read
    return Entry(
        key=f"{split}/{PurePosixPath(path).with_suffix('')}",
        source=path,
        read=read,
        label=attributes["smile"],
        split=split,
        landmarks=tuple(zip(values[:LANDMARKS], values[LANDMARKS:], strict=True)),
        extras=attributes,
    )


def _attributes(words: list[str]) -> dict[str, str] | None:
    found = {}
    for (name, meanings), word in zip(ATTRIBUTES.items(), words, strict=False):
        if word not in map(str, range(1, len(meanings) + 1)):
            return None
        found[name] = meanings[int(word) - 1]
    return found if len(found) == len(ATTRIBUTES) == len(words) else None


def expected(source: MTFL) -> dict[str, dict[str, int]]:
    """Return the published counts of the parts that the lists name; some copies omit the LFW part."""
    there = {line.replace("\\", "/").partition("/")[0] for split in LISTS for _, line in source.lines(split)}
    counts: dict[str, dict[str, int]] = {}
    for part, (split, count) in PARTS.items():
        if part in there:
            counts[split] = {"": counts.get(split, {}).get("", 0) + count}
    return counts


CORPUS = CorpusSpec(
    name="mtfl",
    title="MTFL: 10,000 + 2,995 faces with 5 landmarks, smile, gender, glasses and pose.",
    source=MTFL,
    labels=SMILES,
    first_label_id=1,
    terms="MTFL: non-commercial research only; rights of the photos with their owners",
    published_counts=expected,
)
