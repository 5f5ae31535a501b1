"""Canvas: an image, soft shadows, and the map from face coordinates to pixels.

Face coordinates: origin between eyes and nose tip, x to the right of the image, y down, unit = half a face height. The
canvas has twice the image's side and is averaged down at the end, which smooths every edge.
"""

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from shards.sources.synthetic.drawing.person import Person, Scene

Points = NDArray[np.float64]  # [N, 2]
OVERSAMPLING = 2
SHIFT = 4  # fractional bits of OpenCV coordinates
DEPTH = 0.7  # depth of the head, in half face heights

U = np.linspace(-1, 1, 15)  # parameter along an eye, brow or mouth
ARC = np.linspace(0, 2 * np.pi, 49)[:-1]


class Canvas:
    """An RGB image, a layer of soft shadows, and the map from face coordinates to pixels."""

    def __init__(self, scene: Scene, size: int):
        self.side = size * OVERSAMPLING
        self.picture = np.zeros((self.side, self.side, 3), np.uint8)
        self.shadow = np.zeros((self.side, self.side), np.uint8)
        self.unit = scene.scale * self.side
        self.center = self.side * (0.5 + np.array(scene.shift))
        self.cos_yaw, self.sin_yaw = math.cos(scene.yaw), math.sin(scene.yaw)
        self.cos_pitch, self.sin_pitch = math.cos(scene.pitch), math.sin(scene.pitch)
        cos, sin = math.cos(scene.roll) * self.unit, math.sin(scene.roll) * self.unit
        self.roll = np.array([[cos, sin], [-sin, cos]])

    def project(self, points: Points, width: float, lift: float | Points = 0.0) -> Points:
        """Map face coordinates [N, 2] on the rotated head's surface (`lift` above it) to canvas pixels [N, 2]."""
        x, y = points[:, 0], points[:, 1]
        inside = 1 - (x / (1.1 * width)) ** 2 - (y / 1.15) ** 2
        z = DEPTH * np.sqrt(np.maximum(inside, 0)) + lift
        x, z = x * self.cos_yaw + z * self.sin_yaw, z * self.cos_yaw - x * self.sin_yaw
        y, z = y * self.cos_pitch + z * self.sin_pitch, z * self.cos_pitch - y * self.sin_pitch
        near = 1 + 0.12 * (z - DEPTH)  # slight perspective
        return self.flat(xy(x * near, y * near))

    def flat(self, points: Points) -> Points:
        """Map face coordinates that do not rotate (the head's outline) to canvas pixels."""
        return points @ self.roll + self.center

    def fill(self, points: Points, color: tuple[float, ...]) -> None:
        cv2.fillPoly(self.picture, [fixed(points)], color, cv2.LINE_AA, SHIFT)

    def line(self, points: Points, color: tuple[float, ...], width: float) -> None:
        """Draw a line of `width` in face units."""
        thickness = max(round(width * self.unit), 1)
        cv2.polylines(self.picture, [fixed(points)], False, color, thickness, cv2.LINE_AA, SHIFT)

    def shade(self, points: Points, strength: float, width: float) -> None:
        """Draw a soft dark line (a wrinkle, a fold); strength 0 to 1."""
        if strength > 0.05:
            thickness = max(round(width * self.unit), 1)
            gray = round(min(strength, 1.0) * 255)
            cv2.polylines(self.shadow, [fixed(points)], False, gray, thickness, cv2.LINE_AA, SHIFT)


def fixed(points: Points) -> NDArray[np.int32]:
    return np.round(points * (1 << SHIFT)).astype(np.int32)


def point(point: Points) -> tuple[int, int]:
    x, y = fixed(point)
    return int(x), int(y)


def xy(x: Points | float, y: Points | float) -> Points:
    """Stack two columns [N], or one column and a number, to points [N, 2]."""
    points = np.empty((np.size(x) if np.ndim(x) else np.size(y), 2))
    points[:, 0], points[:, 1] = x, y
    return points


