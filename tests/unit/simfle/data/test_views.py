import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simfle.config.schema import ViewsConfig
from simfle.data.views import (
    HUE,
    LUMA,
    BatchViewParams,
    ViewParams,
    blur_window,
    color_matrices,
    crop_boxes,
    sample_view_params,
)
from simfle.errors import UserError

CONFIG = ViewsConfig()
IDS = st.lists(st.integers(0, 2**62), min_size=1, max_size=20)


def flat(draws: BatchViewParams, i: int) -> list[np.ndarray]:
    views = [np.asarray(value)[i] for view in draws.views for value in vars(view).values()]
    return [*views, draws.group[i]]


@given(st.integers(0, 2**32 - 1), IDS, st.integers(0, 2**32 - 1), st.data())
@settings(deadline=None, max_examples=50)
def test_a_sample_has_the_same_views_in_any_batch(seed: int, ids: list[int], epoch: int, data: st.DataObject) -> None:
    together = sample_view_params(seed, epoch, ids, CONFIG)
    i = data.draw(st.integers(0, len(ids) - 1))
    alone = sample_view_params(seed, [epoch], [ids[i]], CONFIG)
    for a, b in zip(flat(together, i), flat(alone, 0), strict=True):
        np.testing.assert_array_equal(a, b)
    sizes = np.arange(len(ids)) * 7 + 30
    box = crop_boxes(together.views[1], sizes, sizes[::-1], CONFIG.ratio)[i]
    assert box.tolist() == crop_boxes(alone.views[1], sizes[[i]], sizes[::-1][[i]], CONFIG.ratio)[0].tolist()


@given(st.integers(0, 100), st.integers(1, 3000), st.integers(1, 3000))
@settings(deadline=None)
def test_boxes_lie_inside(seed: int, height: int, width: int) -> None:
    view = sample_view_params(seed, 0, np.arange(64), CONFIG).views[0]
    x, y, w, h = crop_boxes(view, np.full(64, height), np.full(64, width), CONFIG.ratio).T
    assert (x >= 0).all()
    assert (y >= 0).all()
    assert (w >= 1).all()
    assert (h >= 1).all()
    assert (x + w <= width).all()
    assert (y + h <= height).all()


def test_the_central_fallback() -> None:
    """No attempt fits an image of 1000 x 20 (a share of 8 % is wider than high): whole height, ratio 4/3."""
    view = sample_view_params(0, 0, np.arange(50), CONFIG).views[0]
    wide = crop_boxes(view, np.full(50, 20), np.full(50, 1000), CONFIG.ratio)
    assert np.unique(wide, axis=0).tolist() == [[486, 0, 27, 20]]
    high = crop_boxes(view, np.full(50, 1000), np.full(50, 20), CONFIG.ratio)
    assert np.unique(high, axis=0).tolist() == [[0, 486, 20, 27]]
    impossible = dataclasses.replace(view, areas=np.full((50, 10), 4.0))
    assert np.unique(crop_boxes(impossible, [100] * 50, [110] * 50, CONFIG.ratio), axis=0).tolist() == [
        [0, 0, 110, 100]
    ]


def many() -> ViewParams:
    return sample_view_params(7, np.arange(20000), np.arange(20000) * 10**9, CONFIG).views[1]


def test_statistics_are_those_asked_for() -> None:
    view, n = many(), 20000
    for flags, share in ((view.flip, 0.5), (view.jitter, 0.8), (view.grayscale, 0.2)):
        assert abs(flags.mean() - share) < 4 * (share * (1 - share) / n) ** 0.5
    for values, low, high in (
        (view.areas, 0.08, 1.0),
        (np.log(view.ratios), np.log(3 / 4), np.log(4 / 3)),
        (view.place, 0, 1),
        (view.factors[:, :HUE], 0.2, 1.8),
        (view.factors[:, HUE], -0.2, 0.2),
        (view.sigma, 0.1, 2.0),
    ):
        counts = np.histogram(values, bins=20, range=(low, high))[0]
        assert counts.sum() == values.size
        expected = values.size / 20
        assert ((counts - expected) ** 2 / expected).sum() < 43.9  # chi-square, 19 degrees, 99.9 %
    orders = np.unique(view.order, axis=0, return_counts=True)[1]
    assert ((orders - n / 24) ** 2 / (n / 24)).sum() < 49.8  # 23 degrees
    assert len(orders) == 24


def test_crops_have_the_area_that_was_drawn() -> None:
    """In a large square image, each first attempt with a fraction below 3/4 fits, so its area is exact to rounding."""
    view = many()
    size = np.full(20000, 2000)
    box = crop_boxes(view, size, size, CONFIG.ratio)
    share = box[:, 2] * box[:, 3] / 2000**2
    small = view.areas[:, 0] < 0.74
    np.testing.assert_allclose(share[small], view.areas[small, 0], atol=2e-3)
    np.testing.assert_allclose((box[:, 2] / box[:, 3])[small], view.ratios[small, 0], rtol=1e-2)


def test_views_epochs_seeds_and_purposes_are_independent() -> None:
    base = sample_view_params(1, 5, np.arange(1000), CONFIG)
    others = (
        base.views[1].place,
        sample_view_params(1, 6, np.arange(1000), CONFIG).views[0].place,
        sample_view_params(2, 5, np.arange(1000), CONFIG).views[0].place,
        sample_view_params(1, 5, np.arange(1000) + 2**32, CONFIG).views[0].place,
        np.stack([base.group, base.group], 1),
    )
    for other in others:
        assert abs(np.corrcoef(base.views[0].place.reshape(-1), other.reshape(-1))[0, 1]) < 0.1


