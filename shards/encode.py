"""Bytes of any image -> upright pixels, decoded in full once -> an RGB JPEG; untouched where it already is one."""

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from shards import depth, png
from shards.align import AlignOptions
from shards.cost import fate
from shards.errors import UserError
from shards.metadata import strip

ROWS = 256  # of an image that are put over white at a time
MIN_SIDE = 16  # pixels; nothing to learn from below
MAX_BYTES = 1 << 30
JPEG_START = b"\xff\xd8\xff"
STARTS = (JPEG_START, b"\x89PNG", b"GIF8", b"BM", b"RIFF", b"II*\0", b"MM\0*")  # of files that should be images
# What Pillow may take a file for, whatever its name says: those of the extensions that are listed (MPO opens as JPEG).
# Of its other formats some start programs (EPS runs gs).
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "TIFF", "GIF", "PPM")
MOST_SIDE = 65_500  # pixels; libjpeg writes no more
ORIENTATION = 0x0112  # the EXIF tag; 1 is upright
XMP = b"http://ns.adobe.com/xap/1.0/\0"


class Unusable(Exception):  # noqa: N818 - not an error: an image's fate
    """The image cannot be written. reason: one of entry.REASONS; detail: what exactly was found."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        """The reason, and what was found."""
        return f"{self.reason}: {self.detail}" if self.detail else self.reason


@dataclass(frozen=True)
class EncodeOptions:
    """What becomes of an image.

    quality: of JPEGs that have to be written anew; max_pixels: more are refused before they fill the memory;
    strip_metadata: take out of JPEGs that are kept what is not the picture; crop: the box with this share of its sides
    around it, None for the whole image; shorter_side: at most so many pixels, 0 for any; align: find faces.
    """

    quality: int = 95
    max_pixels: int = 100_000_000
    strip_metadata: bool = True
    crop: float | None = None
    shorter_side: int = 0
    align: AlignOptions | None = None

    def check(self) -> None:
        """Raise UserError for what cannot be meant."""
        if not 1 <= self.quality <= 100:
            raise UserError(f"--quality {self.quality} is not from 1 to 100")
        if self.crop is not None and not -0.5 < self.crop <= 10:
            raise UserError(f"--crop {self.crop:g} is not above -0.5 and up to 10; 0.25 adds a quarter on each side")
        if self.shorter_side and self.shorter_side < MIN_SIDE:
            raise UserError(f"--shorter-side {self.shorter_side} is below {MIN_SIDE}; 0 keeps the size")
        if self.align:
            self.align.check()


@dataclass(frozen=True)
class Picture:
    """A decoded image: upright pixels [H, W, 3], or [H, W] of a grey one.

    jpeg: a file's bytes that may stay as they are, b"" if it has to be written anew; orientation: the EXIF orientation
    (1 to 8) that was carried out.
    """

    pixels: NDArray[np.uint8]
    jpeg: bytes = b""
    orientation: int = 1

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, upright."""
        return self.pixels.shape[1], self.pixels.shape[0]


@dataclass(frozen=True)
class Encoded:
    """An RGB JPEG and its size in pixels; untouched: the picture in it is the source's, byte for byte."""

    jpeg: bytes
    width: int
    height: int
    untouched: bool


def encode(data: bytes, options: EncodeOptions) -> Encoded:
    """Make an upright RGB JPEG of an image file's bytes, neither cropped nor resized.

    A JPEG in YCbCr or RGB without a rotation in its EXIF is decoded strictly and kept byte for byte, but for its
    metadata. All else is written anew: grey (which stays grey exactly: its chroma is constant), CMYK, rotated, 16-bit,
    palette, the first picture of several; what is transparent becomes white.

    Raises:
        Unusable: with the reason.
    """
    return write(decode(data, options), options)


def decode(data: bytes, options: EncodeOptions) -> Picture:
    """Decode an image file's bytes in full, JPEGs strictly.

    Raises:
        Unusable: with the reason.
    """
    if not data:
        raise Unusable("empty")
    check_cost(data)
    if not data.startswith(JPEG_START):
        return _decode(data, options)
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data, strict=True)
    except ValueError:  # a subsampling that libjpeg-turbo's simple interface does not name, or damage
        return _decode(data, options)
    _check_size(width, height, options)
    if colours in ("YCbCr", "RGB", "Gray") and _orientation(data) == 1:
        if colours == "Gray":
            return Picture(_strict(lambda: simplejpeg.decode_jpeg(data, "GRAY", strict=True))[:, :, 0])
        kept = strip(data) if options.strip_metadata else data
        # What is written is what was decoded, not what it was made from.
        pixels = _strict(lambda: simplejpeg.decode_jpeg(kept or data, "RGB", strict=True))
        return Picture(pixels, kept or b"")
    if colours != "CMYK":  # Pillow forgives damage that the strict decoder names
        _strict(lambda: simplejpeg.decode_jpeg(data, "GRAY", strict=True))
    return _decode(data, options)


def check_cost(data: bytes) -> None:
    """Raise Unusable for a JPEG or PNG whose decoding would take minutes."""
    reason = fate(data)
    if reason:
        raise Unusable(*reason)


def decode_rgb(data: bytes) -> NDArray[np.uint8]:
    """Upright pixels [H, W, 3] of an image file's bytes. Raises Unusable."""
    return _rgb(decode(data, EncodeOptions()).pixels)


