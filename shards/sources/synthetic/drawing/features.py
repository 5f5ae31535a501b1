"""Facial features that depend on the expression (eyes, brows, nose, mouth, wrinkles), and the beard."""

import cv2
import numpy as np

from shards.sources.synthetic.drawing.canvas import (
    ARC,
    OVERSAMPLING,
    SHIFT,
    Canvas,
    Points,
    U,
    fixed,
    mix,
    point,
    shifted,
    xy,
)
from shards.sources.synthetic.drawing.person import Actions, Person, Scene


def paint_nose(canvas: Canvas, person: Person, actions: Actions) -> None:
    w, base = person.nose_width * (1 + 0.15 * actions.nose_wrinkle), person.eye_y + person.nose_length
    base -= 0.04 * actions.nose_wrinkle
    dark = mix(person.skin, (60, 20, 10), 0.35)
    bridge = np.array([[-0.35, 0.06], [-0.32, 0.5], [-0.55, 0.82], [-0.95, 1.0]]) * [w, person.nose_length]
    for side in (-1, 1):
        canvas.shade(canvas.project(shifted(bridge * [side, 1], 0, person.eye_y), person.width, 0.06), 0.4, 0.03)
        wing = xy(0.4 * w * np.sin(ARC[8:33]) + 0.7 * w, 0.05 * np.cos(ARC[8:33])) * [side, 1]
        canvas.line(canvas.project(shifted(wing, 0, base - 0.02), person.width, 0.1), dark, 0.02)
        hole = xy(0.25 * w * np.sin(ARC) + side * 0.45 * w, 0.022 * np.cos(ARC) + base + 0.015)
        canvas.fill(canvas.project(hole, person.width, 0.14), mix(person.skin, (30, 8, 4), 0.7))
    shine = xy(0.22 * w * np.sin(ARC), 0.05 * np.cos(ARC) + base - 0.07)
    canvas.fill(canvas.project(shine, person.width, 0.22), mix(person.skin, (255, 245, 235), 0.22))


def paint_beard(canvas: Canvas, person: Person, actions: Actions) -> None:
    w, mouth, drop = person.width, person.mouth_y, 0.12 * actions.jaw
    if person.beard in (1, 3):
        share = 0.25 if person.beard == 1 else 0.85
        top = xy(U * 0.72 * w, mouth - 0.2 + 0.12 * (1 - np.abs(U)))
        low = xy(U[::-1] * 0.72 * w, mouth - 0.2 + (0.62 + drop) * (1 - U**2) ** 0.6)
        canvas.fill(canvas.project(np.concatenate([top, low]), w), mix(person.skin, person.hair, share))
    if person.beard in (2, 3):
        lift = 0.05 * actions.upper_lip + 0.04 * actions.corner
        top = xy(U * 0.3, mouth - 0.12 - lift + 0.07 * U**2)
        low = xy(U[::-1] * 0.3, mouth - 0.05 - lift + 0.06 * U**2)
        canvas.fill(canvas.project(np.concatenate([top, low]), w, 0.04), person.hair)


def paint_eye(canvas: Canvas, person: Person, scene: Scene, actions: Actions, side: int) -> None:
    """Paint one eye; side -1 is left in the image."""
    x, y, w = side * person.eye_x, person.eye_y, person.eye_width
    droop = max(actions.inner_brow - actions.outer_brow, 0) * 0.02  # a sad lid droops outwards
    slant = (-person.eye_tilt + droop) * U * side
    up = person.eye_height * max(1 + 0.75 * actions.lid_open - 0.2 * actions.lid_tight, 0.12)
    down = person.eye_height * max(0.75 - 0.55 * actions.lid_tight + 0.2 * actions.lid_open, 0.08)
    bow = (1 - U**2) ** 0.7
    upper = xy(x + U * w, y - up * bow + slant)
    lower = xy(x + U * w, y + down * bow + slant)
    lids = canvas.project(np.concatenate([upper, lower[::-1]]), person.width, 0.02)
    center = canvas.project(
        np.array([[x + 0.35 * w * scene.gaze[0], y + 0.4 * w * scene.gaze[1] - 0.01]]), person.width, 0.02
    )
    _eyeball(canvas, person, lids, center[0])
    half = len(U)
    canvas.line(lids[:half], mix(person.skin, (20, 10, 8), 0.85), 0.03)
    canvas.line(lids[half:], mix(person.skin, (60, 24, 16), 0.5), 0.014)
    crease = shifted(upper, 0, -0.035 - 0.01 * max(actions.lid_open, 0))
    canvas.shade(canvas.project(crease, person.width, 0.02), 0.4, 0.02)
    bag = shifted(lower, 0, 0.05 - 0.02 * actions.lid_tight)
    canvas.shade(canvas.project(bag[3:-3], person.width, 0.02), 0.15 + 0.5 * actions.lid_tight + 0.2 * person.age, 0.02)


