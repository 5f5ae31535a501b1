"""Packs of faces in MXNet's RecordIO: MS1M-ArcFace, MS1M-RetinaFace, Glint360K, CASIA-WebFace and others.

`train.rec`, `train.idx` (lines of key and offset; optional), `property` ("93431,112,112": people, height, width). A
record: u32 magic, u32 (cflag << 29 | length), data padded to 4 bytes. Data that contains the magic is split there:
cflag 1 begins, 2 continues, 3 ends, and the magic between them is omitted. The data: flag u32, label f32, id u64, id2
u64, then `flag` float32 labels instead of one, then the image. Record 0 of most packs has no image: its first label is
the first key without image. The verification `.bin` files beside them are pickles and are never opened.
"""

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from shards.entry import Entry, LazyBytes, Rejected
from shards.errors import UserError
from shards.io.atomic import open_regular, read_text
from shards.rules import TEST, TRAIN, VAL, normalize_split
from shards.sources.corpus_files import describe_dir, lines, list_dir
from shards.sources.registry import CorpusSpec, option

MAGIC = 0xCED7230A
FRAME = struct.Struct("<II")
HEADER = struct.Struct("<IfQQ")
WHOLE, BEGIN, END = 0, 1, 3  # cflag
MOST_PARTS = 1000  # per record: one more per magic in its data, which is very rare
MOST_LABELS = 1000  # per record
MOST_BYTES = 1 << 30  # per record, as for any image file
DIGITS = 18  # maximum digits of a key or offset
IMAGES = {
    85_742: 5_822_653,
    93_431: 5_179_510,
    360_232: 17_091_657,
}  # number of people -> images: MS1MV2, MS1MV3, Glint360K


