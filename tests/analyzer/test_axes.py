"""Curves of different runs on one axis."""

from __future__ import annotations

import numpy as np
import pytest
from dit_analyzer.measures.axes import (
    at_depths,
    common_points,
    log_curves,
    most_apart,
    noise_levels,
    places,
    relative_depth,
    resampled,
)
from dit_analyzer.measures.pairing import ComparisonError, common_kinds, common_prompts
from zoo.curves import run, shifted


def test_step_10_of_28_and_step_20_of_56_stand_at_one_place() -> None:
    short, long = (run(sigmas=shifted(steps), prompts=1) for steps in (28, 56))
    begins = [places(view, "step") - 0.5 / view.attrs["num_steps"] for view in (short, long)]
    assert begins[0][10] == pytest.approx(begins[1][20])
    np.testing.assert_allclose(short.sigma[10], long.sigma[20])


def test_a_transition_stands_midway_between_its_noise_levels() -> None:
    view = run(sigmas=np.array([1.0, 0.6, 0.2, 0.0]), prompts=1)
    np.testing.assert_allclose(places(view, "noise"), [0.8, 0.4])


def test_speed_is_what_the_simulation_put_in() -> None:
    view = run(lambda sigma, depth: 2 * sigma + depth, prompts=1, layers=2)
    curve = log_curves(view, "noise").isel(prompt=0, kind=0)
    np.testing.assert_allclose(np.diff(curve[0]) / np.diff(places(view, "noise")), 2)


def test_noise_of_other_schedulers_is_the_flow_of_the_same_signal_to_noise() -> None:
    np.testing.assert_allclose(noise_levels(np.array([np.inf, 4.0, 1.0, 0.0])), [1, 0.8, 0.5, 0])
    np.testing.assert_allclose(noise_levels(np.array([1.0, 0.5, 0.0])), [1, 0.5, 0])


def test_a_cell_that_does_not_change_in_one_prompt_has_no_logarithm_in_any() -> None:
    view = run(prompts=3)
    view["l1"][1, 0, 2, 4] = 0
    view["l1"][2, 0, 3, 5] = np.nan
    lost = log_curves(view, "step").isnull()
    assert lost.sum() == 6 and lost[:, 0, 2, 4].all() and lost[:, 0, 3, 5].all()


def test_layers_come_in_the_order_they_run() -> None:
    view = run(layers=4).isel(layer=[0, 2, 1, 3])
    assert log_curves(view, "step").layer.values.tolist() == [0, 1, 2, 3]


def test_resampling_bridges_gaps_and_invents_nothing_beyond_the_ends() -> None:
    curves = np.array([[[0.0, np.nan, 2.0, 3.0], [np.nan, 1.0, np.nan, 3.0]]])
    found = resampled(curves, np.arange(4.0), np.array([0.5, 1.0, 2.5]))
    np.testing.assert_allclose(found, [[[0.5, 1.0, 2.5], [np.nan, 1.0, 2.5]]])


def test_resampling_a_falling_axis_is_the_same() -> None:
    curves, points = np.random.default_rng(0).normal(size=(2, 3, 5)), np.array([0.3, 2.2])
    found = resampled(curves[..., ::-1], np.arange(5.0)[::-1], points)
    np.testing.assert_allclose(found, resampled(curves, np.arange(5.0), points))


def test_a_layer_with_a_single_cell_has_no_curve() -> None:
    assert np.isnan(resampled(np.array([[[1.0, np.nan]]]), np.array([0.0, 1.0]), np.array([0.0]))).all()


@pytest.mark.parametrize("layers", [1, 2, 19, 57])
def test_layers_are_aligned_by_relative_depth(layers: int) -> None:
    curves = relative_depth(layers)[None, :, None] * np.ones((2, 1, 3))
    found = at_depths(curves, 7)[0, :, 0]
    np.testing.assert_allclose(found, np.clip(relative_depth(7), 0.5 / layers, 1 - 0.5 / layers))


def test_a_layer_without_values_spoils_only_the_depths_that_need_it() -> None:
    curves = np.ones((1, 3, 2))
    curves[:, 2] = np.nan
    assert np.isfinite(at_depths(curves, 3)).all((0, 2)).tolist() == [True, True, False]
    assert np.isfinite(at_depths(curves, 1)).all()


def test_the_same_grid_is_nowhere_apart_and_a_shifted_one_is() -> None:
    same = most_apart((run(), run(sigmas=shifted(24))))
    assert same == pytest.approx(0, abs=1e-12)
    steps = np.arange(28) / 28
    sigma = 1 - steps
    apart = most_apart((run(sigmas=shifted(28)), run(sigmas=shifted(28, 3))))
    assert apart == pytest.approx((3 * sigma / (1 + 2 * sigma) - sigma).max())


def test_a_run_without_sigmas_has_the_step_axis_alone() -> None:
    view = run().drop_vars(["sigma", "sigma_after"])
    assert np.isfinite(places(view, "step")).all() and np.isnan(most_apart((view, run())))
    with pytest.raises(ComparisonError, match="take the step axis"):
        places(view, "noise")


def test_an_unknown_axis_is_told() -> None:
    with pytest.raises(ValueError, match="give 'step' or 'noise'"):
        places(run(), "sigma")


def test_distances_that_are_no_view_yet_are_told() -> None:
    with pytest.raises(ValueError, match="what `paper_view` makes of it"):
        log_curves(run().expand_dims("branch"), "step")


def test_curves_of_one_transition_or_without_a_common_stretch_are_refused() -> None:
    with pytest.raises(ComparisonError, match="--steps 3 or more"):
        common_points(np.array([0.5]), np.linspace(0, 1, 5))
    with pytest.raises(ComparisonError, match="no stretch in common"):
        common_points(np.array([0.0, 0.2]), np.array([0.5, 1.0]))


def test_prompts_are_matched_by_text_and_seed_in_the_order_of_the_first() -> None:
    one, other = common_prompts(run(prompts=4).isel(prompt=[3, 1, 0]), run(prompts=5, first=1))
    assert one.text.values.tolist() == other.text.values.tolist() == ["prompt 3", "prompt 1"]


@pytest.mark.parametrize(("changes", "reason"), [
    ({"first": 10}, "none of the 10 texts"),
    ({"seed": 7}, r"seeds do not \(42 against 7\)"),
])  # fmt: skip
def test_without_a_common_prompt_the_reason_is_told(changes: dict[str, int], reason: str) -> None:
    with pytest.raises(ComparisonError, match=reason):
        common_prompts(run(), run(**changes))


def test_prompts_without_texts_and_other_kinds_are_refused() -> None:
    with pytest.raises(ComparisonError, match="without their text"):
        common_prompts(run().drop_vars("text"), run())
    with pytest.raises(ComparisonError, match="one has k, the other a, v"):
        common_kinds(run(kinds="k"), run(kinds="av"))