def _eyeball(canvas: Canvas, person: Person, lids: Points, center: Points) -> None:
    """Paint white, iris, pupil and highlight, clipped to the lids."""
    low = np.floor(lids.min(0)).astype(int) - 2
    high = np.ceil(lids.max(0)).astype(int) + 3
    (x0, y0), (x1, y1) = np.clip(low, 0, canvas.side), np.clip(high, 0, canvas.side)
    if x1 <= x0 or y1 <= y0:
        return
    window = canvas.picture[y0:y1, x0:x1]
    corner = np.array([x0, y0])
    mask = np.zeros(window.shape[:2], np.uint8)
    cv2.fillPoly(mask, [fixed(lids - corner)], 255, cv2.LINE_AA, SHIFT)
    ball = np.full_like(window, (236, 232, 228))
    radius = 0.082 * canvas.unit
    middle = point(center - corner)
    for share, color in ((1.0, mix(person.iris, (0, 0, 0), 0.4)), (0.85, person.iris), (0.45, (12, 10, 10))):
        cv2.circle(ball, middle, round(radius * share * (1 << SHIFT)), color, -1, cv2.LINE_AA, SHIFT)
    cv2.circle(ball, point(center - corner - radius * 0.35), 20, (250, 250, 250), -1, cv2.LINE_AA, SHIFT)
    weight = (mask.astype(np.float32) / 255)[..., None]  # [h, w, 1]
    window[:] = (ball * weight + window * (1 - weight)).astype(np.uint8)


def paint_brow(canvas: Canvas, person: Person, actions: Actions, side: int) -> None:
    """Paint a tapered stroke from the inner to the outer end."""
    t = (U + 1) / 2  # 0 at the inner end
    inner = person.eye_x - 0.75 * person.brow_length - 0.045 * actions.furrow
    outer = person.eye_x + 0.95 * person.brow_length
    rise_in = 0.13 * actions.inner_brow - 0.03 * actions.furrow
    rise_out = 0.12 * actions.outer_brow
    x = inner + (outer - inner) * t
    y = person.eye_y - person.brow_y - rise_in * (1 - t) ** 1.3 - rise_out * t**0.8
    y += -person.brow_arch * np.sin(np.pi * t) + 0.05 * t**2
    thick = person.brow_thickness * (1 - 0.7 * t**2) * np.clip(6 * t + 0.5, 0, 1)
    stroke = np.concatenate([xy(x, y - thick), xy(x, y + thick)[::-1]]) * [side, 1]
    color = mix(person.hair, (30, 20, 16), 0.35)
    canvas.fill(canvas.project(stroke, person.width, 0.04), mix(color, person.skin, 0.12))


def _mouth_line(person: Person, actions: Actions) -> tuple[float, Points]:
    """Return the half width of the mouth and the height of the line between the lips along U."""
    half = person.mouth_width * (1 + 0.24 * actions.stretch + 0.12 * max(actions.corner, 0))
    corner = actions.corner + 0.35 * person.mouth_curve
    bend = (0.13 if corner > 0 else 0.15) * corner
    return half, person.mouth_y + 0.03 * actions.corner - 0.035 * actions.upper_lip - bend * U**2


