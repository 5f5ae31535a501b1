"""Render a synthetic face back to front: background, hair, shoulders, head, features, front hair, glasses."""

import cv2
import numpy as np
from numpy.typing import NDArray

from shards.sources.synthetic.drawing import features
from shards.sources.synthetic.drawing.canvas import (
    ARC,
    DEPTH,
    SHIFT,
    Canvas,
    Points,
    light,
    mix,
    paint_background,
    point,
    shifted,
    xy,
)
from shards.sources.synthetic.drawing.person import Actions, Person, Scene


def draw_face(person: Person, scene: Scene, actions: Actions, size: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return an RGB image [size, size, 3]; background and grain are drawn from `rng`."""
    canvas = Canvas(scene, size)
    paint_background(canvas, rng)
    outline = _outline(canvas, person, scene, actions)
    _behind(canvas, person, scene)
    canvas.fill(outline, person.skin)
    _skin(canvas, person, rng)
    features.paint_nose(canvas, person, actions)
    features.paint_beard(canvas, person, actions)
    for side in (-1, 1):
        features.paint_eye(canvas, person, scene, actions, side)
    features.paint_mouth(canvas, person, actions)
    features.paint_wrinkles(canvas, person, actions)
    for side in (-1, 1):
        features.paint_brow(canvas, person, actions, side)
    _hair(canvas, person)
    _glasses(canvas, person)
    return light(canvas, person, scene, outline, size, rng)


def _outline(canvas: Canvas, person: Person, scene: Scene, actions: Actions) -> Points:
    """Return the head's outline: an ellipse with a narrower chin that drops with the jaw."""
    x, y = np.sin(ARC), -np.cos(ARC)
    low = np.clip(y, 0, 1)
    taper = 1 - (1 - person.jaw_width) * low**2.2
    wide = person.width * (1 + 0.05 * actions.cheek * np.exp(-((y - 0.25) ** 2) / 0.05))
    aspect = np.sqrt(np.cos(scene.yaw) ** 2 + (DEPTH * 1.15 / person.width * np.sin(scene.yaw)) ** 2)
    x = x * wide * taper * aspect + 0.22 * np.sin(scene.yaw) * low
    y = np.where(y < 0, y * person.forehead, y * (1 + 0.09 * actions.jaw)) + 0.08 * np.sin(scene.pitch)
    return canvas.flat(xy(x, y))


def _behind(canvas: Canvas, person: Person, scene: Scene) -> None:
    """Paint back hair, shoulders, neck and ears."""
    w = person.width
    if person.hair_style in (4, 5):
        length = 1.25 if person.hair_style == 4 else 0.55
        x, y = 1.17 * w * np.sin(ARC), -np.cos(ARC)
        canvas.fill(canvas.flat(xy(x * (1 + 0.1 * (y > 0)), np.where(y > 0, y * length, y * 1.08))), person.hair)
    drop = np.array([0, 0.1 * np.sin(scene.pitch)])
    shirt = np.array([[-1.3, 2.4], [-1.2, 1.45], [-0.4, 1.12], [0.4, 1.12], [1.2, 1.45], [1.3, 2.4]])
    canvas.fill(shirt * canvas.unit + canvas.center, scene.shirt)
    neck = np.array([[-0.52, 0.5], [0.52, 0.5], [0.56, 1.2], [0.0, 1.42], [-0.56, 1.2]]) * [w / 0.75, 1] + drop
    canvas.fill(canvas.flat(neck), mix(person.skin, (0, 0, 0), 0.25))
    for side in (-1, 1):
        lobe = xy(0.11 * np.sin(ARC), 0.19 * np.cos(ARC))
        middle = np.array([side * w * 1.0 - 0.3 * np.sin(scene.yaw), -0.02 + 0.05 * np.sin(scene.pitch)])
        canvas.fill(canvas.flat(lobe + middle), mix(person.skin, (120, 40, 30), 0.12))


def _skin(canvas: Canvas, person: Person, rng: np.random.Generator) -> None:
    for share, radius in ((0.05, 0.19), (0.1, 0.12)):
        blush = mix(person.skin, (214, 92, 84), share)
        for side in (-1, 1):
            cheek = xy(radius * np.sin(ARC) + side * 0.4, 0.7 * radius * np.cos(ARC) + 0.22)
            canvas.fill(canvas.project(cheek, person.width), blush)
    if person.freckles:
        spots = rng.normal(0, 1, (person.freckles, 2)) * np.array([0.3, 0.1]) + np.array([0, 0.14])
        color = mix(person.skin, (110, 60, 36), 0.5)
        for spot in canvas.project(spots, person.width):
            cv2.circle(canvas.picture, point(spot), 16, color, -1, cv2.LINE_AA, SHIFT)


def _hair(canvas: Canvas, person: Person) -> None:
    """Paint the hair over the forehead."""
    style, w, line = person.hair_style, person.width, person.hair_line
    if style == 0:
        return
    around = np.linspace(-1.75, 1.75, 33)
    edge = np.linspace(1, -1, 33)
    height = {1: 1.12, 2: 1.1, 3: 1.14, 4: 1.1, 5: 1.18}[style]
    rim = xy(1.07 * w * np.sin(around), -height * np.cos(around))
    fall = {
        1: 0.03 * np.sin(40 * edge),
        2: 0.17 + 0.02 * np.sin(50 * edge),
        3: 0.13 * edge,
        4: -0.04 + 0.16 * np.abs(edge),
        5: 0.05 * np.sin(22 * edge),
    }[style]
    front = xy(edge * w * 0.97, line + fall + (0.5 if style == 4 else 0.34) * edge**6)
    if style == 5:
        rim *= (1.05 + 0.035 * np.sin(18 * around))[:, None]
    edge_pixels = canvas.project(front, w)
    canvas.fill(np.concatenate([canvas.flat(rim), edge_pixels]), person.hair)
    crown = canvas.flat(np.array([[0.1 * w, -height * 0.97]]))
    for index in range(3, 31, 3):
        shine = mix(person.hair, (255, 240, 220) if index % 2 else (0, 0, 0), 0.1)
        canvas.line(crown + (edge_pixels[index] - crown) * np.array([[0.15], [0.55], [0.96]]), shine, 0.03)


def _glasses(canvas: Canvas, person: Person) -> None:
    if not person.glasses:
        return
    power = 1.0 if person.glasses == 1 else 0.45
    cos, sin = np.cos(ARC), np.sin(ARC)
    ring = xy(np.sign(cos) * np.abs(cos) ** power, 0.85 * np.sign(sin) * np.abs(sin) ** power) * 0.21
    ring = np.concatenate([ring, ring[:1]])
    frame = (40, 34, 34)
    for side in (-1, 1):
        lens = canvas.project(shifted(ring, side * person.eye_x, person.eye_y + 0.02), person.width, 0.12)
        canvas.line(lens, frame, 0.022)
        arm = np.array([[side * (person.eye_x + 0.21), person.eye_y], [side * person.width, person.eye_y - 0.02]])
        canvas.line(canvas.project(arm, person.width, 0.04), frame, 0.022)
    gap = person.eye_x - 0.21
    canvas.line(canvas.project(np.array([[-gap, person.eye_y], [gap, person.eye_y]]), person.width, 0.14), frame, 0.022)
