"""What leaving steps out costs, against the definition written out by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dit_analyzer.plans.costs import costs_of, error_of
from dit_analyzer.plans.course import OutOfReachError, course_of
from dit_analyzer.plans.errors import errors_of
from dit_formats.errors import IncompleteError, TraceError
from dit_formats.reader import Trace, open_trace
from dit_formats.schema import STACK, Layer, Shard
from dit_formats.writer import write_shard


def variance_preserving(prediction_type: str) -> dict[str, Any]:
    return {"class": "DDIMScheduler", "config": {"prediction_type": prediction_type}}


def joint(one: Shard) -> Shard:
    """Layer 0 returns text as well as latents."""
    text, rng = one.streams["text"].arrays, np.random.default_rng(9)
    text["recorded"][:, 2, 0] = 1
    text["samples"][:, :, 2, 0] = rng.normal(size=text["samples"][:, :, 2, 0].shape)
    return one


def stand_in(x: np.ndarray, levels: np.ndarray, before: int, last: int, step: int, linear: bool) -> np.ndarray:
    """What takes the place of x[..., step]."""
    if not linear or before == last:
        return x[..., last]
    slope = (x[..., last] - x[..., before]) / (levels[last] - levels[before])
    return x[..., last] + slope * (levels[step] - levels[last])


def of_outputs(tracks: list[np.ndarray], levels: np.ndarray, at: tuple[int, int, int], linear: bool) -> float:
    """The docstring's error of one layer's output, a share of the mean over steps; tracks are its branches."""
    before, last, step = at
    found = [np.abs(stand_in(x, levels, before, last, step, linear) - x[..., step]).mean() for x in tracks]
    sizes = [np.abs(x[..., step]).mean() for x in tracks]
    return float(np.mean(np.divide(found, sizes))) / len(levels)


def triples(steps: int, linear: bool) -> list[tuple[int, int, int]]:
    every = [(b, a, t) for a in range(steps) for b in range(a + 1) for t in range(a + 1, steps)]
    return [one for one in every if linear and (one[0] < one[1] or one[0] == one[1])] or every


def test_the_error_of_reused_outputs_is_their_relative_l1_at_that_lag(traced: Callable[..., Trace]) -> None:
    with traced(change=joint) as trace:
        ((_, found),) = errors_of(trace, course_of(trace), "outputs", "reuse").of_prompts([0])
        latent, text = trace.samples("latent", 0), trace.samples("text", 0)
    assert found.shape == (2, 1, 5, 5)
    kinds = 2  # of `a`
    both = [np.concatenate([latent[b, kinds, 0], text[b, kinds, 0]]).astype(float) for b in range(2)]
    alone = [latent[b, kinds, 1].astype(float) for b in range(2)]
    for row, tracks in enumerate((both, alone)):
        for _, last, step in triples(5, False):
            truth = of_outputs(tracks, np.zeros(5), (last, last, step), False)
            assert found[row, 0, last, step] == pytest.approx(truth, rel=1e-6)


def test_the_error_of_predicted_outputs_is_that_of_the_line_through_two(traced: Callable[..., Trace]) -> None:
    with traced() as trace:
        course = course_of(trace)
        ((_, found),) = errors_of(trace, course, "outputs", "linear").of_prompts([0])
        tracks = [trace.samples("latent", 0)[b, 2, 1].astype(float) for b in range(2)]
    assert found.shape == (2, 5, 5, 5)
    for at in triples(5, True):
        assert found[1][at] == pytest.approx(of_outputs(tracks, course.levels, at, True), rel=1e-6)


@pytest.mark.parametrize("predictor", ["reuse", "linear"])
def test_the_error_of_predictions_is_how_far_they_move_the_latents(
    traced: Callable[..., Trace], predictor: str
) -> None:
    linear = predictor == "linear"
    with traced() as trace:
        course = course_of(trace)
        ((_, found),) = errors_of(trace, course, "prediction", predictor).of_prompts([0])
        stack, sites = trace.samples(STACK, 0)[:, 0].astype(float), trace.sites()
    (cond, uncond), end = stack[:, sites.index("prediction")], stack[0, sites.index("model_input")][:, -1]
    guided = cond + 2 * (cond - uncond)
    for before, last, step in triples(5, linear):
        wrong = stand_in(guided, course.levels, before, last, step, linear) - guided[:, step]
        truth = course.weights[step] * np.abs(wrong).mean() / np.abs(end).mean()
        assert found[0, before if linear else 0, last, step] == pytest.approx(truth, rel=1e-6)


def test_branches_of_an_unknown_guidance_count_apart(traced: Callable[..., Trace]) -> None:
    with traced(call={}) as trace:
        course = course_of(trace)
        ((_, found),) = errors_of(trace, course, "prediction", "reuse").of_prompts([0])
        stack, sites = trace.samples(STACK, 0)[:, 0].astype(float), trace.sites()
    halves, end = stack[:, sites.index("prediction")], stack[0, sites.index("model_input")][:, -1]
    truth = course.weights[3] * np.abs(halves[..., 3] - halves[..., 1]).mean() / np.abs(end).mean()
    assert found[0, 0, 1, 3] == pytest.approx(truth, rel=1e-6)


def test_the_error_of_a_plan_is_the_sum_over_what_it_leaves_out(traced: Callable[..., Trace]) -> None:
    """Rows count by their layers; the second computed step before is the first step where there is none."""
    with traced() as trace:
        costs = costs_of(trace, "layer", "linear", "outputs")
    mask = np.array([[True, False, True, False, False], [True, True, True, True, False]])
    one, two = costs.planning
    truth = (one[0, 0, 1] + one[0, 2, 3] + one[0, 2, 4] + two[2, 3, 4]) / 2
    assert error_of(costs.planning, mask, costs.weights) == pytest.approx(truth)
    assert error_of(costs.planning, np.ones((2, 5), bool), costs.weights) == 0


@pytest.mark.parametrize("predictor", ["reuse", "linear"])
def test_errors_of_whole_steps_cancel_position_by_position(traced: Callable[..., Trace], predictor: str) -> None:
    linear, mask = predictor == "linear", np.array([[True, False, True, False, False]])
    with traced(2) as trace:
        costs = costs_of(trace, predictor=predictor)
        course, stack, sites = costs.course, trace.samples(STACK, 0)[:, 0].astype(float), trace.sites()
    (cond, uncond), end = stack[:, sites.index("prediction")], stack[0, sites.index("model_input")][:, -1]
    guided, moved = cond + 2 * (cond - uncond), 0.0
    for before, last, step in ((0, 0, 1), (0, 2, 3), (0, 2, 4)):
        wrong = stand_in(guided, course.levels, before, last, step, linear) - guided[:, step]
        moved = moved + course.weights[step] * wrong
    assert costs.planning_error(mask) == pytest.approx(np.abs(moved).mean() / np.abs(end).mean(), rel=1e-5)
    assert costs.planning_error(mask) <= error_of(costs.planning, mask, [2]) * (1 + 1e-6)


# Courses ---------------------------------------------------------------------------


def test_an_error_in_a_flow_moves_the_latents_by_the_step_in_sigma(traced: Callable[..., Trace]) -> None:
    with traced() as trace:
        course = course_of(trace)
        assert course.levels.tolist() == trace.sigmas.tolist()
        np.testing.assert_allclose(course.weights, -np.diff(np.append(trace.sigmas, 0)))
        np.testing.assert_allclose(course.timesteps, trace.timesteps)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_an_error_in_a_ddim_step_moves_the_latents_as_differentiation_says(
    traced: Callable[..., Trace], prediction_type: str
) -> None:
    """With x = cos x0 + sin noise at a fixed x, an error in what the network predicts changes x0 and noise by it."""
    with traced(scheduler=variance_preserving(prediction_type)) as trace:
        course = course_of(trace)
    a = np.arctan(np.linspace(1, 0.1, 5))
    np.testing.assert_allclose(course.levels, a)
    noise, x0 = {"epsilon": (1 + 0 * a, -np.tan(a)), "v_prediction": (np.cos(a), -np.sin(a)),
                 "sample": (-1 / np.tan(a), 1 + 0 * a)}[prediction_type]  # fmt: skip
    b = np.append(a[1:], 0)
    np.testing.assert_allclose(course.weights, np.abs(np.cos(b) * x0 + np.sin(b) * noise), atol=1e-12)


@pytest.mark.parametrize("sigmas", [[np.nan] * 5, [0.5] * 5, [0.5, 0.4, 0.4, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4, 0.5]])
def test_where_the_noise_level_says_nothing_the_step_itself_counts(
    traced: Callable[..., Trace], sigmas: list[float]
) -> None:
    with traced(change=lambda one: replace(one, sigmas=np.array(sigmas))) as trace:
        course = course_of(trace)
        assert course.levels.tolist() == [0, 1, 2, 3, 4] and course.weights is None
        assert np.isfinite(costs_of(trace).planning).all()


def test_a_first_step_of_pure_noise_has_a_place(traced: Callable[..., Trace]) -> None:
    sigmas = np.array([np.inf, 2, 1, 0.5, 0.1])
    with traced(change=lambda one: replace(one, sigmas=sigmas), scheduler=variance_preserving("v_prediction")) as trace:
        course = course_of(trace)
        assert course.levels[0] == pytest.approx(np.pi / 2) and course.weights is not None
        assert course.sigmas.tolist() == sigmas.tolist() and np.isfinite(costs_of(trace).planning).all()


@pytest.mark.parametrize("steps", range(3, 11))
def test_another_number_of_steps_keeps_to_the_levels_over_time(traced: Callable[..., Trace], steps: int) -> None:
    with traced() as trace:
        course, ends = course_of(trace, steps), np.append(trace.sigmas, 0.0)
    assert course.num_steps == steps and (np.diff(course.levels) < 0).all() and course.levels[-1] > 0
    np.testing.assert_allclose(course.levels, np.interp(np.arange(steps) / steps * 5, np.arange(6), ends))
    assert course.weights is not None and course.weights.sum() == pytest.approx(course.levels[0])


@pytest.mark.parametrize("steps", [2, 11, 50])
def test_more_or_fewer_steps_than_the_trace_supports_are_refused(traced: Callable[..., Trace], steps: int) -> None:
    with (
        traced() as trace,
        pytest.raises(OutOfReachError, match=f"supports 3 to 10; trace the model with --steps {steps}"),
    ):
        course_of(trace, steps)


@pytest.mark.parametrize("predictor", ["reuse", "linear"])
def test_a_smooth_signal_costs_at_other_steps_what_it_would_if_they_were_recorded(
    traced: Callable[..., Trace], predictor: str
) -> None:
    """On straight lines between recorded steps a linear prediction would cost nothing there."""

    def smooth(one: Shard) -> Shard:
        arrays, time = one.streams[STACK].arrays, np.arange(len(one.timesteps)) / len(one.timesteps)
        phase = np.random.default_rng(1).uniform(0, 6, arrays["samples"].shape[:-1])[..., None]
        arrays["samples"] = np.cos(3 * time + phase).astype("f4")
        return replace(one, sigmas=1 - time)

    with traced(change=smooth, num_steps=10) as recorded, traced(change=smooth, num_steps=6) as fewer:
        truth, found = (costs_of(trace, predictor=predictor, steps=10) for trace in (recorded, fewer))
    np.testing.assert_allclose(found.course.levels, truth.course.levels, atol=1e-12)
    for mask in (np.arange(10) % every == 0 for every in (2, 3, 5)):
        one, other = (error_of(costs.planning, mask[None], [1]) for costs in (found, truth))
        assert one == pytest.approx(other, rel=0.25)


# What traces may lack ----------------------------------------------------------------


def test_a_trace_without_stack_is_planned_by_outputs(traced: Callable[..., Trace]) -> None:
    with traced(stack=False) as trace:
        assert costs_of(trace).signal == "outputs"
        with pytest.raises(IncompleteError, match="no samples of the prediction; trace without --no-stack"):
            costs_of(trace, signal="prediction")


def test_a_trace_of_statistics_alone_is_refused(tmp_path: Path, shard: Callable[..., Shard]) -> None:
    write_shard(tmp_path, shard(positions=0, scheduler={}))
    with open_trace(tmp_path) as trace, pytest.raises(IncompleteError, match="without --stats-only"):
        costs_of(trace)


def test_a_run_of_one_step_is_refused(tmp_path: Path, shard: Callable[..., Shard]) -> None:
    write_shard(tmp_path, shard(steps=1, scheduler={}))
    with (
        open_trace(tmp_path) as trace,
        pytest.raises(OutOfReachError, match="one step, and nothing before it to reuse"),
    ):
        costs_of(trace)


def test_positions_that_overflow_in_one_step_do_not_count(traced: Callable[..., Trace]) -> None:
    def spoilt(one: Shard) -> Shard:
        one.streams["latent"].arrays["samples"][:, :, 2, 1, 3:, 2] = np.nan
        return one

    with traced(change=spoilt) as trace:
        ((_, found),) = errors_of(trace, course_of(trace), "outputs", "reuse").of_prompts([0])
        tracks = [trace.samples("latent", 0)[b, 2, 1, :3].astype(float) for b in range(2)]
    assert found[1, 0, 0, 2] == pytest.approx(of_outputs(tracks, np.zeros(5), (0, 0, 2), False), rel=1e-6)


@pytest.mark.parametrize("stream", ["latent", STACK])
def test_outputs_that_are_nowhere_finite_are_refused_not_free(traced: Callable[..., Trace], stream: str) -> None:
    def spoilt(one: Shard) -> Shard:
        one.streams[stream].arrays["samples"][..., 2] = np.nan
        return one

    with traced(change=spoilt) as trace, pytest.raises(TraceError, match="finite in all steps.*dit-analyze check"):
        costs_of(trace, signal="prediction" if stream == STACK else "outputs")


def test_latents_that_are_not_finite_at_the_end_are_refused(traced: Callable[..., Trace]) -> None:
    def spoilt(one: Shard) -> Shard:
        one.streams[STACK].arrays["samples"][:, :, :, 0, :, -1] = np.nan
        return one

    with traced(change=spoilt) as trace, pytest.raises(TraceError, match="dit-analyze check"):
        costs_of(trace)


def test_a_layer_that_never_says_anything_costs_nothing(traced: Callable[..., Trace]) -> None:
    def silent(one: Shard) -> Shard:
        one.streams["latent"].arrays["samples"][:, :, 2, 0] = 0
        return one

    with traced(change=silent) as trace:
        ((_, found),) = errors_of(trace, course_of(trace), "outputs", "linear").of_prompts([0])
    assert (found[0] == 0).all() and (found[1, 0, 0, 1:] > 0).all()


# Networks that take turns --------------------------------------------------------------


def in_turns(one: Shard) -> Shard:
    """Layer 0 belongs to a network of the first two steps, layer 1 to another of the last three."""
    arrays = one.streams["latent"].arrays
    for layer, steps in ((0, slice(2, 5)), (1, slice(0, 2))):
        arrays["recorded"][:, :, layer, steps] = 0
        arrays["samples"][:, :, :, layer, :, steps] = np.nan
    text = one.streams["text"].arrays
    text["recorded"][:, :, 1, :2] = 0
    text["samples"][:, :, :, 1, :, :2] = np.nan
    return replace(one, layers=(Layer("transformer.attn", "self", 3), Layer("transformer_2.attn", "self", 3)))


@pytest.mark.parametrize("signal", ["prediction", "outputs"])
@pytest.mark.parametrize("predictor", ["reuse", "linear"])
def test_a_network_that_begins_is_computed_for_nothing_stands_in(
    traced: Callable[..., Trace], signal: str, predictor: str
) -> None:
    with traced(change=in_turns) as trace:
        costs = costs_of(trace, predictor=predictor, signal=signal)
        reused = costs_of(trace, predictor="reuse", signal=signal).planning[0, 0]
    found = costs.planning[0]
    later = np.triu(np.ones((5, 5), bool), 1)
    across = later & (np.arange(5) >= 2) & (np.arange(5)[:, None] < 2)
    assert np.isinf(found[:, across]).all() and np.isfinite(found[:, later & ~across]).all()
    if predictor == "linear":
        np.testing.assert_allclose(found[:2, 2, 3:], np.array([reused[2, 3:]] * 2), rtol=1e-6)


def test_layers_of_networks_that_take_turns_are_planned_only_whole(traced: Callable[..., Trace]) -> None:
    with traced(change=in_turns) as trace, pytest.raises(OutOfReachError, match="plan whole steps"):
        costs_of(trace, "layer")


def test_networks_take_turns_at_the_same_level_with_other_step_counts(traced: Callable[..., Trace]) -> None:
    with traced(change=in_turns) as trace:
        for steps, begins in ((3, 1), (10, 3)):
            found = costs_of(trace, signal="outputs", steps=steps).planning[0, 0]
            place = np.arange(steps)
            later = place > place[:, None]
            across = later & (place >= begins) & (place[:, None] < begins)
            assert np.isinf(found[across]).all() and np.isfinite(found[later & ~across]).all()
