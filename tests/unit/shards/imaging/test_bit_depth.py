"""Images of 10 or 12 bits, orientation in XMP, PNGs with large texts: the right pixels, or a reason."""

import io
import struct
import zlib

import numpy as np
import pytest
from helpers.corpus_fixtures import encoded, picture
from PIL import Image, PngImagePlugin

from shards.imaging.codec import EncodeOptions, ImageRejected, decode, decode_rgb, image_rgb
from shards.imaging.png_chunks import START

FACE = picture(1)
GRAY, COLOR = np.asarray(FACE.convert("L")), np.asarray(FACE)
XMP = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="{}"/></x:xmpmeta>'


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def deep_png(values: np.ndarray, bits: bytes = b"") -> bytes:
    """A PNG of 16 bits with sBIT."""
    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.tobytes() for row in values.astype(">u2"))
    header = struct.pack(">IIBBBBB", width, height, 16, 2 if values.ndim == 3 else 0, 0, 0, 0)
    said = chunk(b"sBIT", bits) if bits else b""
    return START + chunk(b"IHDR", header) + said + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def check_like(data: bytes, wanted: np.ndarray) -> None:
    found = decode(data, EncodeOptions()).pixels
    assert found.shape == wanted.shape
    assert np.abs(found.astype(int) - wanted).max() <= 1


def reason(data: bytes) -> str:
    with pytest.raises(ImageRejected) as caught:
        decode(data, EncodeOptions())
    return str(caught.value)


@pytest.mark.parametrize("bits", [10, 12, 14])
@pytest.mark.parametrize("pixels", [GRAY, COLOR], ids=["gray", "color"])
def test_significant_bits_of_a_png(pixels: np.ndarray, bits: int) -> None:
    values = pixels.astype(np.uint32) * ((1 << bits) - 1) // 255
    check_like(deep_png(values, bytes([bits] * (3 if pixels.ndim == 3 else 1))), pixels)
    assert "unknown range" in reason(deep_png(values))


@pytest.mark.parametrize("pixels", [GRAY, COLOR], ids=["gray", "color"])
def test_values_that_are_scaled_to_16_bits_stay(pixels: np.ndarray) -> None:
    check_like(deep_png(pixels.astype(int) * 257), pixels)
    check_like(deep_png(pixels.astype(int) * 257, bytes([12] * (3 if pixels.ndim == 3 else 1))), pixels)


def test_the_largest_value_of_a_tiff() -> None:
    values = Image.fromarray((GRAY.astype(np.uint32) * 4095 // 255).astype(np.uint16))
    check_like(encoded(values, "TIFF", tiffinfo={281: 4095}), GRAY)
    assert "unknown range" in reason(encoded(values, "TIFF"))


def test_eight_bits_in_32_are_refused() -> None:
    image = Image.fromarray(GRAY.astype(np.int32))
    assert "unknown range" in reason(encoded(image, "TIFF"))
    with pytest.raises(ImageRejected, match="unknown range"):
        image_rgb(image)


def test_a_pgm_says_its_range() -> None:
    values = (GRAY.astype(int) * 1023 // 255).astype(">u2")
    height, width = GRAY.shape
    check_like(b"P5\n%d %d\n1023\n" % (width, height) + values.tobytes(), GRAY)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(("turn", "way"), [(6, Image.Transpose.ROTATE_270), (3, Image.Transpose.ROTATE_180)])
def test_an_orientation_only_in_xmp_turns_all_formats(kind: str, turn: int, way: Image.Transpose) -> None:
    xmp = XMP.format(turn).encode()
    how: dict[str, object] = {"xmp": xmp}
    if kind == "PNG":
        info = PngImagePlugin.PngInfo()
        info.add_itxt("XML:com.adobe.xmp", xmp.decode())
        how = {"pnginfo": info}
    how |= {"lossless": True} if kind == "WEBP" else {"quality": 95} if kind == "JPEG" else {}
    data = encoded(FACE, kind, **how)
    wanted = np.asarray(FACE.transpose(way)).astype(int)
    assert np.abs(decode_rgb(data) - wanted).mean() <= 3
    assert decode(data, EncodeOptions()).orientation == turn
    assert np.array_equal(decode_rgb(data), image_rgb(Image.open(io.BytesIO(data)))) or kind == "JPEG"
    assert decode_rgb(data).shape == image_rgb(Image.open(io.BytesIO(data))).shape == wanted.shape


@pytest.mark.parametrize("kind", [b"tEXt", b"zTXt", b"iTXt", b"iCCP"])
def test_a_sound_png_with_large_words(kind: bytes) -> None:
    words = bytes(range(1, 256)) * 8192
    packed = zlib.compress(words)
    content = {
        b"tEXt": b"k\0" + words.replace(b"\0", b""),
        b"zTXt": b"k\0\0" + packed,
        b"iTXt": b"k\0\1\0\0\0" + packed,
        b"iCCP": b"p\0\0" + packed,
    }[kind]
    plain = encoded(FACE, "PNG")
    many = chunk(kind, content) * (40 if kind == b"tEXt" else 1)
    data = plain[:33] + many + plain[33:]
    assert np.array_equal(decode_rgb(data), COLOR)
    assert reason(data[:-40]).startswith(("truncated", "unreadable"))
