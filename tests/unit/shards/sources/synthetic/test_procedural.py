"""Synthetic faces: reproducible, with balanced expressions, split by person, and drawn at their landmarks."""

import dataclasses
import pickle
import subprocess
import sys
from collections import Counter

import cv2
import numpy as np
import pytest

from shards.entry import Entry, LazyBytes
from shards.errors import UserError
from shards.sources.synthetic.drawing.canvas import U
from shards.sources.synthetic.drawing.face import draw_face
from shards.sources.synthetic.drawing.features import find_landmarks
from shards.sources.synthetic.drawing.person import (
    EXPRESSIONS,
    FULL,
    Actions,
    Person,
    Scene,
    draw_actions,
    draw_person,
    draw_scene,
)
from shards.sources.synthetic.procedural import procedural

pytestmark = pytest.mark.slow

cv2.setNumThreads(1)


def image_of(entry: Entry) -> np.ndarray:
    assert isinstance(entry.read, LazyBytes)
    return cv2.imdecode(np.frombuffer(entry.read(), np.uint8), cv2.IMREAD_COLOR)


def plain(seed: int) -> tuple[Person, Scene]:
    """A person without hair, beard or glasses, seen from the front in even light, without noise."""
    rng = np.random.default_rng(seed)
    person = dataclasses.replace(draw_person(rng), hair_style=0, beard=0, glasses=0, freckles=0, skin=(220, 180, 160))
    scene = draw_scene(rng)
    still = {"yaw": 0.0, "pitch": 0.0, "roll": 0.0, "shift": (0.0, 0.0), "scale": 0.4, "gaze": (0.0, 0.0)}
    even = {"light": (0.0, 0.0, 1.0), "ambient": 0.78, "exposure": 1.0, "blur": 0.0, "noise": 0.0}
    return person, dataclasses.replace(scene, **still, **even)


def paint(person: Person, scene: Scene, actions: Actions, size: int = 128) -> np.ndarray:
    return draw_face(person, scene, actions, size, np.random.default_rng(0)).astype(int)


def test_same_bytes_in_another_process() -> None:
    entries = list(procedural(4, 2, 64, seed=5))
    here = [entry.read() for entry in entries]  # type: ignore[operator]
    program = (
        "import sys\nfrom shards.sources.synthetic.procedural import procedural\n"
        "for entry in procedural(4, 2, 64, seed=5): sys.stdout.buffer.write(entry.read())"
    )
    there = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout
    assert there == b"".join(here)


def test_an_image_depends_on_seed_person_and_index_alone() -> None:
    small = {entry.key: entry for entry in procedural(4, 2, 64)}
    large = {entry.key: entry for entry in procedural(6, 9, 64)}
    assert small.items() <= large.items()
    key = "p00001-0001"
    assert large[key].read() == small[key].read()  # type: ignore[operator]
    other = {entry.key: entry for entry in procedural(4, 2, 64, seed=1)}
    assert other[key].read() != small[key].read()  # type: ignore[operator]


def test_entries_survive_the_way_to_a_worker() -> None:
    for entry in procedural(4, 1, 64):
        again = pickle.loads(pickle.dumps(entry))
        assert again == entry
        assert again.read() == entry.read()  # type: ignore[operator]


def test_people_are_split_three_to_one_and_never_divided() -> None:
    entries = list(procedural(20, 7, 64))
    splits = {entry.group: {e.split for e in entries if e.group == entry.group} for entry in entries}
    assert len(splits) == 20
    assert all(len(found) == 1 for found in splits.values())
    assert Counter(entry.split for entry in entries) == {"train": 105, "test": 35}
    assert len({entry.key for entry in entries}) == len(entries)
    assert not any("." in entry.key for entry in entries)


def test_every_person_shows_every_expression_equally_often_in_an_order_of_their_own() -> None:
    entries = list(procedural(6, 14, 64))
    orders = set()
    for person in range(6):
        labels = [entry.label for entry in entries if entry.group == f"p{person:05d}"]
        assert Counter(labels) == dict.fromkeys(EXPRESSIONS, 2)
        orders.add(tuple(labels))
    assert len(orders) == 6


@pytest.mark.parametrize("size", [64, 100, 160])
def test_size_and_landmarks_inside(size: int) -> None:
    for entry in procedural(4, 2, size, seed=3):
        assert image_of(entry).shape == (size, size, 3)
        points = np.array(entry.landmarks)
        assert points.shape == (5, 2)
        assert (points > 0).all()
        assert (points < size).all()


def test_landmarks_lie_on_what_they_name() -> None:
    """Pupils are the darkest place of the upper face; turning the head moves the points as it moves the paint."""
    for seed in range(5):
        person, scene = plain(seed)
        for roll in (-0.25, 0.0, 0.25):
            turned = dataclasses.replace(scene, roll=roll)
            gray = paint(person, turned, Actions()).sum(2)
            left, right, nose, *_ = np.round(np.array(find_landmarks(person, turned, Actions(), 128))).astype(int)
            for x, y in (left, right):
                patch = gray[y - 3 : y + 4, x - 3 : x + 4]
                assert patch.min() < 0.35 * gray[nose[1] - 3, nose[0]]


def test_expressions_move_the_face_and_nothing_else() -> None:
    person, scene = plain(2)
    rest = paint(person, scene, FULL["neutral"])
    for label in EXPRESSIONS[1:]:
        changed = np.abs(paint(person, scene, FULL[label]) - rest).sum(2) > 30
        rows = np.nonzero(changed.any(1))[0]
        assert changed.sum() > 200, label
        assert not changed[:, :15].any(), label
        assert not changed[:10].any(), label
        assert rows.min() < 60 < rows.max(), label  # eyes or brows, and the mouth


def test_the_mouth_says_what_the_label_says() -> None:
    person, scene = plain(4)
    person = dataclasses.replace(person, mouth_curve=0.0)
    height = {}
    for label in ("neutral", "happiness", "sadness"):
        points = np.array(find_landmarks(person, scene, FULL[label], 128))
        height[label] = points[3:, 1].mean()
    assert height["happiness"] < height["neutral"] - 1 < height["neutral"] + 1 < height["sadness"]
    assert len(U) % 2  # one point is the middle of the mouth


def test_intensity_varies_and_unsigned_actions_stay_so() -> None:
    rng = np.random.default_rng(0)
    drawn = [draw_actions(rng, "happiness") for _ in range(200)]
    corner = np.array([actions.corner for actions in drawn])
    assert 0.3 < corner.min() < 0.55
    assert corner.max() > 0.9
    assert min(actions.furrow for actions in drawn) == 0.0


def test_raw_pixels_do_not_give_the_expression_away() -> None:
    """A linear classifier on pixels must stay far from solving the corpus, or a probe on it would say nothing."""
    from sklearn.linear_model import RidgeClassifier

    entries = list(procedural(60, 7, 64))
    pixels = np.stack([cv2.resize(image_of(e), (24, 24), interpolation=cv2.INTER_AREA).ravel() for e in entries])
    labels = np.array([entry.label for entry in entries])
    train = np.array([entry.split == "train" for entry in entries])
    model = RidgeClassifier(alpha=1e6).fit(pixels[train].astype(float), labels[train])
    assert model.score(pixels[~train].astype(float), labels[~train]) < 0.4


@pytest.mark.parametrize(("people", "images", "size"), [(3, 1, 64), (4, 0, 64), (4, 1, 63)])
def test_impossible_corpora_are_refused(people: int, images: int, size: int) -> None:
    with pytest.raises(UserError, match="at least 4 people"):
        procedural(people, images, size)