def shifted(points: Points, x: float, y: float) -> Points:
    return points + np.array([x, y])


def mix(first: tuple[float, ...], second: tuple[float, ...], share: float) -> tuple[float, ...]:
    return tuple(a * (1 - share) + b * share for a, b in zip(first, second, strict=True))


def paint_background(canvas: Canvas, rng: np.random.Generator) -> None:
    """Paint a blurred gradient with a few shapes."""
    small = 32
    muted = rng.uniform(40, 215, (10, 1)) + rng.normal(0, 22, (10, 3))
    muted = np.clip(muted, 0, 255)
    corners = muted[:4].reshape(2, 2, 3).astype(np.uint8)
    wall = np.zeros((small, small, 3), np.uint8)
    cv2.resize(corners, (small, small), dst=wall, interpolation=cv2.INTER_LINEAR)
    for color in muted[4 : 4 + int(rng.integers(1, 7))].tolist():
        x, y, w, h = (int(v) for v in rng.integers(0, small, 4))
        if rng.random() < 0.5:
            cv2.rectangle(wall, (x, y), (x + w // 2, y + h // 2), color, -1)
        else:
            cv2.circle(wall, (x, y), w // 4 + 1, color, -1, cv2.LINE_AA)
    cv2.GaussianBlur(wall, (0, 0), float(rng.uniform(0.4, 1.6)), dst=wall)
    cv2.resize(wall, (canvas.side, canvas.side), dst=canvas.picture, interpolation=cv2.INTER_LINEAR)


def light(
    canvas: Canvas, person: Person, scene: Scene, outline: Points, size: int, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Downsample, add shadows, light the head as an ellipsoid, then add the camera's blur, noise and exposure."""
    half = (size, size)
    picture = cv2.resize(canvas.picture, half, interpolation=cv2.INTER_AREA).astype(np.float32)
    folds = cv2.resize(canvas.shadow, half, interpolation=cv2.INTER_AREA)
    picture *= 1 - 0.55 * _soft(folds, size / 200)
    head = np.zeros((size, size), np.uint8)
    cv2.fillPoly(head, [fixed(outline / OVERSAMPLING)], 255, cv2.LINE_AA, SHIFT)
    lit = _shading(canvas, person, scene, size)[..., None]
    gain = 1 + _soft(head, size / 64) * (lit - 1)  # the background is lit evenly
    picture *= gain * (scene.exposure * np.array(scene.tint, np.float32))
    if scene.blur > 0.2:
        cv2.GaussianBlur(picture, (0, 0), scene.blur * size / 128, dst=picture)
    grain = rng.standard_normal((size, size), np.float32) * np.float32(scene.noise)
    return np.clip(picture + grain[..., None], 0, 255).astype(np.uint8)


def _soft(mask: cv2.typing.MatLike, sigma: float) -> NDArray[np.float32]:
    """Return a blurred mask [H, W] uint8 as weights [H, W, 1], 0 to 1."""
    return np.float32(1 / 255) * cv2.GaussianBlur(mask, (0, 0), sigma).astype(np.float32)[..., None]


def _shading(canvas: Canvas, person: Person, scene: Scene, size: int) -> NDArray[np.float32]:
    """Return the Lambert shading of an ellipsoid [size, size]; about 1 where the light is perpendicular."""
    axis = (np.arange(size, dtype=np.float32) + 0.5) * OVERSAMPLING
    x = (axis[None, :] - np.float32(canvas.center[0])) / np.float32(canvas.unit * person.width * 1.15)
    y = (axis[:, None] - np.float32(canvas.center[1])) / np.float32(canvas.unit * 1.15)
    z = np.sqrt(np.clip(1 - x * x - y * y, 0.02, 1))
    right, down, front = (np.float32(v) for v in scene.light)
    facing = np.clip(x * right + y * down + z * front, 0, 1)
    ambient = np.float32(scene.ambient)
    return ambient + (np.float32(1.15) - ambient) * facing
