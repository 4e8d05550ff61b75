"""Stability on simulated runs whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from dit_analyzer import concordance, stability
from dit_analyzer.measures.axes import common_points, places
from dit_analyzer.measures.concordance import mean_curves
from dit_analyzer.measures.pairing import ComparisonError
from dit_analyzer.measures.stability import shapes
from dit_analyzer.measures.unbiased import mean_square, mean_square_without_each, products, sign_flip
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from zoo.curves import bend, run, shifted

AXES = ["step", "noise"]


def wave(size: float, sign: float = 1.0):  # noqa: ANN201
    """The bend plus a wave of this root mean square over noise levels."""
    return lambda sigma, depth: sign * bend(sigma, depth) + size * np.sqrt(2) * np.sin(9 * sigma + depth)


def truth(one: object, other: object, axis: str = "noise") -> float:
    """D of two simulated curves without noise, over the common points, straight from its definition."""
    views = [run(curve, prompts=1) for curve in (one, other)]
    pair = shapes(*views, "k", axis, common_points(*(places(view, axis) for view in views)))
    return float(np.sqrt(((pair.one - pair.other) ** 2).mean()))


@pytest.mark.parametrize("axis", AXES)
def test_a_run_is_equivalent_to_itself(axis: str) -> None:
    found = stability(run(noise=0.1), run(noise=0.1), axis).sel(kind="k")
    assert (found["s"], found["d"], found["d_high"], found["level"], found["p_value"]) == (1, 0, 0, 1, 1)
    assert found["verdict"] == "equivalent" and found["prompts"] == 10 and found["max_dsigma"] == 0


def test_a_function_of_sigma_is_stable_on_the_noise_axis_and_not_on_the_step_axis() -> None:
    """Shift 3 against shift 1: the same truth, seen through two sigma grids."""
    curve = lambda sigma, depth: np.cos(8 * sigma + depth)  # noqa: E731
    one, other = (run(curve, shifted(28, shift), noise=0.03, draw=int(shift)) for shift in (1.0, 3.0))
    step, noise = (stability(one, other, axis).sel(kind="k") for axis in AXES)
    assert noise["verdict"] == "equivalent" and noise["s"] > 0.97
    assert step["verdict"] == "different" and step["s"] < 0.2
    assert noise["level"] == pytest.approx(1, abs=0.1)
    assert step["max_dsigma"] == noise["max_dsigma"] == pytest.approx(0.268, abs=0.002)


@pytest.mark.parametrize("axis", AXES)
def test_other_step_counts_of_one_truth_are_equivalent(axis: str) -> None:
    one, other = (run(sigmas=shifted(steps), noise=0.03, draw=steps) for steps in (28, 56))
    found = stability(one, other, axis).sel(kind="k")
    assert found["verdict"] == "equivalent" and found["s"] > 0.97
    assert found["level"] == pytest.approx(0.5 if axis == "step" else 1, rel=0.1), "half the step, half the change"


def test_flat_curves_are_alike_whatever_their_noise() -> None:
    flat = lambda sigma, depth: 0 * sigma * depth  # noqa: E731
    found = stability(run(flat, noise=0.05, draw=1), run(flat, noise=0.05, draw=2), "noise").sel(kind="k")
    assert found["s"] > 0.9 and found["verdict"] == "equivalent"


def test_opposite_shapes_have_s_near_minus_one() -> None:
    one = run(lambda sigma, depth: np.cos(4 * sigma + depth))
    other = run(lambda sigma, depth: -np.cos(4 * sigma + depth))
    found = stability(one, other, "noise").sel(kind="k")
    assert found["s"] < -0.9 and found["verdict"] == "different"


@pytest.mark.parametrize(("size", "verdict"), [(0.0, "equivalent"), (0.3, "different")])
def test_d_recovers_its_truth(size: float, verdict: str) -> None:
    one, other = run(noise=0.1, draw=1), run(wave(size), noise=0.1, draw=2)
    found = stability(one, other, "noise").sel(kind="k")
    true = truth(bend, wave(size))
    assert found["d_low"] <= true <= found["d_high"]
    assert abs(found["d"] - true) < 0.06 and found["verdict"] == verdict
    assert found["s_low"] <= found["s"] <= found["s_high"]


def test_few_noisy_prompts_leave_it_undecided() -> None:
    found = stability(run(noise=0.8, prompts=4, draw=1), run(noise=0.8, prompts=4, draw=2), "noise")
    assert found["verdict"].item() == "undecided"


@pytest.mark.parametrize("prompts", [1, 2])
def test_one_or_two_prompts_have_no_interval_and_no_verdict(prompts: int) -> None:
    found = stability(run(prompts=prompts), run(wave(0.3), prompts=prompts), "noise").sel(kind="k")
    assert found["d"].item() == pytest.approx(truth(bend, wave(0.3)))
    assert np.isnan([found[name].item() for name in ("s_low", "s_high", "d_low", "d_high")]).all()
    assert found["verdict"] == "undecided"


def test_unequal_layer_counts_are_compared_at_relative_depth() -> None:
    shallow, deep = run(layers=8), run(layers=24)
    found = stability(shallow, deep, "noise").sel(kind="k")
    assert found["s"] > 0.98 and found["verdict"] == "equivalent"


def test_prompts_are_reduced_to_the_common_ones() -> None:
    found = stability(run(prompts=8), run(prompts=8, first=3))
    assert found["prompts"] == 5


def test_cells_without_change_are_left_out_and_counted() -> None:
    one, other = run(kinds="kv"), run(kinds="kv")
    one["l1"][0, 0, 1, 3] = 0
    other["l1"][:, 1] = 0
    found = stability(one, other)
    assert found["cells_left_out"].values.tolist() == [1, 55]
    assert found["s"].sel(kind="k") > 0.95
    assert np.isnan(found["s"].sel(kind="v")) and found["verdict"].sel(kind="v") == "undecided"


def test_a_view_of_nan_alone_has_no_s_and_no_verdict() -> None:
    one = run()
    one["l1"][:] = np.nan
    found = stability(one, run())
    assert np.isnan(found["s"]).all() and found["verdict"].item() == "undecided"
    assert found["cells_left_out"].item() == 0, "what was not recorded is not left out"


def test_two_steps_other_kinds_and_other_prompts_are_refused() -> None:
    with pytest.raises(ComparisonError, match="--steps 3"):
        stability(run(sigmas=shifted(2)), run())
    with pytest.raises(ComparisonError, match="no common kinds"):
        stability(run(kinds="v"), run())
    with pytest.raises(ComparisonError, match="no common prompts"):
        stability(run(first=50), run())


def test_stability_ignores_level_and_order_of_prompts() -> None:
    one, other = run(noise=0.1, draw=1), run(wave(0.2), noise=0.1, draw=2)
    louder = other.assign(l1=3 * other["l1"]).isel(prompt=np.random.default_rng(0).permutation(10))
    first, second = stability(one, other), stability(one, louder)
    xr.testing.assert_allclose(first.drop_vars("level"), second.drop_vars("level"))
    np.testing.assert_allclose(second["level"], 3 * first["level"])


VALUES = arrays(float, (5, 4), elements=st.floats(-10, 10))


@given(VALUES)
def test_the_mean_square_without_noise_is_its_definition(values: np.ndarray) -> None:
    def defined(x: np.ndarray) -> float:
        return float((x.mean(0) ** 2 - x.var(0, ddof=1) / len(x)).mean())

    product = products(values)
    assert mean_square(product) == pytest.approx(defined(values), abs=1e-9)
    without = [defined(np.delete(values, place, 0)) for place in range(5)]
    np.testing.assert_allclose(mean_square_without_each(product), without, atol=1e-9)


def test_the_permutation_test_is_exact_for_few_prompts_and_keeps_its_size() -> None:
    assert sign_flip(products(np.ones((6, 3)))) == 1 / 32
    assert np.isnan(sign_flip(products(np.ones((1, 3)))))
    rng = np.random.default_rng(0)
    p = np.array([sign_flip(products(rng.normal(size=(8, 20)))) for _ in range(400)])
    assert 0.02 <= (p < 0.05).mean() <= 0.085
    assert 0.45 <= p.mean() <= 0.55


def test_the_random_permutation_test_gives_the_same_bytes_again() -> None:
    product = products(np.random.default_rng(3).normal(0.2, 1, (30, 20)))
    assert 0 < sign_flip(product) == sign_flip(product) < 1


def test_the_matrix_is_symmetric_with_ones_and_tells_models_apart() -> None:
    other = lambda sigma, depth: np.sin(9 * sigma + 3 * depth)  # noqa: E731
    views = [run(noise=0.05, draw=1), run(noise=0.05, layers=8, draw=2), run(other, layers=6, noise=0.05, draw=3)]
    found = concordance(views, "noise").sel(kind="k").values
    np.testing.assert_allclose(found, found.T)
    np.testing.assert_allclose(np.diag(found), 1)
    assert found[0, 1] > 0.9 > 0.5 > max(found[0, 2], found[1, 2])


def test_the_matrix_needs_no_common_prompts_and_no_common_kinds() -> None:
    found = concordance([run(noise=0.1, draw=1), run(noise=0.1, first=50, draw=2), run(kinds="v")])
    assert found.sel(kind="k")[0, 1] > 0.95
    assert np.isnan(found.sel(kind="k")[0, 2]) and found.sel(kind="v")[2, 2] == 1


def test_mean_curves_are_shapes_without_level() -> None:
    one = run(prompts=2)
    curves = mean_curves([one, one.assign(l1=5 * one["l1"])], "noise").sel(kind="k")
    np.testing.assert_allclose(curves[0], curves[1])
    np.testing.assert_allclose(np.log(curves).mean("point"), 0, atol=1e-12)
