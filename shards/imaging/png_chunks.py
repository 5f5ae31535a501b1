"""Read chunks of PNG files: bit depth, and the file without texts and color profile."""

from collections.abc import Iterator

START = b"\x89PNG\r\n\x1a\n"
XMP = b"XML:com.adobe.xmp\0\0"  # may contain the orientation; not compressed
MAX_XMP = 1 << 20
TEXT_CHUNKS = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")  # not needed to decode; the color profile is not applied


def chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield type, start and end (including the checksum) of each complete chunk."""
    place = len(START) if data.startswith(START) else len(data)
    while place + 12 <= len(data):
        end = place + 12 + int.from_bytes(data[place : place + 4], "big")
        if end > len(data):
            return
        yield data[place + 4 : place + 8], place, end
        place = end


def is_deep(data: bytes) -> bool:
    """Return whether the data is a PNG with 16 bits per channel."""
    return data.startswith(START) and data[24:25] == b"\x10"


def significant_bits(data: bytes) -> int | None:
    """Return the largest bit depth that sBIT declares for a color channel, or None without sBIT."""
    for kind, start, end in chunks(data):
        if kind == b"sBIT":
            bits = data[start + 8 : end - 4]
            colors = bits[:-1] if data[25:26] in (b"\x04", b"\x06") else bits  # the last one is the alpha channel
            return max(colors, default=0) or None
        if kind == b"IDAT":
            return None
    return None


def strip_text_chunks(data: bytes) -> bytes:
    """Return the image without texts and color profile, which can exceed Pillow's limit; XMP is kept."""
    parts, after = [data[: len(START)]], len(START)
    for kind, start, end in chunks(data):
        content = data[start + 8 : end - 4]
        if kind not in TEXT_CHUNKS or (content.startswith(XMP) and len(content) < MAX_XMP):
            parts.append(data[start:end])
        after = end
    return b"".join([*parts, data[after:]])