def image_rgb(image: Image.Image) -> NDArray[np.uint8]:
    """Upright pixels [H, W, 3] of Pillow's image: those that `decode_rgb` gives of its file. Raises Unusable."""
    if not all(image.size):
        raise Unusable("too_small", f"{image.width} x {image.height}")
    try:
        white = depth.declared_white(image, b"")
        return _rgb(_eight_bit(ImageOps.exif_transpose(image), white))
    except Unusable:
        raise
    except depth.UnknownRangeError as error:
        raise Unusable("unreadable", str(error)) from None
    except Exception as error:  # noqa: BLE001 - as below: Pillow may only now read its file
        raise _damage(error) from None


def _rgb(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[H, W, 3] as it is, or of [H, W]."""
    return pixels if pixels.ndim == 3 else np.repeat(pixels[:, :, None], 3, axis=2)


def write(picture: Picture, options: EncodeOptions) -> Encoded:
    """The picture as a JPEG: its own where it has one. Raises Unusable: larger than a JPEG can be."""
    width, height = picture.size
    if picture.jpeg:
        return Encoded(picture.jpeg, width, height, untouched=True)
    if max(width, height) > MOST_SIDE:
        raise Unusable("too_large", f"{width} x {height}, and a JPEG has at most {MOST_SIDE} on a side")
    if picture.pixels.ndim == 2:
        return Encoded(_encode_grey(picture.pixels, options.quality), width, height, untouched=False)
    pixels = np.ascontiguousarray(picture.pixels)
    jpeg = simplejpeg.encode_jpeg(pixels, quality=options.quality, colorspace="RGB", colorsubsampling="444")
    return Encoded(jpeg, width, height, untouched=False)


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
    """The orientation of a JPEG by its EXIF, else by its XMP: 2 to 8 where it has to be turned; else 1."""
    if b"Exif\0\0" not in data and XMP not in data:
        return 1
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            return _turn(image)
    except Exception:  # noqa: BLE001 - damaged metadata raise anything; the picture itself may be sound
        return 1


def _turn(image: Image.Image) -> int:
    turned = image.getexif().get(ORIENTATION, 1)
    return turned if turned in range(2, 9) else 1


def _decode(data: bytes, options: EncodeOptions) -> Picture:
    """By Pillow, which knows all of FORMATS."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            _check_size(width, height, options)
            orientation = _turn(image)  # before loading: that turns some formats, and forgets
            image.load()
            white = depth.declared_white(image, data)
            if depth.is_dark_colour(image, data):
                pixels = depth.deep_colours(image, data)
                image = Image.fromarray(pixels)  # noqa: PLW2901 - as it should have been opened
                image.getexif()[ORIENTATION] = orientation
            ImageOps.exif_transpose(image, in_place=True)  # else it would be a copy, turned or not
            return Picture(np.ascontiguousarray(_eight_bit(image, white)), b"", orientation)
    except Unusable:
        raise
    except depth.UnknownRangeError as error:
        raise Unusable("unreadable", str(error)) from None
    except Image.DecompressionBombError as error:
        raise Unusable("too_large", str(error)) from None
    except UnidentifiedImageError:
        if data.startswith(STARTS):
            raise Unusable("unreadable", "its header is damaged") from None
        raise Unusable("not_an_image") from None
    except Exception as error:  # noqa: BLE001 - decoders of damaged files raise anything; one file must not stop a build
        lighter = png.without_words(data) if isinstance(error, ValueError) and data.startswith(png.START) else data
        if len(lighter) < len(data):
            return _decode(lighter, options)
        raise _damage(error) from None


def _damage(error: Exception) -> Unusable:
    """What Pillow said. Addresses of objects would make two builds differ."""
    text = re.sub(r"0x[0-9a-f]+", "0x", str(error)) or type(error).__name__
    return Unusable("truncated" if "truncated" in text.lower() else "unreadable", text)


def _eight_bit(image: Image.Image, white: int | None = None) -> NDArray[np.uint8]:
    if image.mode.startswith("I"):  # 16 bits, which Pillow also opens as 32
        return depth.eight_bit(np.asarray(image), white)
    if image.mode == "F":
        raise Unusable("unreadable", "floating-point pixels without a known range")
    if image.has_transparency_data:
        return _over_white(image)
    if image.mode in ("1", "L"):
        return np.asarray(image.convert("L"))
    return np.asarray(image.convert("RGB"))


def _over_white(image: Image.Image) -> NDArray[np.uint8]:
    """[H, W, 3], some rows at a time: Pillow makes four copies of what it is given."""
    width, height = image.size
    pixels = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, ROWS):
        rows = image.crop((0, top, width, min(top + ROWS, height))).convert("RGBA")
        white = Image.new("RGBA", rows.size, "white")
        pixels[top : top + ROWS] = np.asarray(Image.alpha_composite(white, rows).convert("RGB"))
    return pixels


def _encode_grey(pixels: NDArray[np.uint8], quality: int) -> bytes:
    """A YCbCr JPEG of a grey image [H, W]: constant chroma, a quarter the size, costs next to nothing."""
    height, width = pixels.shape
    chroma = _neutral((height + 1) // 2, (width + 1) // 2)
    return simplejpeg.encode_jpeg_yuv_planes(np.ascontiguousarray(pixels), chroma, chroma, quality=quality)


@lru_cache(maxsize=16)
def _neutral(height: int, width: int) -> NDArray[np.uint8]:
    return np.full((height, width), 128, np.uint8)