class DamagedRecord(Exception):  # noqa: N818 - the result for one record, like ImageRejected
    """Error: there is no complete record at that offset."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


class RecordIORecord(NamedTuple):
    """Labels of a record and the size of its image in bytes (0 = no image)."""

    labels: tuple[float, ...]
    image: int


@dataclass(frozen=True)
class RecordIO:
    """Source: the images of one .rec file, or of all .rec files in a folder."""

    root: Path
    label_is_class: bool = option(False, "use a record's label as the class, not as the person")

    def __iter__(self) -> Iterator[Entry | Rejected]:
        """Yield images with group = person, or label = class; split by file name.

        Raises:
            UserError: If there is no .rec file, or one is invalid.
        """
        for pack in self._packs():
            with open_regular(pack, "rb", buffering=0) as data:
                yield from self._pack(pack.absolute(), data.fileno())

    def _packs(self) -> list[Path]:
        if self.root.suffix == ".rec" and self.root.is_file():
            return [self.root]
        if not self.root.is_dir():
            raise UserError(f"recordio={self.root}: neither a folder nor a .rec file. Fix: check the path.")
        packs = [self.root / name for name in list_dir(self.root) if name.endswith(".rec")]
        if not packs:
            raise UserError(
                f"recordio: no .rec file in {self.root} (found: {describe_dir(self.root)}). Fix: check the path."
            )
        return packs

    def _pack(self, pack: Path, data: int) -> Iterator[Entry | Rejected]:
        try:
            first = read_record(data, 0)
        except DamagedRecord as damage:
            raise UserError(
                f"recordio: {pack} does not begin with a complete record ({damage.detail}). Fix: download it again."
            ) from None
        # Keys 1 to count - 1 are images; the others list the keys of each person.
        count = int(first.labels[0]) if len(first.labels) > 1 and not first.image else None
        most = os.fstat(data).st_size // (FRAME.size + HEADER.size) + 1
        if count is not None and not 0 <= count <= most:
            raise UserError(
                f"recordio: {pack} declares {count} records, but has room for {most}. Fix: download it again."
            )
        seen = bytearray(count or 0)
        index = pack.with_suffix(".idx")
        for key, offset in _indexed(index) if index.is_file() else _scanned(data):
            if offset is None:
                yield Rejected(f"{index.name} line {key}", "bad_row", "not a key and an offset")
            elif count is None or 0 < key < count:
                yield self._entry(pack, data, key, offset)
                if count is not None:
                    seen[key] = 1
        for key in range(1, count or 0):
            if not seen[key]:
                yield Rejected(f"{pack.name}/{key}", "missing")

    def _entry(self, pack: Path, data: int, key: int, offset: int) -> Entry | Rejected:
        source = f"{pack.name}/{key}"
        try:
            name = f"{read_record(data, offset).labels[0]:.0f}"
        except DamagedRecord as damage:
            return Rejected(source, damage.reason, damage.detail)
        split = normalize_split(pack.stem)
        return Entry(
            key=f"{pack.stem}/{key:08d}",
            source=source,
            read=LazyBytes("recordio_image", (offset,), pack),
            label=name if self.label_is_class else None,
            split=split if split in (TRAIN, VAL, TEST) else None,
            group=None if self.label_is_class else name,
        )


def _indexed(index: Path) -> Iterator[tuple[int, int | None]]:
    """Yield key and offset of each record in an index; (line number, None) for a corrupt line."""
    for number, line in lines(index):
        words = line.split()
        if len(words) == 2 and all(word.isdecimal() and len(word) <= DIGITS for word in words):
            yield int(words[0]), int(words[1])
        else:
            yield number, None


def _scanned(data: int) -> Iterator[tuple[int, int]]:
    """Yield key and offset of each record by scanning; a corrupt last record ends the scan."""
    size = os.fstat(data).st_size
    key = offset = 0
    while offset < size:
        yield key, offset
        try:
            *_, (offset, _) = _parts(data, offset)
        except DamagedRecord:
            return
        key += 1


def _parts(data: int, offset: int) -> list[tuple[int, int]]:
    """Return (offset, size) of the parts of one record, and last (offset, 0) of the next record.

    Raises:
        DamagedRecord: If no record starts there, or the file ends within it.
    """
    size = os.fstat(data).st_size
    found: list[tuple[int, int]] = []
    while True:
        frame = os.pread(data, FRAME.size, offset)
        if len(frame) < FRAME.size:
            raise DamagedRecord("truncated", f"the file ends at byte {size}")
        magic, word = FRAME.unpack(frame)
        flag, length = word >> 29, word & (1 << 29) - 1
        if magic != MAGIC or (flag in (WHOLE, BEGIN)) == bool(found):
            raise DamagedRecord("unreadable", f"no record at byte {offset}")
        found.append((offset + FRAME.size, length))
        if len(found) > MOST_PARTS:
            raise DamagedRecord("unreadable", f"a record of more than {MOST_PARTS} parts ends at byte {offset}")
        offset += FRAME.size + (length + 3) // 4 * 4
        if found[-1][0] + length > size:
            raise DamagedRecord("truncated", f"the file ends at byte {size}")
        if flag in (WHOLE, END):
            return [*found, (offset, 0)]


def _join(data: int, parts: list[tuple[int, int]], most: int | None = None) -> bytes:
    """Return the data of a record, or its first `most` bytes."""
    if most is not None and len(parts) == 1:
        return os.pread(data, min(most, parts[0][1]), parts[0][0])
    joined = MAGIC.to_bytes(4, "little").join(os.pread(data, size, offset) for offset, size in parts)
    return joined[:most]


def read_record(data: int, offset: int) -> RecordIORecord:
    """Read a record's labels and image size; `data` is a file descriptor.

    Raises:
        DamagedRecord: If there is no complete record.
    """
    *parts, _ = _parts(data, offset)
    size = sum(length for _, length in parts) + 4 * (len(parts) - 1)
    if size < HEADER.size:
        raise DamagedRecord("unreadable", f"the record at byte {offset} has no header")
    if size > MOST_BYTES:
        raise DamagedRecord("too_large", "more than 1 GiB")
    flag, label, _, _ = HEADER.unpack(_join(data, parts, HEADER.size))
    if flag > MOST_LABELS:
        raise DamagedRecord(
            "unreadable", f"the record at byte {offset} has {flag} labels; the maximum is {MOST_LABELS}"
        )
    behind = HEADER.size + 4 * flag
    if size < behind:
        raise DamagedRecord("unreadable", f"the record at byte {offset} is shorter than its {flag} labels")
    labels = struct.unpack(f"<{flag}f", _join(data, parts, behind)[HEADER.size :]) if flag else (label,)
    if not all(abs(value) < float("inf") for value in labels):
        raise DamagedRecord("bad_row", f"the labels of the record at byte {offset} are not numbers")
    return RecordIORecord(labels, size - behind)


def read_image(file: Path, offset: int) -> bytes:
    """Return the image of the record at `offset`; runs in a worker.

    Raises:
        ImageRejected: If there is no complete record.
    """
    from shards.imaging.codec import ImageRejected

    with open_regular(file, "rb", buffering=0) as data:
        try:
            image = read_record(data.fileno(), offset).image
            *parts, _ = _parts(data.fileno(), offset)
            joined = _join(data.fileno(), parts)
        except DamagedRecord as damage:
            raise ImageRejected(damage.reason, damage.detail) from None
    return joined[len(joined) - image :]


def expected(source: RecordIO) -> dict[str, dict[str, int]]:
    """Return the published number of images, by the number of people in `property`."""
    file = (source.root if source.root.is_dir() else source.root.parent) / "property"
    people = read_text(file, errors="replace").partition(",")[0].strip() if file.is_file() else ""
    count = IMAGES.get(int(people)) if people.isdecimal() else None
    return {"train": {"": count}} if count else {}


CORPUS = CorpusSpec(
    name="recordio",
    title="RecordIO packs (.rec): MS1M-ArcFace, CASIA-WebFace, Glint360K and others; identities, no expressions.",
    source=RecordIO,
    terms="face recognition packs: non-commercial research only; rights of the photos with their owners",
    published_counts=expected,
)
