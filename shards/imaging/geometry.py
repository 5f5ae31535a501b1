"""Geometry of a face: rotation, cropping and resizing as one map from source file pixels to sample pixels.

Coordinates are continuous: (0, 0) is the upper left corner of the upper left pixel, (width, height) the lower right
corner of the last one. Corpora give boxes and landmarks in stored pixels, because their annotation tools ignore EXIF.
The map that turns the pixels upright is therefore applied to boxes and landmarks too.
"""

import math
from typing import NamedTuple

Box = tuple[float, float, float, float]  # left, top, width, height
Points = tuple[tuple[float, float], ...]
Edges = tuple[int, int, int, int]  # left, top, right, bottom
DIGITS = 3  # decimals of pixel coordinates


class Affine(NamedTuple):
    """x' = a x + b y + c, y' = d x + e y + f."""

    a: float = 1.0
    b: float = 0.0
    c: float = 0.0
    d: float = 0.0
    e: float = 1.0
    f: float = 0.0

    def compose(self, after: "Affine") -> "Affine":
        """Compose two maps: this one first, then `after`."""
        c, f = after.point(self.c, self.f)
        return Affine(
            after.a * self.a + after.b * self.d,
            after.a * self.b + after.b * self.e,
            c,
            after.d * self.a + after.e * self.d,
            after.d * self.b + after.e * self.e,
            f,
        )

    def point(self, x: float, y: float) -> tuple[float, float]:
        """Map one point."""
        return self.a * x + self.b * y + self.c, self.d * x + self.e * y + self.f

    def inverse(self) -> "Affine":
        """Return the inverse map."""
        area = self.a * self.e - self.b * self.d
        a, b, d, e = self.e / area, -self.b / area, -self.d / area, self.a / area
        return Affine(a, b, -(a * self.c + b * self.f), d, e, -(d * self.c + e * self.f))

    def points(self, points: Points) -> Points:
        """Map points, rounded to a thousandth of a pixel."""
        return tuple((round(x, DIGITS), round(y, DIGITS)) for x, y in (self.point(*point) for point in points))

    def box(self, box: Box) -> Box:
        """Return the axis-aligned box around the mapped box."""
        left, top, width, height = box
        corners = [self.point(left + x * width, top + y * height) for x in (0, 1) for y in (0, 1)]
        return bounding_box(tuple(corners))


UPRIGHT = Affine()


def bounding_box(points: Points) -> Box:
    """Return the axis-aligned box around points, rounded to a thousandth of a pixel."""
    xs, ys = zip(*points, strict=True)
    left, top = min(xs), min(ys)
    return (round(left, DIGITS), round(top, DIGITS), round(max(xs) - left, DIGITS), round(max(ys) - top, DIGITS))


def exif_transform(orientation: int, width: int, height: int) -> Affine:
    """Map stored pixels of a `width` x `height` file to the upright image of its EXIF orientation (1-8)."""
    if orientation == 1:
        return UPRIGHT
    return {
        2: Affine(-1, 0, width, 0, 1, 0),
        3: Affine(-1, 0, width, 0, -1, height),
        4: Affine(1, 0, 0, 0, -1, height),
        5: Affine(0, 1, 0, 1, 0, 0),
        6: Affine(0, -1, height, 1, 0, 0),
        7: Affine(0, -1, height, -1, 0, width),
        8: Affine(0, 1, 0, -1, 0, width),
    }[orientation]


def has_area(box: Box) -> bool:
    """Return whether a box is finite and has an area."""
    return all(map(math.isfinite, box)) and box[2] > 0 and box[3] > 0


def crop_window(box: Box, margin: float, width: int, height: int) -> Edges | None:
    """Return the crop around `box`, extended by `margin` of its sides, in whole pixels and inside the image.

    Returns None if the box has no area or lies outside the image.
    """
    left, top, wide, high = box
    if not has_area(box):
        return None
    if left >= width or top >= height or left + wide <= 0 or top + high <= 0:
        return None
    x, y = margin * wide, margin * high
    edges = (
        max(0, math.floor(round(left - x, DIGITS))),
        max(0, math.floor(round(top - y, DIGITS))),
        min(width, math.ceil(round(left + wide + x, DIGITS))),
        min(height, math.ceil(round(top + high + y, DIGITS))),
    )
    return edges if edges[0] < edges[2] and edges[1] < edges[3] else None


def resized_size(width: int, height: int, shorter_side: int) -> tuple[int, int]:
    """Return width and height with a shorter side of at most `shorter_side` pixels (0 = keep), same aspect ratio."""
    short = min(width, height)
    if not 0 < shorter_side < short:
        return width, height
    return (
        max(shorter_side, round(width * shorter_side / short)),
        max(shorter_side, round(height * shorter_side / short)),
    )