def test_the_draws_are_pinned_for_ever() -> None:
    """If this fails, resumed runs would see other views than before: the code is wrong, not the numbers."""
    draws = sample_view_params(20240611, [0, 3, 99], [0, 12345, 2**40 + 1], CONFIG)
    sizes = np.array([350, 48, 1024]), np.array([350, 64, 768])
    got = [crop_boxes(view, *sizes, CONFIG.ratio).tolist() for view in draws.views]
    assert got == [
        [[42, 32, 222, 175], [9, 13, 40, 34], [116, 98, 381, 358]],
        [[92, 135, 146, 131], [1, 0, 59, 48], [178, 4, 479, 627]],
    ]
    assert [view.flip.tolist() for view in draws.views] == [[True, False, False], [True, True, True]]
    sigma = [
        [1.6640081674791873, 1.6548017900437118, 0.27499839989468455],
        [0.18452894559595734, 1.4026319216703997, 1.6271654496667907],
    ]
    colors = [
        [1.1142710990130977, 0.8676886314083033, 0.19634542257555093],
        [0.4132193257994326, 1.356725203759133, 0.46255699918605586],
    ]
    np.testing.assert_allclose([view.sigma for view in draws.views], sigma, rtol=1e-12)
    np.testing.assert_allclose([v.matrix[:, 0, 0] + v.mean_matrix[:, 2, 1] for v in draws.views], colors, rtol=1e-12)
    np.testing.assert_allclose(draws.group, [0.5873400177806616, 0.16545682027935982, 0.29676794703118503], rtol=1e-12)


def one(*, factors: tuple[float, float, float, float], order: tuple[int, ...], gray: bool = False) -> tuple:
    parts = np.array([True]), np.array([factors]), np.array([order]), np.array([gray])
    matrix, mean_matrix = color_matrices(*parts)
    return matrix[0], mean_matrix[0]


def test_color_chain_against_one_step_at_a_time() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.uniform(0, 255, (50, 3))
    view = sample_view_params(3, 0, np.arange(200), CONFIG).views[0]
    for i in range(200):
        expected = pixels
        for op in view.order[i] if view.jitter[i] else ():
            f = view.factors[i, op]
            gray = expected @ LUMA
            if op == 0:
                expected = f * expected
            elif op == 1:
                expected = f * expected + (1 - f) * gray.mean()
            elif op == 2:
                expected = f * expected + (1 - f) * gray[:, None]
            else:
                expected = expected @ one(factors=(1, 1, 1, f), order=(0, 1, 2, 3))[0].T
        if view.grayscale[i]:
            expected = np.repeat((expected @ LUMA)[:, None], 3, 1)
        got = pixels @ view.matrix[i].T + view.mean_matrix[i] @ pixels.mean(0)
        np.testing.assert_allclose(got, expected, atol=1e-9)


def test_hue_keeps_luma_and_turns_red_to_green() -> None:
    matrix, mean_matrix = one(factors=(1, 1, 1, 1 / 3), order=(3, 2, 1, 0))
    assert not mean_matrix.any()
    np.testing.assert_allclose(LUMA @ matrix, LUMA, atol=1e-12)
    np.testing.assert_allclose(matrix @ np.ones(3), np.ones(3), atol=1e-12)  # gray stays gray
    assert (matrix @ np.array([1.0, 0, 0])).argmax() == 1
    back = one(factors=(1, 1, 1, -1 / 3), order=(3, 2, 1, 0))[0]
    np.testing.assert_allclose(back @ matrix, np.eye(3), atol=1e-12)


def test_grayscale_gives_three_equal_channels() -> None:
    matrix, mean_matrix = one(factors=(1.5, 0.3, 0.4, 0.1), order=(2, 1, 3, 0), gray=True)
    assert np.ptp(matrix, axis=0).max() < 1e-12
    assert np.ptp(mean_matrix, axis=0).max() < 1e-12


def test_without_jitter_and_grayscale_nothing_changes() -> None:
    view = sample_view_params(
        0, 0, np.arange(100), dataclasses.replace(CONFIG, color_jitter_prob=0.0, grayscale_prob=0.0)
    ).views[0]
    assert (view.matrix == np.eye(3)).all()
    assert not view.mean_matrix.any()


@pytest.mark.parametrize(("sigma", "taps"), [(0.1, 3), (1 / 3, 3), (0.34, 5), (2.0, 13)])
def test_blur_window(sigma: float, taps: int) -> None:
    assert blur_window(sigma) == taps


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("scale", [0.0, 1.0]),
        ("scale", [0.5, 1.5]),
        ("ratio", [2.0, 1.0]),
        ("blur_sigma", [1.0]),
        ("flip_prob", 1.2),
        ("hue", 0.6),
        ("contrast", -0.1),
        ("size", 0),
    ],
)
def test_a_field_out_of_range_is_named(field: str, value: object) -> None:
    with pytest.raises(UserError, match=rf"views\.{field}"):
        sample_view_params(0, 0, [1], dataclasses.replace(CONFIG, **{field: value}))