def paint_mouth(canvas: Canvas, person: Person, actions: Actions) -> None:
    """Paint lips, opening, teeth and tongue."""
    a = actions
    half, middle = _mouth_line(person, actions)
    x, bow = U * half, 1 - U**2
    square = 1 - U**4  # a raised upper lip shows the teeth over its whole width
    open_up = 0.05 * a.jaw * bow + 0.07 * a.upper_lip * square
    open_down = 0.30 * a.jaw * bow**0.75
    if a.jaw < 0.08:
        open_up, open_down = open_up * 0.5, open_down * 0
    thin = 1 - 0.7 * a.press - 0.25 * max(a.stretch, 0)
    upper = np.stack(
        [x, middle - open_up - person.upper_lip * thin * bow**0.6 * (1 - 0.25 * np.exp(-((U / 0.2) ** 2)))], 1
    )
    lower = xy(x, middle + open_down + person.lower_lip * thin * bow**0.7)
    inner_up, inner_down = xy(x, middle - open_up), xy(x, middle + open_down)

    def at(points: Points) -> Points:
        return canvas.project(points, person.width, 0.05)

    canvas.fill(at(np.concatenate([upper, lower[::-1]])), person.lips)
    if a.jaw >= 0.08 or a.upper_lip > 0.3:
        canvas.fill(at(np.concatenate([inner_up, inner_down[::-1]])), (58, 16, 20))
        gap = inner_down[:, 1] - inner_up[:, 1]
        teeth = xy(x, inner_up[:, 1] + np.minimum(gap, 0.075))
        canvas.fill(at(np.concatenate([inner_up, teeth[::-1]])[1:-1]), (232, 226, 214))
        if a.jaw > 0.5:
            tongue = xy(x, inner_down[:, 1] - 0.4 * np.clip(gap - 0.1, 0, None))
            canvas.fill(at(np.concatenate([tongue[3:-3], inner_down[::-1][3:-3]])), (176, 78, 84))
    canvas.line(at(inner_up), mix(person.lips, (40, 6, 8), 0.7), 0.018)
    canvas.shade(at(shifted(lower[4:-4], 0, 0.05)), 0.35 + 0.3 * a.press, 0.03)


def paint_wrinkles(canvas: Canvas, person: Person, actions: Actions) -> None:
    """Paint the wrinkles of the expression; deeper with age."""
    a, depth = actions, 0.6 + 0.4 * person.age
    eye, nose, mouth, w = person.eye_y, person.eye_y + person.nose_length, person.mouth_y, person.width
    fold = max(a.cheek, 0.9 * a.upper_lip, 0.3 * a.stretch) + 0.2 * person.age
    brow = eye - person.brow_y
    for side in (-1, 1):
        bend = np.array(
            [[0.16, nose - 0.04], [0.26 + 0.04 * a.cheek, nose + 0.1], [0.33 + 0.06 * a.cheek, mouth - 0.02]]
        )
        canvas.shade(canvas.project(bend * [side, 1], w, 0.04), 0.75 * depth * fold, 0.028)
        crow = person.eye_x + person.eye_width
        for angle in (-0.06, 0.0, 0.06):
            foot = np.array([[crow + 0.03, eye + angle / 2], [crow + 0.13, eye + 1.6 * angle]]) * [side, 1]
            canvas.shade(canvas.project(foot, w), 0.6 * depth * a.cheek, 0.014)
        frown = np.array([[0.045, brow + 0.1], [0.055, brow - 0.06]]) * [side, 1]
        canvas.shade(canvas.project(frown, w, 0.05), 0.9 * depth * a.furrow, 0.022)
        sneer = np.array([[0.05, eye + 0.05], [0.12, eye + 0.14]]) * [side, 1]
        canvas.shade(canvas.project(sneer, w, 0.1), 0.9 * depth * a.nose_wrinkle, 0.02)
        droop = np.array([[0.31, mouth + 0.05], [0.35, mouth + 0.2]]) * [side, 1]
        canvas.shade(canvas.project(droop, w, 0.03), 0.7 * depth * max(-a.corner, 0), 0.025)
    for row in range(2):
        bridge = xy(U * 0.08, eye + 0.02 + 0.05 * row + 0.02 * U**2)
        canvas.shade(canvas.project(bridge, w, 0.12), 0.8 * depth * a.nose_wrinkle, 0.016)
    raised = max(a.inner_brow, 0) * 0.6 + max(a.outer_brow, 0) * 0.4
    for row in range(3):
        ripple = xy(U * 0.38, brow - 0.14 - 0.085 * row - 0.02 * np.cos(3 * U))
        canvas.shade(canvas.project(ripple, w), depth * raised * 0.6, 0.016)


def find_landmarks(person: Person, scene: Scene, actions: Actions, size: int) -> tuple[tuple[float, float], ...]:
    """Return eyes, nose tip and mouth corners: (x, y) in pixels, left to right as seen."""
    canvas = Canvas(scene, size)
    half, middle = _mouth_line(person, actions)
    x = np.array([-person.eye_x, person.eye_x, 0.0, -half, half])
    y = np.array([person.eye_y, person.eye_y, person.eye_y + person.nose_length, middle[0], middle[-1]])
    points = canvas.project(xy(x, y), person.width, np.array([0.02, 0.02, 0.22, 0.05, 0.05]))
    return tuple((round(x, 1), round(y, 1)) for x, y in (points / OVERSAMPLING).tolist())
