"""Decode any image to upright pixels, once and in full, and encode it as an RGB JPEG; keep valid JPEGs as they are."""

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from shards.errors import UserError
from shards.imaging import bit_depth, png_chunks
from shards.imaging.align import AlignOptions
from shards.imaging.jpeg_limits import rejection
from shards.imaging.jpeg_metadata import strip_metadata

ROWS = 256  # image rows composited over white at a time
MIN_SIDE = 16  # pixels; smaller images are useless for training
MAX_BYTES = 1 << 30
JPEG_START = b"\xff\xd8\xff"
FTYP_IMAGES = (b"heic", b"heix", b"heif", b"heim", b"hevc", b"mif1", b"msf1", b"avif", b"avis")
OTHER_STARTS = (  # of files that are often named like images
    (b"<!DOCTYPE", "a web page", "download the image again"),
    (b"<html", "a web page", "download the image again"),
    (b"version https://git-lfs", "a Git LFS pointer", "run git lfs pull"),
    (b"<svg", "SVG", "convert it to JPEG"),
    (b"%PDF", "PDF", "convert it to JPEG"),
)
STARTS = (
    JPEG_START,
    b"\x89PNG",
    b"GIF8",
    b"BM",
    b"RIFF",
    b"II*\0",
    b"MM\0*",
)  # magic numbers of files that should be images
# Formats that Pillow may detect, independent of the file name: those of the listed extensions (MPO opens as JPEG).
# Some of its other formats start programs (EPS runs gs).
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "TIFF", "GIF", "PPM")
MAX_SIDE = 65_500  # pixels; libjpeg's maximum
ORIENTATION = 0x0112  # the EXIF tag; 1 is upright
XMP = b"http://ns.adobe.com/xap/1.0/\0"


class ImageRejected(Exception):  # noqa: N818 - not an error but the result for one image
    """Error: the image cannot be written. reason: one of entry.REJECT_REASONS; detail: the exact finding."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        """Return reason and detail."""
        return f"{self.reason}: {self.detail}" if self.detail else self.reason


@dataclass(frozen=True)
class EncodeOptions:
    """Options of the conversion to JPEG.

    quality: JPEG quality of re-encoded images, 1 to 100; max_pixels: larger images are rejected before they fill the
    memory; strip_metadata: remove metadata from JPEGs that are kept; crop: margin around the box as a fraction of its
    sides, None for the whole image; shorter_side: maximum in pixels (0 = keep); align: detect faces.
    """

    quality: int = 95
    max_pixels: int = 100_000_000
    strip_metadata: bool = True
    crop: float | None = None
    shorter_side: int = 0
    align: AlignOptions | None = None

    def check(self) -> None:
        """Raise UserError for options out of range."""
        if not 1 <= self.quality <= 100:
            raise UserError(f"--quality={self.quality}: out of range. Fix: pass 1 to 100.")
        if self.crop is not None and not -0.5 < self.crop <= 10:
            raise UserError(
                f"--crop={self.crop:g}: must be above -0.5 and at most 10. Fix: pass 0.25 for a quarter per side."
            )
        if self.shorter_side and self.shorter_side < MIN_SIDE:
            raise UserError(f"--shorter-side={self.shorter_side}: below {MIN_SIDE}. Fix: raise it, or pass 0.")
        if self.align:
            self.align.check()


@dataclass(frozen=True)
class DecodedImage:
    """A decoded image: upright pixels [H, W, 3], or [H, W] if grayscale.

    jpeg: a file's bytes that can be kept as they are, b"" if the image must be re-encoded; orientation: the EXIF
    orientation (1 to 8) that was applied.
    """

    pixels: NDArray[np.uint8]
    jpeg: bytes = b""
    orientation: int = 1

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the upright image."""
        return self.pixels.shape[1], self.pixels.shape[0]


@dataclass(frozen=True)
class EncodedImage:
    """An RGB JPEG and its size in pixels; bytes_kept: whether its image data equals the source's, byte for byte."""

    jpeg: bytes
    width: int
    height: int
    bytes_kept: bool


def encode(data: bytes, options: EncodeOptions) -> EncodedImage:
    """Convert an image file to an upright RGB JPEG, without cropping or resizing.

    A JPEG in YCbCr or RGB without EXIF rotation is decoded strictly and kept byte for byte except for its metadata.
    Other images are re-encoded: grayscale (exact, because its chroma is constant), CMYK, rotated, 16-bit, palette, the
    first frame of several. Transparent areas become white.

    Raises:
        ImageRejected: If the image is corrupt, too large or of an unsupported format.
    """
    return encode_jpeg(decode(data, options), options)


