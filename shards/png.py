"""Chunks of PNG files: how deep the pixels are, and a file without the words and profiles beside its picture."""

from collections.abc import Iterator

START = b"\x89PNG\r\n\x1a\n"
XMP = b"XML:com.adobe.xmp\0\0"  # may say how the image has to be turned; not compressed
MOST_XMP = 1 << 20
BESIDE = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")  # not needed to decode; the colour profile is not applied anyway


def chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start and end of each whole chunk, the end with its checksum."""
    place = len(START) if data.startswith(START) else len(data)
    while place + 12 <= len(data):
        end = place + 12 + int.from_bytes(data[place : place + 4], "big")
        if end > len(data):
            return
        yield data[place + 4 : place + 8], place, end
        place = end


def is_deep(data: bytes) -> bool:
    """Whether it is a PNG of 16 bits a channel."""
    return data.startswith(START) and data[24:25] == b"\x10"


def significant_bits(data: bytes) -> int | None:
    """The largest number of bits that sBIT gives a colour channel; None without it."""
    for kind, start, end in chunks(data):
        if kind == b"sBIT":
            bits = data[start + 8 : end - 4]
            colours = bits[:-1] if data[25:26] in (b"\x04", b"\x06") else bits  # the last one is of the alpha channel
            return max(colours, default=0) or None
        if kind == b"IDAT":
            return None
    return None


def without_words(data: bytes) -> bytes:
    """The same picture without texts and colour profile, which may be larger than Pillow takes; XMP is kept."""
    parts, after = [data[: len(START)]], len(START)
    for kind, start, end in chunks(data):
        content = data[start + 8 : end - 4]
        if kind not in BESIDE or (content.startswith(XMP) and len(content) < MOST_XMP):
            parts.append(data[start:end])
        after = end
    return b"".join([*parts, data[after:]])
