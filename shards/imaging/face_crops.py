"""Convert an entry's image to one or more samples, with boxes and landmarks mapped to the new pixels."""

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.entry import Entry
from shards.imaging.align import MARGIN, Detection, Detector, eye_level_transform, select_faces, warp_affine
from shards.imaging.codec import MIN_SIDE, DecodedImage, EncodedImage, EncodeOptions, ImageRejected, decode, encode_jpeg
from shards.imaging.geometry import (
    UPRIGHT,
    Affine,
    Box,
    bounding_box,
    crop_window,
    exif_transform,
    has_area,
    resized_size,
)


@dataclass(frozen=True)
class FaceSample:
    """One sample. entry: the entry, with box and landmarks in pixels of `image`; extra: additional fields, plain JSON.

    suffix: appended to the entry's key to give each of its faces a unique key.
    """

    image: EncodedImage
    entry: Entry
    suffix: str = ""
    extra: dict[str, Any] = field(default_factory=dict)


def extract_faces(
    data: bytes, entry: Entry, options: EncodeOptions, detect: Detector | None = None
) -> list[FaceSample]:
    """Decode, turn upright, crop, resize and encode an image, in this order; skip steps that are not requested.

    An image that no step changes is kept byte for byte. detect: detector for options.align.
    If pixels move, extra["matrix"] (a, b, c, d, e, f) maps source pixels to sample pixels:
    x' = a x + b y + c, y' = d x + e y + f.

    Raises:
        ImageRejected: If the image is unusable or contains no face.
    """
    picture = decode(data, options)
    width, height = picture.size if picture.orientation < 5 else picture.size[::-1]
    upright = exif_transform(picture.orientation, width, height)
    if options.align is not None and detect is not None:
        finish = partial(_aligned, picture, upright, entry, options)
        own = _own_box(entry, upright)
        found = detect(picture.pixels, options.align)
        faces = select_faces(found, own, options.align)
        if not faces:
            raise ImageRejected("no_face", _found_instead(found, own))
        return [finish(number, face) for number, face in enumerate(faces)]
    way = upright
    if options.crop is not None:
        picture, way = _cropped(picture, upright, entry, options.crop)
    picture, way = _shrunk(picture, way, options.shorter_side)
    box = None if entry.box is None else entry.box if way == UPRIGHT else way.box(entry.box)
    return [FaceSample(encode_jpeg(picture, options), _moved(entry, way, box), extra=_matrix(way))]


def _cropped(picture: DecodedImage, way: Affine, entry: Entry, margin: float) -> tuple[DecodedImage, Affine]:
    if entry.box is None:
        raise ImageRejected("no_box")
    width, height = picture.size
    edges = crop_window(way.box(entry.box), margin, width, height) if has_area(entry.box) else None
    if edges is None:
        raise ImageRejected("bad_box", f"{_text(entry.box)} in an image of {width} x {height}")
    left, top, right, bottom = edges
    if (right - left, bottom - top) == (width, height):
        return picture, way
    _check(right - left, bottom - top)
    return DecodedImage(picture.pixels[top:bottom, left:right]), way.compose(Affine(c=-left, f=-top))


def _shrunk(picture: DecodedImage, way: Affine, shorter_side: int) -> tuple[DecodedImage, Affine]:
    width, height = picture.size
    size = resized_size(width, height, shorter_side)
    if size == (width, height):
        return picture, way
    import cv2

    pixels: NDArray[np.uint8] = np.asarray(cv2.resize(picture.pixels, size, interpolation=cv2.INTER_AREA), np.uint8)
    return DecodedImage(pixels), way.compose(Affine(a=size[0] / width, e=size[1] / height))


def _aligned(
    picture: DecodedImage, upright: Affine, entry: Entry, options: EncodeOptions, number: int, face: Detection
) -> FaceSample:
    """Cut out one detected face. The box is the detection's; the landmarks are the corpus's, else the detection's."""
    level, side = eye_level_transform(face, MARGIN if options.crop is None else options.crop)
    _check(side, side)
    cut, way = DecodedImage(warp_affine(picture.pixels, level, side)), level
    cut, way = _shrunk(cut, way, options.shorter_side)
    scale = cut.size[0] / side
    x, y = way.point(face.box[0] + face.box[2] / 2, face.box[1] + face.box[3] / 2)
    wide, high = face.box[2] * scale, face.box[3] * scale  # the box rotates with the face
    box = bounding_box(((x - wide / 2, y - high / 2), (x + wide / 2, y + high / 2)))
    moved = _moved(entry, upright.compose(way), box)
    if entry.landmarks is None:
        moved = replace(moved, landmarks=way.points(face.points))
    extra = _matrix(upright.compose(way)) | {"face": number, "score": round(face.score, 4)}
    return FaceSample(encode_jpeg(cut, options), moved, f"_{number}", extra)


def _own_box(entry: Entry, upright: Affine) -> Box | None:
    """Return the corpus's face box in the upright image, or None without box and landmarks."""
    if entry.box is not None:
        if not has_area(entry.box):
            raise ImageRejected("bad_box", _text(entry.box))
        return upright.box(entry.box)
    return bounding_box(upright.points(entry.landmarks)) if entry.landmarks else None


def _found_instead(found: list[Detection], own: Box | None) -> str:
    if not found:
        return "none found"
    where = f" at {_text(own)}" if own else ""
    return f"none{where} is large and certain enough; faces found: {len(found)}"


def _moved(entry: Entry, way: Affine, box: Box | None) -> Entry:
    if way == UPRIGHT:
        return entry
    return replace(entry, box=box, landmarks=way.points(entry.landmarks) if entry.landmarks else entry.landmarks)


def _matrix(way: Affine) -> dict[str, Any]:
    return {} if way == UPRIGHT else {"matrix": [round(value, 6) for value in way]}


def _check(width: int, height: int) -> None:
    if min(width, height) < MIN_SIDE:
        raise ImageRejected("too_small", f"{width} x {height} after cropping")


def _text(box: Box) -> str:
    return ", ".join(f"{value:g}" for value in box)