def decode(data: bytes, options: EncodeOptions) -> DecodedImage:
    """Decode an image file in full, JPEGs strictly.

    Raises:
        ImageRejected: If the image is corrupt, too large or of an unsupported format.
    """
    if not data:
        raise ImageRejected("empty")
    check_cost(data)
    if not data.startswith(JPEG_START):
        return _decode(data, options)
    try:
        height, width, colors, _ = simplejpeg.decode_jpeg_header(data, strict=True)
    except ValueError:  # a subsampling unknown to libjpeg-turbo's simple interface, or a corrupt header
        return _decode(data, options)
    _check_size(width, height, options)
    if colors in ("YCbCr", "RGB", "Gray") and _orientation(data) == 1:
        if colors == "Gray":
            return DecodedImage(_strict(lambda: simplejpeg.decode_jpeg(data, "GRAY", strict=True))[:, :, 0])
        kept = strip_metadata(data) if options.strip_metadata else data
        # Decode the bytes that will be written, not the original ones.
        pixels = _strict(lambda: simplejpeg.decode_jpeg(kept or data, "RGB", strict=True))
        return DecodedImage(pixels, kept or b"")
    if colors != "CMYK":  # Pillow ignores corruption that the strict decoder reports
        _strict(lambda: simplejpeg.decode_jpeg(data, "GRAY", strict=True))
    return _decode(data, options)


def check_cost(data: bytes) -> None:
    """Raise ImageRejected for a JPEG or PNG that would take minutes to decode."""
    reason = rejection(data)
    if reason:
        raise ImageRejected(*reason)


def decode_rgb(data: bytes) -> NDArray[np.uint8]:
    """Return upright pixels [H, W, 3] of an image file. Raises ImageRejected."""
    return _rgb(decode(data, EncodeOptions()).pixels)


def image_rgb(image: Image.Image) -> NDArray[np.uint8]:
    """Return upright pixels [H, W, 3] of a Pillow image, equal to those of `decode_rgb`. Raises ImageRejected."""
    if not all(image.size):
        raise ImageRejected("too_small", f"{image.width} x {image.height}")
    try:
        white = bit_depth.declared_white(image, b"")
        return _rgb(_eight_bit(ImageOps.exif_transpose(image), white))
    except ImageRejected:
        raise
    except bit_depth.UnknownRangeError as error:
        raise ImageRejected("unreadable", str(error)) from None
    except Exception as error:  # noqa: BLE001 - as below: Pillow may read the file only now
        raise _damage(error) from None


