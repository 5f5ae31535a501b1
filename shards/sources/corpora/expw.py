"""ExpW: photos from the web, with a list of their faces, boxes and expressions."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from shards.entry import Entry, Rejected
from shards.errors import UserError
from shards.sources.corpus_files import box, lines, numbers, require_path, safe_relative_path
from shards.sources.registry import CorpusSpec

LABELS = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
COUNTS = (3671, 3995, 1088, 30537, 10559, 7060, 34883)  # 91,793 faces
LISTS = ("label.lst", "label/label.lst", "data/label/label.lst")
IMAGES = ("origin", "image/origin", "data/image/origin")
FIELDS = 8  # name, number of the face, top, left, right, bottom, confidence, label


@dataclass(frozen=True)
class ExpW:
    """Source: all faces in split train. An entry is a face; box locates it in the photo. Group: photo (may show
    several).

    Extras: number of the face in its photo, confidence of the detector that drew the box.
    """

    root: Path

    def __iter__(self) -> Iterator[Entry | Rejected]:
        """Yield faces in the order of the list.

        Raises:
            UserError: If the list or photos are missing, or no line of the list has eight fields.
        """
        file = require_path("expw", self.root, "list of faces", *LISTS)
        images = require_path("expw", self.root, "folder of photos", *IMAGES)
        usable = False
        for number, line in lines(file):
            # A name can contain spaces; the seven fields after it cannot.
            fields = line.rsplit(maxsplit=FIELDS - 1)
            usable |= len(fields) == FIELDS
            yield self._entry(images, f"{file.name} line {number}", fields)
        if not usable:
            raise UserError(
                f"expw: no line of {file} has the {FIELDS} fields: name face top left right bottom confidence label. "
                "Fix: use the original, unmodified file."
            )

    def _entry(self, images: Path, place: str, fields: list[str]) -> Entry | Rejected:
        values = numbers(" ".join(fields[1:]), FIELDS - 1)
        if values is None or values[6] not in range(len(LABELS)) or not values[0].is_integer():
            return Rejected(place, "bad_row", repr(" ".join(fields)))
        path = safe_relative_path(fields[0])
        if path is None:
            return Rejected(place, "outside", repr(fields[0]))
        face, top, left, right, bottom, confidence, label = values
        source = f"{(images / path).relative_to(self.root).as_posix()}#{int(face)}"
        frame = box(left, top, right - left, bottom - top)
        if frame is None:
            return Rejected(source, "bad_row", f"{place}: a box without area")
        return Entry(
            key=f"{path}/{int(face)}",
            source=source,
            read=images / path,
            label=LABELS[int(label)],
            group=path,
            box=frame,
            extras={"face": int(face), "confidence": confidence},
        )


CORPUS = CorpusSpec(
    name="expw",
    title="ExpW: 91,793 faces in photos from the web, with boxes.",
    source=ExpW,
    labels=LABELS,
    terms="non-commercial research only; rights of the photos with their owners",
    published_counts=lambda source: {"train": dict(zip(LABELS, COUNTS, strict=True))},
    needs_crop=lambda source: True,
)
