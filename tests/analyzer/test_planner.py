"""Plans from traces: held-out prompts, budgets, shares, errors, forced steps, times, and the verdict."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from dit_analyzer.plans.asked import Asked, change_steps, plan_of, planner_of
from dit_analyzer.plans.costs import Costs, costs_of, error_of, expected, split
from dit_analyzer.plans.course import OutOfReachError
from dit_analyzer.plans.planner import SHARES, WORTH, Planner, text_hash
from dit_analyzer.show import plans as show
from dit_formats.plan import Plan, PlanError, scheduler_hash
from dit_formats.reader import Trace
from dit_formats.schema import STACK, Shard, Timing
from scipy import stats

Traced = Callable[..., Trace]


def planned(trace: Trace, **asked: Any) -> Plan:
    one = Asked(**asked)
    return plan_of(planner_of(trace, one), one)


def masked(plan: Plan) -> str:
    return "".join(str(int(step)) for step in plan.rows[0].compute)


# Costs -----------------------------------------------------------------------------


@pytest.mark.parametrize("prompts", range(1, 40))
def test_one_prompt_in_five_is_held_out_and_one_at_least_of_two(prompts: int) -> None:
    use, held = split(prompts)
    assert sorted(use + held) == list(range(prompts))
    assert len(held) == (max(1, prompts // 5) if prompts > 1 else 0) and use


def test_costs_are_means_over_the_prompts_to_plan_with_and_single_ones_of_the_others(traced: Traced) -> None:
    with traced(11) as trace:
        costs = costs_of(trace)
        assert costs.held == (4, 9) and costs.planned_with == (0, 1, 2, 3, 5, 6, 7, 8, 10)
        alone = costs_of(trace).held_out
    with traced(1) as first:
        one = costs_of(first)
    assert one.held == () and one.held_out.shape == (0, *one.planning.shape)
    assert costs.planning.shape == (1, 1, 5, 5) and alone.shape == (2, 1, 1, 5, 5)
    assert not np.allclose(costs.planning, one.planning)


def test_the_predicted_error_is_a_geometric_mean_with_student_s_interval(traced: Traced) -> None:
    with traced(15) as trace:
        costs = costs_of(trace)
    mask = np.array([[True, False, True, False, False]])
    found = expected(costs, mask)
    logs = np.log([costs.held_error(place, mask) for place in range(len(costs.held))])
    assert found.prompts == 3 and found.error == pytest.approx(np.exp(logs.mean()))
    low, high = stats.t.interval(0.95, 2, logs.mean(), stats.sem(logs))
    assert (found.low, found.high) == pytest.approx((np.exp(low), np.exp(high)))


def test_rows_are_the_run_the_types_or_the_layers(traced: Traced) -> None:
    with traced() as trace:
        names = tuple(layer.name for layer in trace.layers)
        whole, types, layers = (costs_of(trace, per) for per in ("step", "type", "layer"))
    assert whole.rows == (("all", names),) and whole.signal == "prediction"
    assert types.rows == (("self", names[:1]), ("cross", names[1:])) and types.signal == "outputs"
    assert layers.rows == tuple((name, (name,)) for name in names) and layers.weights == [1, 1]
    np.testing.assert_allclose(types.planning, layers.planning)


def test_the_prediction_is_of_whole_steps(traced: Traced) -> None:
    with traced() as trace, pytest.raises(ValueError, match="by their outputs"):
        costs_of(trace, "layer", signal="prediction")


# Sizes of plans --------------------------------------------------------------------


@pytest.mark.parametrize("per", ["step", "type", "layer"])
@pytest.mark.parametrize("aim", ["total", "minimax"])
def test_a_budget_is_kept_to_the_cell(traced: Traced, per: str, aim: str) -> None:
    with traced(3) as trace:
        planner = planner_of(trace, Asked(granularity=per, aim=aim))
        for steps in range(1, 6):
            assert planner.with_steps(steps).mask.sum() * (2 if per == "step" else 1) == 2 * steps
        for steps in (0, 6, 50):
            with pytest.raises(OutOfReachError, match=f"--budget {steps}: the run has 5 steps"):
                planner.with_steps(steps)


def test_a_share_is_met_as_nearly_as_steps_allow(traced: Traced) -> None:
    with traced(3) as trace:
        planner = planner_of(trace, Asked())
        shares = {share: planner.with_share(share).computed_share for share in (0.0, 0.19, 0.31, 0.69, 0.71, 0.99, 1.0)}
    assert list(shares.values()) == pytest.approx([0.2, 0.2, 0.4, 0.6, 0.8, 1, 1])


@pytest.mark.parametrize("asked", [{"reuse": 0.0}, {"budget": 5}, {"error": 0.0}])
def test_a_plan_that_may_lose_nothing_computes_everything(traced: Traced, asked: dict[str, Any]) -> None:
    with traced(3) as trace:
        plan = planned(trace, **asked)
    assert plan.mask.all() and plan.predicted["error"] == 0 and plan.predicted["low"] is None


@pytest.mark.parametrize("per", ["step", "layer"])
@pytest.mark.parametrize("aim", ["total", "minimax"])
def test_an_error_takes_the_fewest_cells_that_keep_to_it_and_more_allows_no_more(
    traced: Traced, per: str, aim: str
) -> None:
    with traced(4) as trace:
        planner = planner_of(trace, Asked(granularity=per, aim=aim))
        errors = np.geomspace(1e-3, 10, 25)
        plans = [planner.with_error(error) for error in errors]
        unit = 2 if per == "step" else 1
        by_cells = {c: planner._mask(c) for c in range(2, planner.cells + 1) if planner._mask(c) is not None}
    costs = {c: planner.costs.planning_error(mask) for c, mask in by_cells.items()}
    for error, plan in zip(errors, plans):
        assert plan.mask.sum() * unit == min(c for c, cost in costs.items() if cost <= error * (1 + 1e-9))
        assert plan.predicted["planning_error"] <= error * (1 + 1e-9)
    computed = [plan.computed_share for plan in plans]
    assert computed == sorted(computed, reverse=True) and computed[0] > computed[-1]


def test_an_error_looks_at_every_number_of_cells_that_types_of_unlike_size_come_to(traced: Traced) -> None:
    """Types of 2 and 3 layers in 4 steps: the fewest cells for an error need not be the first plus twos."""
    with traced() as trace:
        errors = np.abs(np.subtract.outer(np.arange(4.0), np.arange(4.0)))[None]
        some = costs_of(trace)
        rows = (("two", ("a", "b")), ("three", ("c", "d", "e")))
        course = replace(some.course, **{name: getattr(some.course, name)[:4] for name in vars(some.course)})
        costs = Costs(
            course, "outputs", "reuse", "type", rows, np.array([errors, errors * 10]), errors[None][:0], (), ()
        )
        planner = Planner(trace, costs)
        found = {c: planner._mask(c) for c in range(5, 21) if planner._mask(c) is not None}
    for error in (0.5, 1, 2, 5, 10, 20):
        truth = min(c for c, m in found.items() if error_of(costs.planning, m, [2, 3]) <= error)
        (cells,) = [c for c in planner._sizes(error) if planner._mask(c) is not None][:1]
        assert cells == truth


@pytest.mark.parametrize("per", ["step", "type", "layer"])
def test_a_curve_has_41_plans_from_all_computed_to_a_fifth(traced: Traced, per: str) -> None:
    with traced(3) as trace:
        plans = planner_of(trace, Asked(granularity=per)).curve()
    shares = [plan.computed_share for plan in plans]
    assert len(plans) == len(SHARES) == 41 and shares == sorted(shares, reverse=True)
    assert (shares[0], shares[-1]) == (1.0, pytest.approx(0.2))
    errors = [plan.predicted["planning_error"] for plan in plans]
    assert errors == sorted(errors)


# Forced steps ----------------------------------------------------------------------


def test_forced_steps_are_computed_and_the_plan_says_why(traced: Traced) -> None:
    with traced(3) as trace:
        plan = planned(trace, budget=3, compute=(3, 4))
        assert masked(plan) == "10011"
        assert plan.made["forced"] == {"3": "asked for", "4": "asked for"}
        assert masked(planned(trace, budget=1, compute=(3, 4))) == "10011"  # fewer is not possible
        for step in (-1, 5):
            with pytest.raises(PlanError, match=f"--compute {step}: the run has steps 0 to 4"):
                planned(trace, compute=(step,))


def jumping(one: Shard) -> Shard:
    """Its layers change a hundredfold faster from step 12 on."""
    for stream in ("latent", "text"):
        sums = one.streams[stream].arrays["transition_sums"]
        rng = np.random.default_rng(one.prompts[0].index)
        sums[..., 0, :] = np.where(np.isfinite(sums[..., 0, :]), 1.0, np.nan) * rng.uniform(0.98, 1.02, sums.shape[-1])
        sums[..., 0, 11:] *= 100
    return one


def test_change_points_force_the_steps_that_begin_a_segment(traced: Traced) -> None:
    with traced(6, jumping, num_steps=24) as trace:
        steps = change_steps(trace)
        assert 12 in steps
        plan = planned(trace, budget=len(steps) + 3, change_points=True)
        assert all(plan.rows[0].compute[step] for step in steps)
        assert plan.made["forced"]["12"] == "change point, from step 11 to 12 of the trace"
        other = planned(trace, steps=12, change_points=True)
        assert other.rows[0].compute[6] and "6" in other.made["forced"]


def test_with_every_step_forced_nothing_may_be_left_out(traced: Traced) -> None:
    with traced(2) as trace:
        plan = planned(trace, reuse=0.9, compute=(0, 1, 2, 3, 4))
    assert plan.mask.all() and plan.predicted["cheapest_step"] is None and plan.predicted["verdict"] == "do not cache"
    assert "verdict: do not cache; no step may be left out" in list(show.lines_of(plan))


# What a plan tells -----------------------------------------------------------------


@pytest.mark.parametrize(("size", "verdict"), [(WORTH * 0.8, "cache"), (WORTH * 1.3, "do not cache")])
def test_the_verdict_is_that_of_the_cheapest_step(traced: Traced, size: float, verdict: str) -> None:
    """Four steps of a quarter; each prediction differs from the last by `4 * size` of the latents."""

    def stepping(one: Shard) -> Shard:
        arrays = one.streams[STACK].arrays
        arrays["samples"][...] = 1 + np.arange(4) * 4 * size
        arrays["samples"][:, :, :, 0] = 1
        return replace(one, sigmas=np.array([1, 0.75, 0.5, 0.25]))

    with traced(2, stepping, num_steps=4) as trace:
        plan = planned(trace, predictor="reuse")
    found = plan.predicted  # values are kept in float32
    assert found["cheapest_step"] == pytest.approx(size, rel=1e-5) and found["verdict"] == verdict
    lines = [line for line in show.lines_of(plan) if line.startswith("verdict")]
    assert lines == ([f"verdict: do not cache; leaving out the one cheapest step already costs {size:.1%}"]
                     if verdict == "do not cache" else [])  # fmt: skip


def test_a_plan_names_the_generation_and_the_prompts_that_it_is_from(traced: Traced) -> None:
    config = {"shift": 3.0}
    told = {
        "scheduler": {"class": "FlowMatchEulerDiscreteScheduler", "config": config}, "dtype": "bfloat16",
        "transformers": {"transformer": {"class": "SD3Transformer2DModel", "weights": "00ff"}}, "revision": "main",
        "pipeline": "StableDiffusion3Pipeline",
        "call": {"guidance_scale": 7.0, "num_inference_steps": 6, "latents": None},
    }  # fmt: skip
    with traced(6, **told) as trace:
        plan, other = planned(trace), planned(trace, steps=8)
        times = trace.timesteps
    request = plan.request
    assert (request.model, request.revision, request.dtype) == ("hand-made", "main", "bfloat16")
    assert (request.transformer, request.weights) == ("SD3Transformer2DModel", {"transformer": "00ff"})
    assert request.scheduler_sha256 == scheduler_hash(config) and request.timesteps == tuple(times)
    assert request.call == {"guidance_scale": 7.0, "num_inference_steps": 6}  # one more than steps: it stays so
    assert (other.request.num_steps, other.request.call["num_inference_steps"]) == (8, 9)
    assert plan.made["seen"] == [text_hash(f"prompt {place}") for place in (0, 1, 2, 3, 5, 4)]
    assert plan.made["prompts"] == {"planned": 5, "held_out": 1}
    assert "1 prompt held out of 6: that says little; trace 10 or more" in list(show.lines_of(plan))


def test_another_step_count_says_how_far_beyond_the_trace_it_reaches(traced: Traced) -> None:
    with traced(2) as trace:
        lines = {steps: [x for x in show.lines_of(planned(trace, steps=steps)) if "carried over" in x]
                 for steps in (4, 5, 8, 10)}  # fmt: skip
    assert lines[5] == [] and "within what was recorded; trace --steps 4 to be sure" in lines[4][0]
    assert "0.38 recorded steps beyond the last" in lines[8][0] and "0.50 recorded steps" in lines[10][0]


def test_one_prompt_is_no_test(traced: Traced) -> None:
    with traced() as trace:
        told = list(show.lines_of(planned(trace)))
    assert any("no interval: 0 held-out prompts" in line for line in told)
    assert "the error is of the one prompt that the plan was made from, no test; trace more prompts" in told


def timed(one: Shard) -> Shard:
    layers = {"a": np.array([0.2, 0.1]), "f": np.array([np.nan, np.nan])}
    return replace(one, timing=Timing(layers, np.array([1.0, 2, 3, 4, 5])))


def test_times_are_those_of_the_steps_that_are_left(traced: Traced) -> None:
    with traced(2, timed) as trace:
        plan = planned(trace, budget=3, compute=(2, 4))
        assert masked(plan) == "10101"
        assert (plan.predicted["seconds"], plan.predicted["seconds_uncached"]) == (9, 15)
        assert "time at best 9000 ms of 15000 ms, 1.67 times as fast" in list(show.lines_of(plan))
        layers = planned(trace, budget=2, granularity="layer")
        saved = (~layers.mask).sum(1) @ [0.2, 0.1]
        assert layers.predicted["seconds"] == pytest.approx(15 - saved)
        assert planned(trace, steps=10, budget=10).predicted["seconds_uncached"] == 30


def test_without_times_none_are_told(traced: Traced) -> None:
    with traced(2) as trace:
        assert "seconds" not in planned(trace).predicted


def test_grids_follow_their_solver(traced: Traced) -> None:
    second = {"class": "DPMSolverMultistepScheduler", "config": {"solver_order": 2, "prediction_type": "epsilon"}}
    with traced(2) as first_order, traced(2, scheduler=second) as second_order:
        plans = [planned(trace, granularity="grid", budget=3) for trace in (first_order, second_order)]
    assert [plan.predictor for plan in plans] == ["reuse", "linear"]
    assert all(sum(plan.rows[0].compute) == 3 for plan in plans)
