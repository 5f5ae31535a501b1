"""Metrics against figures worked out by hand, and intervals that know that images of one person are not independent."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simfle.eval.metrics import interval, measure

LABELS = np.array([0, 0, 0, 0, 1, 1, 2, 2])
PREDICTED = np.array([0, 0, 0, 1, 1, 0, 2, 2])


def test_by_hand() -> None:
    found = measure(LABELS, PREDICTED, 3)
    assert found.accuracy == pytest.approx(6 / 8)
    assert found.recall == pytest.approx([3 / 4, 1 / 2, 1])
    assert found.balanced_accuracy == pytest.approx((3 / 4 + 1 / 2 + 1) / 3)
    assert found.macro_f1 == pytest.approx((3 / 4 + 1 / 2 + 1) / 3)
    assert found.confusion == [[3, 1, 0], [1, 1, 0], [0, 0, 2]]


def test_a_class_that_is_never_predicted_counts_as_zero() -> None:
    found = measure(np.array([0, 1]), np.array([0, 0]), 2)
    assert found.balanced_accuracy == 0.5
    assert found.macro_f1 == pytest.approx((2 / 3 + 0) / 2)


def test_perfect_predictions_have_no_spread() -> None:
    assert interval(LABELS, LABELS[None], tuple("abcdefgh"), 3, 100) == (1.0, 1.0)


def test_interval_holds_the_value_and_narrows_with_more_people() -> None:
    rng = np.random.default_rng(0)
    widths = []
    for many in (40, 1000):
        labels = np.arange(many) % 4
        predicted = np.where(rng.random(many) < 0.7, labels, (labels + 1) % 4)
        low, high = interval(labels, predicted[None], tuple(map(str, range(many))), 4)
        assert low < measure(labels, predicted, 4).balanced_accuracy < high
        widths.append(high - low)
    # The textbook's 1.96 sqrt(0.7 * 0.3 / 1000), twice
    assert widths[1] == pytest.approx(2 * 1.96 * np.sqrt(0.21 / 1000), rel=0.15)
    assert widths[0] > 3 * widths[1]


def test_people_are_drawn_whole() -> None:
    """Ten people, each right or wrong in all of 20 images: that is ten observations, not two hundred."""
    labels = np.tile([0, 1], 100)
    person = np.repeat(np.arange(10), 20)
    predicted = np.where(person < 5, labels, 1 - labels)
    alone = interval(labels, predicted[None], tuple(map(str, range(200))), 2)
    whole = interval(labels, predicted[None], tuple(map(str, person)), 2)
    assert whole[1] - whole[0] > 3 * (alone[1] - alone[0])


def test_runs_are_averaged() -> None:
    wrong = (LABELS + 1) % 3
    assert interval(LABELS, np.stack([LABELS, wrong]), tuple("abcdefgh"), 3, 50) == (0.5, 0.5)


def test_a_class_of_one_person_may_be_missing_in_a_resample() -> None:
    low, high = interval(np.array([0, 0, 1]), np.array([[0, 1, 1]]), ("a", "b", "c"), 2, 200)
    assert 0 <= low <= high <= 1


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 3)), min_size=1, max_size=30))
def test_interval_is_ordered_and_deterministic(rows: list[tuple[int, int, int]]) -> None:
    labels, predicted, people = np.array(rows).T
    groups = tuple(map(str, people))
    low, high = interval(labels, predicted[None], groups, 3, 20)
    assert 0 <= low <= high <= 1
    assert interval(labels, predicted[None], groups, 3, 20) == (low, high)
