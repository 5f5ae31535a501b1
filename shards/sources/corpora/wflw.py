"""WFLW: 10,000 faces with 98 landmarks in the photos of WIDER FACE; Wu et al., CVPR 2018.

`WFLW_images/<event>/<photo>.jpg`; in `WFLW_annotations/list_98pt_rect_attr_train_test/` the lists
`list_98pt_rect_attr_{train,test}.txt`: per line 196 coordinates, a box x1 y1 x2 y2, 6 flags, the photo's path.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from shards.entry import Entry, Rejected
from shards.sources.corpus_files import box, first_existing, lines, numbers, points, require_path, safe_relative_path
from shards.sources.registry import CorpusSpec

EXPECTED = {"train": 7500, "test": 2500}
FLAGS = ("pose", "expression", "illumination", "make-up", "occlusion", "blur")
LIST_FOLDERS = (
    "WFLW_annotations/list_98pt_rect_attr_train_test/",
    "list_98pt_rect_attr_train_test/",
    "WFLW_annotations/",
    "",
)
LANDMARKS = 98


@dataclass(frozen=True)
class WFLW:
    """Source: the faces of both lists."""

    root: Path

    def __iter__(self) -> Iterator[Entry | Rejected]:
        """Yield faces with landmarks, box, group = photo (it may show several faces); extras: the flags that are set.

        Raises:
            UserError: If the images or both lists are missing.
        """
        images = require_path("wflw", self.root, "images", "WFLW_images", "images").absolute()
        require_path("wflw", self.root, "list", *self._places("train"), *self._places("test"))
        for split in EXPECTED:
            file = first_existing(self.root, *self._places(split))
            faces: Counter[str] = Counter()
            for number, line in lines(file) if file else ():
                item = _entry(images, split, line, faces)
                yield item if isinstance(item, Entry) else Rejected(*(item or _bad(file, number)))

    def _places(self, split: str) -> tuple[str, ...]:
        return tuple(f"{folder}list_98pt_rect_attr_{split}.txt" for folder in LIST_FOLDERS)


def _bad(file: Path | None, number: int) -> tuple[str, str, str]:
    return f"{file.name if file else ''} line {number}", "bad_row", "not 206 numbers and a path"


def _entry(images: Path, split: str, line: str, faces: Counter[str]) -> Entry | tuple[str, str] | None:
    """Return one face, or source and reason if its path leads outside, or None for a corrupt line."""
    words = line.split(maxsplit=2 * LANDMARKS + 10)
    values = numbers(" ".join(words[:-1]), 2 * LANDMARKS + 10)
    if values is None:
        return None
    path = safe_relative_path(words[-1])
    if path is None:
        return words[-1], "outside"
    left, top, right, bottom = values[2 * LANDMARKS : 2 * LANDMARKS + 4]
    faces[path] += 1
    return Entry(
        key=f"{split}/{PurePosixPath(path).with_suffix('')}/{faces[path]}",
        source=path,
        read=images / path,
        split=split,
        group=path,
        box=box(left, top, right - left, bottom - top),
        landmarks=points(values[: 2 * LANDMARKS]),
        extras={"flags": [name for name, flag in zip(FLAGS, values[-6:], strict=True) if flag]},
    )


CORPUS = CorpusSpec(
    name="wflw",
    title="WFLW: 7,500 + 2,500 faces with 98 landmarks.",
    source=WFLW,
    terms="WFLW: non-commercial research only; photos of WIDER FACE, rights with their owners",
    published_counts=lambda source: {
        split: {"": count} for split, count in EXPECTED.items() if first_existing(source.root, *source._places(split))
    },
    needs_crop=lambda source: True,
)
