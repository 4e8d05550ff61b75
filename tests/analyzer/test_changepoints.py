"""Change points and dips of single curves and of layers together."""

from __future__ import annotations

import dit_analyzer
import numpy as np
import pytest
import xarray as xr
from dit_analyzer import change_points, joint_change_points
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

FLUX_MAG_RATIOS = [  # of diffusers 0.42, hooks/mag_cache.py, without the 1.0 before it: one a transition of 28 steps
    *(1.21094, 1.11719, 1.07812, 1.0625, 1.03906, 1.03125, 1.03906, 1.02344, 1.03125, 1.02344, 0.98047, 1.01562),
    *(1.00781, 1.0, 1.00781, 1.0, 1.00781, 1.0, 1.0, 0.99609, 0.99609, 0.98047, 0.98828, 0.96484, 0.95703, 0.93359),
    0.89062,
]


def flux(noise: float = 0.04, seed: int = 0, jump: float = 0.8) -> NDArray[np.float64]:
    """Falls, jumps at transition 10 of 27, falls on."""
    t = np.arange(27)
    return np.exp(-0.1 * t + jump * (t >= 10) + noise * np.random.default_rng(seed).standard_normal(27))


def test_the_jump_is_found_where_it_is_and_counted_as_the_paper_counts() -> None:
    found = change_points(flux(), sigma=np.linspace(1, 0, 28), num_steps=28)
    (point,) = found.points
    assert (point.transition, point.paper_step, point.low, point.high) == (10, 16, 10, 10)
    assert point.sigma == pytest.approx(1 - 10 / 27)
    assert point.jump == pytest.approx(np.exp(0.8), rel=0.1) and abs(point.slope) < 0.03
    assert found.any > 0.999 and point.posterior > 0.99 and found.best == (10,)
    assert found.probability.shape == (27,) and found.probability.argmax() == 10


def test_a_bend_without_a_jump_is_a_change_of_slope() -> None:
    t = np.arange(40)
    (point,) = change_points(
        np.exp(-0.1 * np.minimum(t, 20) + 0.02 * np.random.default_rng(0).standard_normal(40))
    ).points
    assert abs(point.transition - 20) <= 1 and point.slope == pytest.approx(0.1, abs=0.02)
    assert point.jump == pytest.approx(1, abs=0.1) and point.low <= 20 <= point.high


def test_interval_holds_the_change_when_noise_hides_its_place() -> None:
    found = [change_points(flux(noise=0.15, seed=seed)).points for seed in range(60)]
    points = [min(some, key=lambda point: abs(point.transition - 10)) for some in found if some]
    assert len(points) > 40 and np.mean([point.low <= 10 <= point.high for point in points]) > 0.9
    assert any(point.high > point.low for point in points)


@given(st.floats(1e-6, 1e6))
@settings(max_examples=10, deadline=None)
def test_scale_says_nothing(scale: float) -> None:
    one, other = change_points(flux(0.12)), change_points(scale * flux(0.12))
    np.testing.assert_allclose(one.probability, other.probability, atol=1e-8)
    assert [p.transition for p in one.points] == [p.transition for p in other.points]
    assert one.points[0].jump == pytest.approx(other.points[0].jump)


def test_reversal_reverses_the_changes() -> None:
    one, other = change_points(flux(0.12)), change_points(flux(0.12)[::-1])
    assert one.any == pytest.approx(other.any)
    np.testing.assert_allclose(one.probability[1:], other.probability[:0:-1], atol=1e-10)
    assert other.points[0].transition == 27 - one.points[0].transition
    assert other.points[0].jump == pytest.approx(1 / one.points[0].jump)


@pytest.mark.parametrize(
    "curve",
    [np.full(27, 0.3), np.exp(-0.1 * np.arange(27)), np.arange(1, 28) ** -0.7, 0.1 + np.exp(-0.2 * np.arange(27))],
)
def test_smooth_curves_have_no_change(curve: NDArray[np.float64]) -> None:
    found = change_points(curve)
    assert found.any < 0.05 and not found.points and not found.dips


def test_zero_and_non_finite_cells_are_named_and_left_out() -> None:
    curve = flux()
    curve[[3, 15, 20, 21]] = 0, np.nan, np.inf, -1
    found = change_points(curve)
    assert [point.transition for point in found.points] == [10]
    assert set(found.left_out) == {3, 15, 20, 21} and "zero" in found.left_out[3] and "finite" in found.left_out[15]
    assert np.isnan(found.probability[[3, 15, 20, 21]]).all() and np.isfinite(found.probability).sum() == 23


def test_change_beside_a_gap_may_be_anywhere_in_the_gap() -> None:
    curve = flux(0.01)
    curve[[8, 9]] = 0
    (point,) = change_points(curve).points
    assert (point.transition, point.low, point.high) == (10, 8, 10)


@pytest.mark.parametrize("curve", [np.zeros(27), np.full(27, np.nan), []])
def test_curve_without_usable_l1_is_refused(curve: NDArray[np.float64]) -> None:
    with pytest.raises(ValueError, match="nothing to segment"):
        change_points(curve)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_short_curve_says_that_it_is_too_short(n: int) -> None:
    found = change_points(np.ones(n))
    assert (
        np.isnan(found.any)
        and not found.points
        and found.note == f"{n} usable transitions; a change needs 6, 3 on each side"
    )
    assert np.isnan(found.probability).all() and len(found.probability) == n


