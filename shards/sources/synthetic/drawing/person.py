"""Person, scene and facial actions of a synthetic face, and how each is sampled.

Expressions combine action units (Ekman and Friesen's FACS) as in the emotion literature.
"""

from dataclasses import dataclass, fields

import numpy as np

EXPRESSIONS = ("neutral", "happiness", "sadness", "surprise", "fear", "disgust", "anger")

Color = tuple[float, float, float]  # RGB, 0 to 255


@dataclass(frozen=True)
class Actions:
    """Facial actions: 0 is neutral, 1 is full intensity. Signed ones have two directions."""

    inner_brow: float = 0.0  # up +, AU1 (down -, AU4)
    outer_brow: float = 0.0  # up +, AU2
    furrow: float = 0.0  # brows together, AU4
    lid_open: float = 0.0  # upper lid up +, AU5; drooping -
    lid_tight: float = 0.0  # lower lid up, AU7
    cheek: float = 0.0  # raised, AU6
    nose_wrinkle: float = 0.0  # AU9
    corner: float = 0.0  # lip corners up +, AU12; down -, AU15
    stretch: float = 0.0  # mouth wide +, AU20; pursed -
    jaw: float = 0.0  # mouth open, AU26
    upper_lip: float = 0.0  # raised, AU10
    press: float = 0.0  # lips pressed together, AU24


FULL = {
    "neutral": Actions(),
    "happiness": Actions(lid_open=-0.1, lid_tight=0.6, cheek=1.0, corner=1.0, stretch=0.5, jaw=0.4, upper_lip=0.2),
    "sadness": Actions(
        inner_brow=1.0, outer_brow=-0.4, furrow=0.5, lid_open=-0.5, corner=-1.0, stretch=-0.1, press=0.2
    ),
    "surprise": Actions(inner_brow=1.0, outer_brow=1.0, lid_open=1.0, stretch=-0.5, jaw=1.0),
    "fear": Actions(inner_brow=1.0, outer_brow=0.3, furrow=0.7, lid_open=0.9, corner=-0.4, stretch=0.8, jaw=0.45),
    "disgust": Actions(
        -0.5, -0.4, 0.5, -0.4, lid_tight=0.8, cheek=0.5, nose_wrinkle=1.0, corner=-0.5, jaw=0.15, upper_lip=1.0
    ),
    "anger": Actions(-1.0, 0.1, 1.0, lid_open=0.3, lid_tight=0.5, nose_wrinkle=0.25, corner=-0.3, jaw=0.1, press=1.0),
}


@dataclass(frozen=True)
class Person:
    """Properties shared by all images of a person. Lengths are in half face heights."""

    skin: Color
    hair: Color
    iris: Color
    lips: Color
    width: float  # half width of the head
    jaw_width: float  # width of the chin, as a fraction of `width`
    forehead: float
    hair_style: int  # 0 bald, 1 short, 2 fringe, 3 parted, 4 long, 5 curly
    hair_line: float
    eye_x: float
    eye_y: float
    eye_width: float
    eye_height: float
    eye_tilt: float
    brow_y: float  # height above the eye
    brow_length: float
    brow_thickness: float
    brow_arch: float
    nose_length: float
    nose_width: float
    mouth_y: float
    mouth_width: float
    mouth_curve: float  # mouth corners at rest
    upper_lip: float
    lower_lip: float
    beard: int  # 0 none, 1 stubble, 2 moustache, 3 full
    glasses: int  # 0 none, 1 round, 2 square
    freckles: int
    age: float  # depth of the wrinkles, 0 to 1


@dataclass(frozen=True)
class Scene:
    """Properties of a single image. Angles in radians, shifts and scale in image sides."""

    yaw: float
    pitch: float
    roll: float
    scale: float  # half face height
    shift: tuple[float, float]
    light: tuple[float, float, float]  # unit vector towards the light: right, down, to the camera
    ambient: float
    exposure: float
    tint: Color  # color of the light, about 1
    gaze: tuple[float, float]
    shirt: Color
    blur: float  # sigma, pixels of the final image
    noise: float  # standard deviation on a scale of 0 to 255


