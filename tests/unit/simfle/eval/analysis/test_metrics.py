"""Metrics against scikit-learn and manual calculations; intervals that respect dependent images of one person."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, f1_score, log_loss

from simfle.eval.analysis.metrics import bootstrap_weights, concordance, confusion, intervals, measure
from simfle.eval.analysis.results import AFFECT, CAM, CLASSES, LANDMARKS, VOTES

LABELS = np.array([0, 0, 0, 0, 1, 1, 2, 2])
PREDICTED = np.array([0, 0, 0, 1, 1, 0, 2, 2])


def balanced(labels: np.ndarray, predicted: np.ndarray, classes: int) -> float:
    return measure(CLASSES, labels, predicted, classes)["balanced_accuracy"]


def interval(labels: np.ndarray, runs: list, groups: list[str], classes: int, resamples: int = 1000) -> tuple:
    return intervals(CLASSES, labels, runs, groups, classes, resamples)["balanced_accuracy"]


def test_by_hand() -> None:
    found = measure(CLASSES, LABELS, PREDICTED, 3)
    assert found["accuracy"] == pytest.approx(6 / 8)
    assert found["balanced_accuracy"] == pytest.approx((3 / 4 + 1 / 2 + 1) / 3)
    assert found["macro_f1"] == pytest.approx((3 / 4 + 1 / 2 + 1) / 3)
    assert confusion(LABELS, PREDICTED, 3).tolist() == [[3, 1, 0], [1, 1, 0], [0, 0, 2]]


@settings(deadline=None, max_examples=60)
@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true", "ignore:A single label was found")
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40).filter(
        lambda rows: any(weight for *_, weight in rows)
    )
)
def test_weighted_metrics_are_those_of_scikit_learn(rows: list[tuple[int, int, int]]) -> None:
    labels, predicted, weights = np.array(rows).T
    found = measure(CLASSES, labels, predicted, 4, weights.astype(float))
    seen = np.repeat(labels, weights), np.repeat(predicted, weights)
    assert found["accuracy"] == pytest.approx(accuracy_score(*seen))
    assert found["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(*seen))
    assert found["macro_f1"] == pytest.approx(f1_score(*seen, average="macro", zero_division=0))
    judge = confusion_matrix(*seen, labels=range(4))
    assert confusion(labels, predicted, 4, weights.astype(float)).tolist() == judge.tolist()


def test_votes() -> None:
    truth, guess = np.array([[0.75, 0.25], [0.0, 1.0]]), np.array([[0.5, 0.5], [0.2, 0.8]])
    found = measure(VOTES, truth, guess)
    cross = [math.log(2), -math.log(0.8)]
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert found["cross_entropy"] == pytest.approx(sum(cross) / 2)
    assert found["kl"] == pytest.approx((cross[0] - entropy + cross[1]) / 2)
    assert found["accuracy"] == 1.0
    hard = np.eye(2)[[0, 1, 1]]
    some = np.array([[0.6, 0.4], [0.3, 0.7], [0.9, 0.1]])
    assert measure(VOTES, hard, some)["cross_entropy"] == pytest.approx(log_loss([0, 1, 1], some))
    assert measure(VOTES, truth, truth)["kl"] == pytest.approx(0)


def test_concordance_by_hand() -> None:
    """1, 2, 3 against 2, 2, 5: means 2 and 3, variances 2/3 and 2, covariance 1."""
    one = np.ones(3)
    truth, found = np.array([1.0, 2, 3]), np.array([2.0, 2, 5])
    assert concordance(truth, found, one) == pytest.approx(2 * 1 / (2 / 3 + 2 + 1))
    assert concordance(truth, truth, one) == 1
    assert concordance(truth, -truth + 4, one) == pytest.approx(-1)
    assert concordance(truth, truth + 1, one) < 1  # a shift counts, unlike in correlation
    assert concordance(one, one, one) == 0
    both = measure(AFFECT, np.stack([truth, truth], 1), np.stack([found, truth], 1))
    assert both["ccc"] == pytest.approx((6 / 11 + 1) / 2)
    assert both["rmse_valence"] == pytest.approx(math.sqrt((1 + 0 + 4) / 3))
    assert both["rmse_arousal"] == 0


def test_landmark_errors() -> None:
    errors = np.array([0.02, 0.05, 0.09, 0.2])
    found = measure(LANDMARKS, np.ones(4), errors)
    assert found["nme"] == pytest.approx(0.09)
    assert found["failure_08"] == 0.5
    assert found["failure_10"] == 0.25
    # The cumulative error distribution, integrated in small steps
    steps = (np.arange(10000) + 0.5) / 10000 * 0.08
    curve = (errors[None] <= steps[:, None]).mean(1)
    assert found["auc_08"] == pytest.approx(curve.mean(), abs=1e-3)


def test_activation_near_landmarks() -> None:
    found = measure(CAM, np.array([0.2, 0.3]), np.array([0.4, 0.6]))
    assert found == pytest.approx({"gain": 2.0, "share": 0.5, "chance": 0.25})


def test_a_class_that_is_never_predicted_counts_as_zero() -> None:
    found = measure(CLASSES, np.array([0, 1]), np.array([0, 0]), 2)
    assert found["balanced_accuracy"] == 0.5
    assert found["macro_f1"] == pytest.approx((2 / 3 + 0) / 2)


def test_perfect_predictions_have_no_spread() -> None:
    assert interval(LABELS, [LABELS], list("abcdefgh"), 3, 100) == (1.0, 1.0)


def test_interval_holds_the_value_and_narrows_with_more_people() -> None:
    rng = np.random.default_rng(0)
    widths = []
    for many in (40, 1000):
        labels = np.arange(many) % 4
        predicted = np.where(rng.random(many) < 0.7, labels, (labels + 1) % 4)
        low, high = interval(labels, [predicted], list(map(str, range(many))), 4)
        assert low < balanced(labels, predicted, 4) < high
        widths.append(high - low)
    # twice the textbook's 1.96 sqrt(0.7 * 0.3 / 1000)
    assert widths[1] == pytest.approx(2 * 1.96 * np.sqrt(0.21 / 1000), rel=0.15)
    assert widths[0] > 3 * widths[1]


def test_people_are_drawn_whole() -> None:
    """Ten people, each right or wrong in all of 20 images, are ten observations, not two hundred."""
    labels = np.tile([0, 1], 100)
    person = np.repeat(np.arange(10), 20)
    predicted = np.where(person < 5, labels, 1 - labels)
    alone = interval(labels, [predicted], list(map(str, range(200))), 2)
    whole = interval(labels, [predicted], list(map(str, person)), 2)
    assert whole[1] - whole[0] > 3 * (alone[1] - alone[0])
    for weights in bootstrap_weights(list(map(str, person)), 5):
        assert weights.sum() == 200
        assert (weights.reshape(10, 20) == weights.reshape(10, 20)[:, :1]).all()


def test_a_class_of_one_image_stays_in_every_resample() -> None:
    """Omitting a hard and rare class where it is not drawn would lift the interval above the score."""
    labels = np.array([0] * 50 + [1] * 50 + [2])
    predicted = np.array([0] * 101)
    predicted[50:100] = 1
    assert interval(labels, [predicted], list(map(str, range(101))), 3) == pytest.approx((2 / 3, 2 / 3))


def test_runs_are_averaged() -> None:
    wrong = (LABELS + 1) % 3
    assert interval(LABELS, [LABELS, wrong], list("abcdefgh"), 3, 50) == (0.5, 0.5)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 3)), min_size=1, max_size=30))
def test_interval_is_ordered_and_deterministic(rows: list[tuple[int, int, int]]) -> None:
    labels, predicted, people = np.array(rows).T
    groups = list(map(str, people))
    low, high = interval(labels, [predicted], groups, 3, 20)
    assert 0 <= low <= high <= 1
    assert interval(labels, [predicted], groups, 3, 20) == (low, high)
