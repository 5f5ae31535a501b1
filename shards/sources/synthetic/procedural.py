"""Synthetic face corpus: people with identity, pose, light and seven expressions.

With this corpus, all later stages can be tried and tested on any machine. Each image is a pure function of (seed,
person, index).
"""

from collections.abc import Iterator

import numpy as np
import simplejpeg

from shards.entry import Entry, LazyBytes
from shards.errors import UserError
from shards.sources.synthetic.drawing.face import draw_face
from shards.sources.synthetic.drawing.features import find_landmarks
from shards.sources.synthetic.drawing.person import (
    EXPRESSIONS,
    Actions,
    Person,
    Scene,
    draw_actions,
    draw_person,
    draw_scene,
)

QUALITY = 92  # JPEG quality
TEST_EVERY = 4  # every fourth person is in split test

_PERSON, _IMAGE, _DECK = 0, 1, 2  # purposes of random streams


def procedural(people: int, images_per_person: int, size: int = 128, seed: int = 0) -> Iterator[Entry]:
    """Yield synthetic faces, person by person, expressions equally often; label = expression, group = person.

    Three of four people are in split "train", the fourth in "test". Images are drawn lazily (`LazyBytes`). Five
    landmarks: eyes, nose tip, mouth corners.

    Args:
        people: number of people, at least 4.
        images_per_person: images of each person.
        size: side in pixels, at least 64.
        seed: seed of all random numbers.

    Raises:
        UserError: If there are fewer than four people (a split would be empty), there are no images, or the size is
            below 64.
    """
    if people < TEST_EVERY or images_per_person < 1 or size < 64:
        raise UserError(
            f"procedural: {people} people with {images_per_person} images of {size} px is out of range. "
            f"Fix: pass at least {TEST_EVERY} people, 1 image each and 64 px."
        )
    return (list_entry(seed, person, i, size) for person in range(people) for i in range(images_per_person))


def list_entry(seed: int, person: int, index: int, size: int) -> Entry:
    """Return the entry of image `index` of one person, without drawing it."""
    label, who, scene, actions, _ = _plan(seed, person, index)
    key = f"p{person:05d}-{index:04d}"
    return Entry(
        key=key,
        source=f"procedural/{seed}/{key}.jpg",
        read=LazyBytes("drawn_face", (seed, person, index, size)),
        label=label,
        split="test" if person % TEST_EVERY == TEST_EVERY - 1 else "train",
        group=f"p{person:05d}",
        landmarks=find_landmarks(who, scene, actions, size),
    )


def draw(seed: int, person: int, index: int, size: int) -> bytes:
    """Return the JPEG of image `index` of one person, independent of all other images."""
    _, who, scene, actions, rng = _plan(seed, person, index)
    image = draw_face(who, scene, actions, size, rng)
    return simplejpeg.encode_jpeg(image, quality=QUALITY, colorspace="RGB", colorsubsampling="444")


def _plan(seed: int, person: int, index: int) -> tuple[str, Person, Scene, Actions, np.random.Generator]:
    """Return the content of an image, and the generator for its background and grain."""
    label = _expression(seed, person, index)
    rng = _random(seed, _IMAGE, person, index)
    actions = draw_actions(rng, label)
    return label, draw_person(_random(seed, _PERSON, person)), draw_scene(rng), actions, rng


def _random(seed: int, purpose: int, person: int, index: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=[seed, purpose << 60 | person << 24 | index]))


def _expression(seed: int, person: int, index: int) -> str:
    """Return the expression: each run of seven images shows every expression once, in random order."""
    deck = _random(seed, _DECK, person, index // len(EXPRESSIONS)).permutation(len(EXPRESSIONS))
    return EXPRESSIONS[deck[index % len(EXPRESSIONS)]]
