"""Bytes of any image -> an upright RGB JPEG, decoded in full once. Untouched where it already is one."""

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

MIN_SIDE = 16  # pixels; nothing to learn from below
MAX_BYTES = 1 << 30
JPEG_START = b"\xff\xd8\xff"
STARTS = (JPEG_START, b"\x89PNG", b"GIF8", b"BM", b"RIFF", b"II*\0", b"MM\0*")  # of files that should be images
ORIENTATION = 0x0112  # the EXIF tag; 1 is upright


class Unusable(Exception):  # noqa: N818 - not an error: an image's fate
    """The image cannot be written. reason: one of entry.REASONS; detail: what exactly was found."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True)
class EncodeOptions:
    """quality: of JPEGs that have to be written anew; max_pixels: more are refused before they fill the memory."""

    quality: int = 95
    max_pixels: int = 100_000_000


@dataclass(frozen=True)
class Encoded:
    """An RGB JPEG and its size in pixels; untouched: these are the source's bytes."""

    jpeg: bytes
    width: int
    height: int
    untouched: bool


def encode(data: bytes, options: EncodeOptions) -> Encoded:
    """Make an upright RGB JPEG of an image file's bytes.

    A JPEG in YCbCr or RGB without a rotation in its EXIF is decoded strictly and kept byte for byte. All else is
    written anew: grey (which stays grey exactly: its chroma is constant), CMYK, rotated, 16-bit, palette, the first
    picture of several; what is transparent becomes white.

    Raises:
        Unusable: with the reason.
    """
    if not data:
        raise Unusable("empty")
    if data.startswith(JPEG_START):
        try:
            height, width, colours, _ = simplejpeg.decode_jpeg_header(data, strict=True)
        except ValueError:  # a subsampling that libjpeg-turbo's simple interface does not name, or damage
            return _anew(data, options)
        _check_size(width, height, options)
        if colours in ("YCbCr", "RGB", "Gray") and _orientation(data) == 1:
            pixels = _strict(lambda: simplejpeg.decode_jpeg(data, "GRAY" if colours == "Gray" else "RGB", strict=True))
            if colours == "Gray":
                return Encoded(_encode_grey(pixels[:, :, 0], options.quality), width, height, untouched=False)
            return Encoded(data, width, height, untouched=True)
        if colours != "CMYK":  # Pillow forgives damage that the strict decoder names
            _strict(lambda: simplejpeg.decode_jpeg(data, "GRAY", strict=True))
    return _anew(data, options)


def _strict(decode: Callable[[], NDArray[np.uint8]]) -> NDArray[np.uint8]:
    try:
        return decode()
    except ValueError as error:
        text = str(error)
        raise Unusable("truncated" if "remature end" in text else "unreadable", text) from None


def _check_size(width: int, height: int, options: EncodeOptions) -> None:
    if min(width, height) < MIN_SIDE:
        raise Unusable("too_small", f"{width} x {height}")
    if width * height > options.max_pixels:
        raise Unusable("too_large", f"{width} x {height}")


def _orientation(data: bytes) -> int:
    """The EXIF orientation of a JPEG, 2 to 8 where it has to be turned; else 1."""
    if b"Exif\0\0" not in data:
        return 1
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "MPO")) as image:
            turned = image.getexif().get(ORIENTATION, 1)
    except Exception:  # noqa: BLE001 - damaged metadata raise anything; the picture itself may be sound
        return 1
    return turned if turned in range(2, 9) else 1


def _anew(data: bytes, options: EncodeOptions) -> Encoded:
    pixels = _decode(data, options)
    height, width = pixels.shape[:2]
    if pixels.ndim == 2:
        return Encoded(_encode_grey(pixels, options.quality), width, height, untouched=False)
    jpeg = simplejpeg.encode_jpeg(pixels, quality=options.quality, colorspace="RGB", colorsubsampling="444")
    return Encoded(jpeg, width, height, untouched=False)


def _decode(data: bytes, options: EncodeOptions) -> NDArray[np.uint8]:
    """Upright pixels [H, W, 3], or [H, W] of a grey image."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
            _check_size(width, height, options)
            image.load()
            upright = ImageOps.exif_transpose(image)
            return np.ascontiguousarray(_eight_bit(upright))
    except Unusable:
        raise
    except Image.DecompressionBombError as error:
        raise Unusable("too_large", str(error)) from None
    except UnidentifiedImageError:
        if data.startswith(STARTS):
            raise Unusable("unreadable", "its header is damaged") from None
        raise Unusable("not_an_image") from None
    except Exception as error:  # noqa: BLE001 - decoders of damaged files raise anything; one file must not stop a build
        # Addresses of objects would make two builds differ.
        text = re.sub(r"0x[0-9a-f]+", "0x", str(error)) or type(error).__name__
        raise Unusable("truncated" if "truncated" in text.lower() else "unreadable", text) from None


def _eight_bit(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode.startswith("I"):  # 16 bits, which Pillow also opens as 32
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise Unusable("unreadable", "32-bit pixels without a known range")
        return ((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    if image.mode == "F":
        raise Unusable("unreadable", "floating-point pixels without a known range")
    if image.has_transparency_data:
        solid = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return np.asarray(Image.alpha_composite(white, solid).convert("RGB"))
    if image.mode in ("1", "L"):
        return np.asarray(image.convert("L"))
    return np.asarray(image.convert("RGB"))


def _encode_grey(pixels: NDArray[np.uint8], quality: int) -> bytes:
    """A YCbCr JPEG of a grey image [H, W]: constant chroma, a quarter the size, costs next to nothing."""
    height, width = pixels.shape
    chroma = _neutral((height + 1) // 2, (width + 1) // 2)
    return simplejpeg.encode_jpeg_yuv_planes(np.ascontiguousarray(pixels), chroma, chroma, quality=quality)


@lru_cache(maxsize=16)
def _neutral(height: int, width: int) -> NDArray[np.uint8]:
    return np.full((height, width), 128, np.uint8)