def _rgb(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return [H, W, 3] pixels, from [H, W] if necessary."""
    return pixels if pixels.ndim == 3 else np.repeat(pixels[:, :, None], 3, axis=2)


def encode_jpeg(picture: DecodedImage, options: EncodeOptions) -> EncodedImage:
    """Return the image as a JPEG: its own bytes if possible. Raises ImageRejected if it is too large for a JPEG."""
    width, height = picture.size
    if picture.jpeg:
        return EncodedImage(picture.jpeg, width, height, bytes_kept=True)
    if max(width, height) > MAX_SIDE:
        raise ImageRejected("too_large", f"{width} x {height}, a JPEG has at most {MAX_SIDE} per side")
    if picture.pixels.ndim == 2:
        return EncodedImage(_encode_gray(picture.pixels, options.quality), width, height, bytes_kept=False)
    pixels = np.ascontiguousarray(picture.pixels)
    jpeg = simplejpeg.encode_jpeg(pixels, quality=options.quality, colorspace="RGB", colorsubsampling="444")
    return EncodedImage(jpeg, width, height, bytes_kept=False)


def _strict(decode: Callable[[], NDArray[np.uint8]]) -> NDArray[np.uint8]:
    try:
        return decode()
    except ValueError as error:
        text = str(error)
        raise ImageRejected("truncated" if "remature end" in text else "unreadable", text) from None


def _check_size(width: int, height: int, options: EncodeOptions) -> None:
    if min(width, height) < MIN_SIDE:
        raise ImageRejected("too_small", f"{width} x {height}")
    if width * height > options.max_pixels:
        raise ImageRejected("too_large", f"{width} x {height}")


def _orientation(data: bytes) -> int:
    """Return the orientation of a JPEG from EXIF or else XMP: 2 to 8 if it must be rotated, else 1."""
    if b"Exif\0\0" not in data and XMP not in data:
        return 1
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            return _turn(image)
    except Exception:  # noqa: BLE001 - corrupt metadata raises anything; the image itself may be valid
        return 1


def _turn(image: Image.Image) -> int:
    turned = image.getexif().get(ORIENTATION, 1)
    return turned if turned in range(2, 9) else 1


def _decode(data: bytes, options: EncodeOptions) -> DecodedImage:
    """Decode with Pillow, which supports all of FORMATS."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            _check_size(width, height, options)
            orientation = _turn(image)  # read before load(), which rotates some formats and drops the tag
            image.load()
            white = bit_depth.declared_white(image, data)
            if bit_depth.is_unknown_range(image, data):
                pixels = bit_depth.reduce_bit_depth(image, data)
                image = Image.fromarray(pixels)  # noqa: PLW2901 - as Pillow should have opened it
                image.getexif()[ORIENTATION] = orientation
            ImageOps.exif_transpose(image, in_place=True)  # avoids a copy
            return DecodedImage(np.ascontiguousarray(_eight_bit(image, white)), b"", orientation)
    except ImageRejected:
        raise
    except bit_depth.UnknownRangeError as error:
        raise ImageRejected("unreadable", str(error)) from None
    except Image.DecompressionBombError as error:
        raise ImageRejected("too_large", str(error)) from None
    except UnidentifiedImageError:
        if data.startswith(STARTS):
            raise ImageRejected("unreadable", "its header is corrupt") from None
        raise ImageRejected("not_an_image", _known_format(data)) from None
    except Exception as error:  # noqa: BLE001 - corrupt files raise anything; one file must not stop a build
        lighter = (
            png_chunks.strip_text_chunks(data)
            if isinstance(error, ValueError) and data.startswith(png_chunks.START)
            else data
        )
        if len(lighter) < len(data):
            return _decode(lighter, options)
        raise _damage(error) from None


def _known_format(data: bytes) -> str:
    """Return which format that is not read a file has, whatever its name says; "" if unknown."""
    if data[4:8] == b"ftyp":
        return "HEIC or AVIF; convert it to JPEG" if data[8:12] in FTYP_IMAGES else "a video or another MP4 file"
    return next((f"{name}; {fix}" for start, name, fix in OTHER_STARTS if data.startswith(start)), "")


def _damage(error: Exception) -> ImageRejected:
    """Convert a Pillow error. Object addresses are removed: they would make two builds differ."""
    text = re.sub(r"0x[0-9a-f]+", "0x", str(error)) or type(error).__name__
    return ImageRejected("truncated" if "truncated" in text.lower() else "unreadable", text)


def _eight_bit(image: Image.Image, white: int | None = None) -> NDArray[np.uint8]:
    if image.mode.startswith("I"):  # an image of 16 bits, which Pillow may open as 32
        return bit_depth.eight_bit(np.asarray(image), white)
    if image.mode == "F":
        raise ImageRejected("unreadable", "floating-point pixels without a known range")
    if image.has_transparency_data:
        return _over_white(image)
    if image.mode in ("1", "L"):
        return np.asarray(image.convert("L"))
    return np.asarray(image.convert("RGB"))


def _over_white(image: Image.Image) -> NDArray[np.uint8]:
    """Composite over white, [H, W, 3], some rows at a time: Pillow makes four copies of its input."""
    width, height = image.size
    pixels = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, ROWS):
        rows = image.crop((0, top, width, min(top + ROWS, height))).convert("RGBA")
        white = Image.new("RGBA", rows.size, "white")
        pixels[top : top + ROWS] = np.asarray(Image.alpha_composite(white, rows).convert("RGB"))
    return pixels


def _encode_gray(pixels: NDArray[np.uint8], quality: int) -> bytes:
    """Encode a grayscale image [H, W] as a YCbCr JPEG: constant chroma at a quarter of the size is almost free."""
    height, width = pixels.shape
    chroma = _neutral((height + 1) // 2, (width + 1) // 2)
    return simplejpeg.encode_jpeg_yuv_planes(np.ascontiguousarray(pixels), chroma, chroma, quality=quality)


@lru_cache(maxsize=16)
def _neutral(height: int, width: int) -> NDArray[np.uint8]:
    return np.full((height, width), 128, np.uint8)