def draw_actions(rng: np.random.Generator, label: str) -> Actions:
    """Sample the actions of an expression with varying intensity."""
    full, intensity = FULL[label], rng.uniform(0.5, 1.0)
    values = {field.name: getattr(full, field.name) for field in fields(Actions)}
    values["jaw"] *= rng.uniform(0.6, 1.3) if label == "surprise" else rng.uniform(0.0, 1.9)
    if rng.random() < 0.2:  # speaking: an open mouth alone must not predict the label
        values["jaw"] += rng.uniform(0.1, 0.35) * (1 - values["press"])
    own = {name: value * intensity * rng.uniform(0.75, 1.2) + rng.normal(0, 0.06) for name, value in values.items()}
    unsigned = ("furrow", "lid_tight", "cheek", "nose_wrinkle", "jaw", "upper_lip", "press")
    return Actions(**{name: max(value, 0.0) if name in unsigned else value for name, value in own.items()})


def draw_person(rng: np.random.Generator) -> Person:
    """Sample a person; ranges are set by eye so that people differ more than expressions."""
    u = rng.uniform
    tone = u()  # 0 is dark, 1 is pale
    skin = np.array([104, 68, 50]) * (1 - tone) + np.array([244, 208, 184]) * tone + rng.normal(0, 4, 3)
    hairs = ((28, 22, 20), (62, 40, 26), (110, 72, 40), (196, 158, 96), (140, 66, 36), (170, 168, 166))
    irises = ((62, 40, 24), (84, 58, 30), (70, 100, 120), (84, 110, 70), (40, 30, 24))
    lips = skin * np.array([0.88, 0.56, 0.58]) + np.array([u(0, 26), 0, u(0, 12)])
    return Person(
        skin=_color(skin),
        hair=_color(np.array(hairs[rng.integers(len(hairs) if tone > 0.45 else 2)]) * u(0.8, 1.2)),
        iris=irises[rng.integers(len(irises))],
        lips=_color(lips),
        width=u(0.68, 0.84),
        jaw_width=u(0.45, 0.75),
        forehead=u(0.86, 1.0),
        hair_style=int(rng.integers(6)),
        hair_line=u(-0.74, -0.56),
        eye_x=u(0.27, 0.36),
        eye_y=u(-0.2, -0.1),
        eye_width=u(0.135, 0.185),
        eye_height=u(0.055, 0.085),
        eye_tilt=u(-0.03, 0.05),
        brow_y=u(0.19, 0.25),
        brow_length=u(0.18, 0.24),
        brow_thickness=u(0.022, 0.055),
        brow_arch=u(0.0, 0.06),
        nose_length=u(0.34, 0.44),
        nose_width=u(0.11, 0.17),
        mouth_y=u(0.48, 0.56),
        mouth_width=u(0.23, 0.31),
        mouth_curve=u(-0.25, 0.25),
        upper_lip=u(0.03, 0.065),
        lower_lip=u(0.045, 0.085),
        beard=int(rng.choice(4, p=[0.66, 0.14, 0.08, 0.12])),
        glasses=int(rng.choice(3, p=[0.76, 0.12, 0.12])),
        freckles=int(rng.choice([0, 12, 30], p=[0.75, 0.15, 0.1])),
        age=u(0, 1),
    )


def draw_scene(rng: np.random.Generator) -> Scene:
    """Sample pose, light and camera of one image: the face fills it, as in crops of expression corpora."""
    u = rng.uniform
    light = np.array([u(-1, 1), u(-0.9, 0.3), u(0.35, 1.0)])
    light /= np.linalg.norm(light)
    warmth = rng.normal(0, 0.05)
    return Scene(
        yaw=float(np.clip(rng.normal(0, 0.18), -0.4, 0.4)),
        pitch=float(np.clip(rng.normal(0, 0.09), -0.2, 0.2)),
        roll=float(np.clip(rng.normal(0, 0.09), -0.25, 0.25)),
        scale=u(0.51, 0.6),
        shift=(float(rng.normal(0, 0.02)), float(rng.normal(-0.03, 0.016))),
        light=(float(light[0]), float(light[1]), float(light[2])),
        ambient=u(0.53, 0.83),
        exposure=u(0.75, 1.12),
        tint=(1 + warmth, 1.0, 1 - warmth),
        gaze=(float(rng.normal(0, 0.3)), float(rng.normal(0, 0.15))),
        shirt=_color(rng.uniform(20, 230, 3)),
        blur=u(0.0, 0.7),
        noise=u(0.5, 2.5),
    )


def _color(values: np.ndarray) -> Color:
    red, green, blue = (float(value) for value in np.clip(values, 0, 255))
    return red, green, blue
