"""Depth, kinds and roughness on simulated runs whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from dit_analyzer import depth_trend, kind_contrast, roughness
from dit_analyzer.measures.pairing import ComparisonError
from zoo.curves import bend, run, shifted


def rising(sigma: np.ndarray, depth: np.ndarray) -> np.ndarray:
    return 1.5 * depth + 0 * sigma


def flat(sigma: np.ndarray, depth: np.ndarray) -> np.ndarray:
    return 0 * sigma * depth


def zigzag(size: float):  # noqa: ANN201
    """Cells of 28 steps alternately above and below a straight line."""
    return lambda sigma, depth: size * np.cos(np.pi * 28 * (1 - sigma) - np.pi / 2) + 0 * depth


def test_the_slope_over_depth_is_recovered_and_called_rising() -> None:
    found = depth_trend(run(rising, noise=0.05, layers=6)).sel(kind="k")
    assert (found["low"] < 1.5).all() and (found["high"] > 1.5).all()
    assert found["trend"].values.tolist() == ["rises", "rises"] and (found["explained"] > 0.99).all()


def test_a_size_that_grows_with_depth_turns_the_relative_trend_round() -> None:
    view = run(rising, layers=6)
    size = xr.DataArray(np.exp(3 * (np.arange(6) + 0.5) / 6), dims="layer")
    found = depth_trend(view.assign(rel_l1=view["l1"] / size)).sel(kind="k")
    assert found["trend"].values.tolist() == ["rises", "falls"]
    np.testing.assert_allclose(found["slope"], [1.5, -1.5])


def test_equal_layers_have_no_trend() -> None:
    found = depth_trend(run(flat, noise=0.1, layers=6)).sel(kind="k", quantity="l1")
    assert found["trend"] == "none" and found["low"] < 0 < found["high"]


def test_depth_is_counted_in_the_order_layers_run() -> None:
    view = run(rising, layers=6)
    xr.testing.assert_allclose(depth_trend(view), depth_trend(view.isel(layer=[0, 2, 4, 1, 3, 5])))


def test_one_layer_and_one_prompt_have_no_trend() -> None:
    one = depth_trend(run(layers=1)).sel(kind="k", quantity="l1")
    assert np.isnan(one["slope"]) and one["trend"] == "none"
    alone = depth_trend(run(rising, prompts=1)).sel(kind="k", quantity="l1")
    assert alone["slope"].item() == pytest.approx(1.5) and np.isnan(alone["low"]) and alone["trend"] == "none"


def test_layers_without_change_are_left_out_of_the_trend() -> None:
    view = run(rising, layers=6)
    view["l1"][:, :, 5] = 0
    assert depth_trend(view)["slope"].sel(kind="k", quantity="l1").item() == pytest.approx(1.5)
    view["l1"][:] = np.nan
    assert np.isnan(depth_trend(view)["slope"].sel(kind="k", quantity="l1"))


def test_the_contrast_of_kinds_is_their_log_ratio() -> None:
    view = run(kinds="kva", noise=0.05)
    view["l1"].loc[{"kind": "a"}] *= 4
    found = kind_contrast(view).sel(quantity="l1")
    assert found.pair.values.tolist() == ["a/v", "a/k", "v/k"]
    assert (found["low"] < np.log([4, 4, 1])).all() and (found["high"] > np.log([4, 4, 1])).all()
    assert (found["high"] - found["low"] < 0.1).all(), "the level that a prompt gives all kinds cancels"
    assert abs(kind_contrast(view)["log_ratio"].sel(quantity="rel_l1")).max() < 0.05


def test_the_contrast_leaves_out_what_either_kind_lacks() -> None:
    view = run(kinds="ka")
    view["l1"][2, 0, 1, 1] = 0
    view["l1"][:, 1, 0] = np.nan
    found = kind_contrast(view).sel(quantity="l1", pair="a/k")
    assert found["cells"] == 5 * 11 - 1 - 11


def test_one_kind_has_no_contrast_and_one_prompt_no_interval() -> None:
    assert kind_contrast(run(kinds="k")).sizes["pair"] == 0
    found = kind_contrast(run(kinds="kv", prompts=1)).sel(pair="v/k", quantity="l1")
    assert found["log_ratio"] == pytest.approx(0) and np.isnan(found["low"])


def test_roughness_of_a_zigzag_is_twice_its_size_and_of_a_line_none() -> None:
    sigmas = shifted(28)
    line = run(lambda sigma, depth: sigma + depth, sigmas, noise=0.02, draw=1)
    found = roughness(line, run(zigzag(0.2), sigmas, noise=0.02, draw=2)).sel(kind="k")
    assert found["own"][0] < 0.02 and found["own"][1].item() == pytest.approx(0.4, rel=0.05)
    assert found["matched_low"][1] < 0.4 < found["matched_high"][1]
    assert found["points"] == 27


def test_a_zigzag_twice_as_high_is_twice_as_rough() -> None:
    one, other = (run(zigzag(size), shifted(28), noise=0.02, draw=int(10 * size)) for size in (0.1, 0.2))
    found = roughness(one, other).sel(kind="k")
    assert found["ratio"].item() == pytest.approx(2, rel=0.05)
    assert 1.8 < found["ratio_low"] < 2 < found["ratio_high"] < 2.2


def test_roughness_of_prompts_alone_is_taken_off() -> None:
    found = roughness(run(flat, noise=0.3, draw=1), run(flat, noise=0.3, draw=2)).sel(kind="k")
    assert (found["matched"] < 0.05).all() and (found["matched_low"] == 0).all()


def test_fewer_steps_of_one_smooth_truth_are_as_rough_at_matched_noise() -> None:
    """On its own points the run of fewer steps is the rougher: its neighbours are further apart."""
    long, short = (run(bend, shifted(steps), noise=0.01, draw=steps) for steps in (56, 14))
    found = roughness(long, short).sel(kind="k")
    assert found["own"][1] > 5 * found["own"][0]
    assert found["ratio"].item() == pytest.approx(1, abs=0.1)
    assert found["ratio_low"] < found["ratio"] < found["ratio_high"]


def test_too_few_points_have_no_roughness_and_other_prompts_are_refused() -> None:
    found = roughness(run(sigmas=shifted(3)), run(sigmas=shifted(3)))
    assert np.isnan(found["own"]).all() and np.isnan(found["ratio"]).all()
    with pytest.raises(ComparisonError, match="no common prompts"):
        roughness(run(), run(first=50))
