"""RecordIO packs as MXNet writes them, split records included; written from the format's description."""

import struct
from pathlib import Path

from helpers.source_kit import write

MAGIC = struct.pack("<I", 0xCED7230A)


def frame(data: bytes, flag: int) -> bytes:
    return MAGIC + struct.pack("<I", flag << 29 | len(data)) + data + bytes(-len(data) % 4)


def record(data: bytes) -> bytes:
    """Split wherever the magic stands at a multiple of four bytes."""
    cuts = [place for place in range(0, len(data) - 3, 4) if data[place : place + 4] == MAGIC]
    parts = [data[start:end] for start, end in zip([0, *(c + 4 for c in cuts)], [*cuts, len(data)], strict=True)]
    flags = [0] if len(parts) == 1 else [1, *[2] * (len(parts) - 2), 3]
    return b"".join(frame(part, flag) for part, flag in zip(parts, flags, strict=True))


def packed(labels: tuple[float, ...], image: bytes, key: int = 0) -> bytes:
    """Header and image: one label in the header, several behind it."""
    if len(labels) == 1:
        return struct.pack("<IfQQ", 0, labels[0], key, 0) + image
    return struct.pack(f"<IfQQ{len(labels)}f", len(labels), 0, key, 0, *labels) + image


def write_pack(folder: Path, images: list[tuple[int, bytes]], name: str = "train", metadata: bool = True) -> Path:
    """A pack of (person, image): record 0 tells where the images end, behind them a record for each person."""
    records = [packed((person,), image, key) for key, (person, image) in enumerate(images, 1)]
    if metadata:
        people = sorted({person for person, _ in images})
        first = len(images) + 1
        records = [packed((first, first + len(people)), b""), *records]
        records += [packed((1, 2), b"", first + number) for number in range(len(people))]
        write(folder / "property", f"{len(people)},112,112")
    content, index = b"", ""
    for key, data in enumerate(records):
        index += f"{key}\t{len(content)}\n"
        content += record(data)
    write(folder / f"{name}.rec", content)
    write(folder / f"{name}.idx", index)
    write(folder / "lfw.bin", b"cposix\nsystem\n(S'false'\ntR.")
    return folder


def with_magic(jpeg: bytes, times: int, shift: int = 0) -> bytes:
    """The same picture with the magic in it, in a comment, aligned to four bytes of the record behind its header."""
    comment = MAGIC * times
    start = (24 + 2 + 4) % 4
    padding = bytes((shift - start) % 4)
    body = padding + comment
    return jpeg[:2] + b"\xff\xfe" + struct.pack(">H", len(body) + 2) + body + jpeg[2:]