def test_six_transitions_are_enough() -> None:
    found = change_points([1, 1, 1, 9, 9, 9.0])
    assert [point.transition for point in found.points] == [3]


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="2 dimensions"):
        change_points(np.ones((3, 27)))
    with pytest.raises(ValueError, match="sigma has shape"):
        change_points(flux(), sigma=[1.0, 0.0])
    with pytest.raises(ValueError, match="28 steps or more"):
        change_points(flux(), num_steps=20)
    with pytest.raises(ValueError, match="dimension transition"):
        change_points(xr.DataArray(flux(), dims="step"))


def test_labels_of_an_array_are_used() -> None:
    curve = xr.DataArray(
        flux(), {"transition": range(1, 28), "sigma": ("transition", np.linspace(1, 0.1, 27))}, ["transition"]
    )
    (point,) = change_points(curve, num_steps=30).points
    assert (point.transition, point.paper_step) == (11, 17)
    assert point.sigma == pytest.approx(float(curve.sigma[10]))


def test_published_ratios_of_flux_dip_at_the_papers_step_16() -> None:
    (dip,) = change_points(FLUX_MAG_RATIOS, num_steps=28).dips
    assert (dip.transition, dip.length, dip.paper_step) == (10, 1, 16)
    assert dip.factor == pytest.approx(0.96, abs=0.01)


@pytest.mark.parametrize("length", [1, 2])
def test_dip_is_reported_and_no_change(length: int) -> None:
    curve = np.exp(-0.05 * np.arange(30) + 0.02 * np.random.default_rng(4).standard_normal(30))
    curve[12 : 12 + length] *= 0.6
    found = change_points(curve)
    assert [(dip.transition, dip.length) for dip in found.dips] == [(12, length)] and not found.points
    assert found.dips[0].factor == pytest.approx(0.6, abs=0.05) and np.isnan(found.probability[12])


def test_neither_a_jump_nor_fluctuation_is_a_dip() -> None:
    assert not change_points(flux(0.01)).dips
    busy = np.exp(0.02 * np.random.default_rng(5).standard_normal(40))
    busy[::5] *= 0.5
    assert not change_points(busy).dips


def layers(noise: float, shared: float = 0.0, seed: int = 0) -> NDArray[np.float64]:
    rng = np.random.default_rng(seed)
    t = np.arange(27)
    common = np.sqrt(shared) * rng.standard_normal(27) + np.sqrt(1 - shared) * rng.standard_normal((8, 27))
    return np.exp(rng.uniform(-1, 1, (8, 1)) - 0.05 * t + 0.4 * (t >= 10) + noise * common)


def test_layers_together_find_what_none_finds_alone() -> None:
    found = joint_change_points(layers(0.12), num_steps=28)
    assert [point.transition for point in found.points] == [10] and found.points[0].paper_step == 16
    assert np.median(found.layer_any) < 0.5 < found.any
    assert found.layer_probability.shape == (8, 27) and found.jumps.shape == (1, 8)
    assert found.points[0].jump == pytest.approx(np.exp(0.4), rel=0.15)
    assert found.points[0].jump == pytest.approx(np.exp(np.log(found.jumps[0]).mean()))


def test_joint_posterior_of_one_layer_is_its_own() -> None:
    one, alone = joint_change_points(flux(0.12)[None]), change_points(flux(0.12))
    assert one.any == pytest.approx(alone.any) and one.effective_layers == 1
    np.testing.assert_allclose(one.probability, alone.probability)
    np.testing.assert_allclose(one.layer_probability[0], alone.probability)


def test_copies_of_a_layer_say_it_once() -> None:
    copies = joint_change_points(np.repeat(flux(0.12)[None], 6, 0))
    assert copies.effective_layers == pytest.approx(1)
    assert copies.any == pytest.approx(change_points(flux(0.12)).any)


def test_independent_layers_count_nearly_in_full() -> None:
    assert joint_change_points(layers(0.12)).effective_layers > 5
    assert joint_change_points(layers(0.12, shared=0.8)).effective_layers < 3


def test_scale_of_a_layer_says_nothing() -> None:
    scales = np.geomspace(1e-3, 1e3, 8)[:, None]
    one, other = joint_change_points(layers(0.12)), joint_change_points(layers(0.12) * scales)
    np.testing.assert_allclose(one.probability, other.probability, atol=1e-8)


def test_layers_without_usable_l1_are_named_and_left_out() -> None:
    curves = layers(0.05)
    curves[2], curves[5, :24], curves[6, 4] = 0, np.nan, 0
    found = joint_change_points(curves)
    assert [point.transition for point in found.points] == [10]
    assert (
        found.cells_left_out == ((6, 4),) and set(found.left_out) == {2, 5} and found.left_out[5].startswith("3 usable")
    )
    assert np.isnan(found.layer_any[[2, 5]]).all() and np.isfinite(found.layer_any).sum() == 6
    assert np.isnan(found.jumps[0, [2, 5]]).all()
    with pytest.raises(ValueError, match="none of the 8 layers"):
        joint_change_points(np.zeros((8, 27)))
    with pytest.raises(ValueError, match=r"\(layer, transition\)"):
        joint_change_points(flux())


def test_the_names_are_public() -> None:
    for name in ("change_points", "joint_change_points", "shape_of", "ChangePoint", "ChangePoints", "Dip", "Shape"):
        assert name in dit_analyzer.__all__ and hasattr(dit_analyzer, name)
