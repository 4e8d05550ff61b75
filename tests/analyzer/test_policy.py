"""Online rules simulated and calibrated on traces, degenerate ones first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from dit_analyzer.measures.signals import signals
from dit_analyzer.plans.costs import Costs, costs_of, error_of
from dit_analyzer.plans.course import Course, OutOfReachError
from dit_analyzer.plans.planner import Planner
from dit_analyzer.plans.policy import (
    NEITHER,
    POLICY,
    STATIC,
    Calibration,
    Settings,
    best_settings,
    changes_of,
    lines_of,
    policy_of,
    simulated,
)
from dit_analyzer.plans.teacache import Rule as Skipping
from dit_analyzer.plans.teacache import skipped
from dit_analyzer.plans.tracks import Track
from dit_formats import IncompleteError, open_trace
from dit_formats.policy import MODEL_INPUT, MODULATED, Policy, Rule, read_policy, write_policy
from dit_formats.reader import Trace
from dit_formats.schema import Shard
from dit_formats.writer import write_shard

NUM_STEPS = 10


def traced(folder: Path, *shards: Shard) -> Trace:
    folder.mkdir()
    for shard in shards:
        write_shard(folder, shard)
    return open_trace(folder)


@pytest.fixture
def made(tmp_path: Path, shard: Callable[..., Shard], states: Callable[..., Shard]) -> Callable[..., Trace]:
    """A trace of so many prompts and steps."""

    def make(prompts: int = 10, steps: int = NUM_STEPS) -> Trace:
        shards = (states(shard(index, steps=steps)) for index in range(prompts))
        return traced(tmp_path / f"{prompts}-{steps}.trace", *shards)

    return make


def planned(trace: Trace, share: float | None = 0.5, **options: object) -> tuple[Policy, Costs]:
    costs = costs_of(trace)
    return policy_of(trace, costs, Planner(trace, costs), share, **options), costs


def test_nothing_changes_and_only_the_first_step_is_computed() -> None:
    assert simulated(np.zeros((2, 4)), 0.1).tolist() == [[True] + [False] * 4] * 2
    assert simulated(np.zeros((2, 4)), 0.0).all()


def test_nothing_known_is_computed() -> None:
    assert simulated(np.full(4, np.nan), 1e9).all() and simulated(np.full(4, np.inf), 1e9).all()


def test_one_transition_and_none() -> None:
    assert simulated([0.1], 0.2).tolist() == [True, False] and simulated([], 0.2).tolist() == [True]


def test_more_first_and_last_steps_than_there_are_compute_all() -> None:
    assert simulated(np.zeros(4), 9.0, Settings(first=9)).all() and simulated(np.zeros(4), 9.0, Settings(last=5)).all()


@pytest.mark.parametrize("settings", [Settings(), Settings(coefficients=(3.0, -0.3, 0.02), most=2, first=2, last=1)])
def test_a_simulation_is_the_rule_step_by_step(settings: Settings) -> None:
    rng = np.random.default_rng(0)
    changes = rng.uniform(0, 0.3, (40, 19))
    changes[rng.random(changes.shape) < 0.05] = np.nan
    thresholds = rng.uniform(0, 1, 40)
    masks = simulated(changes, thresholds, settings)
    assert 0.2 < masks.mean() < 0.9
    for row, threshold, mask in zip(changes, thresholds, masks):
        rule = Rule(20, threshold, settings.coefficients, settings.most, settings.first, settings.last)
        assert [rule.computes(step, change) for step, change in enumerate([np.nan, *row])] == mask.tolist()


def test_with_tea_caches_settings_it_skips_what_tea_cache_skips() -> None:
    changes = np.random.default_rng(1).uniform(0, 0.2, (30, 27))
    found = simulated(changes, 0.3, Settings(last=1))
    assert not found.all()
    np.testing.assert_array_equal(~found, skipped([1, 0], changes, 0.3, Skipping(last=True)))


def calibration(prompts: int = 8, steps: int = 12) -> Calibration:
    """Costs that grow with the steps since the last computed one."""
    rng, at = np.random.default_rng(2), np.arange(steps, dtype=float)
    course = Course(at[::-1].copy(), None, at, at, at)
    costs = np.abs(at[None, :] - at[:, None])[None, None] * 0.01
    places = tuple(range(prompts))
    rows, none = (("all", ("a",)),), np.empty((0, *costs.shape), "f4")
    known = Costs(course, "outputs", "reuse", "step", rows, costs, none, places, ())
    return Calibration(rng.uniform(0.05, 0.2, (prompts, steps - 1)), known, Settings())


def test_one_prompt_has_a_threshold_without_an_interval() -> None:
    found = calibration(1).for_share(0.5)
    assert found.share == pytest.approx(0.5) and np.isnan(found.low) and np.isnan(found.high)


def test_a_calibrated_threshold_computes_the_share_and_lies_in_its_interval() -> None:
    one = calibration()
    for share in (0.25, 0.5, 0.75):
        found = one.for_share(share)
        assert found.low <= found.value <= found.high
        assert found.share == pytest.approx(share, abs=1 / 12)
        assert found.share == simulated(one.changes, found.value).mean()
        means = [simulated(one.changes, threshold).mean() for threshold in np.linspace(0, 3, 1000)]
        assert abs(found.share - share) <= np.abs(np.array(means) - share).min() + 1 / 12 / 8


def test_everything_computed_is_threshold_0() -> None:
    assert calibration().for_share(1.0).value == calibration().for_error(0.0).value == 0


def test_a_larger_threshold_than_for_an_error_would_err_by_more() -> None:
    one = calibration()
    found = one.for_error(0.1)

    def error(threshold: float) -> float:
        masks = simulated(one.changes, threshold)
        errors = [error_of(one.costs.planning, mask[None], [1]) for mask in masks]
        return float(np.exp(np.mean(np.log(errors))))

    assert 0 < error(found.value) <= 0.1 and one.error_at(found.value) == pytest.approx(error(found.value))
    assert all(error(threshold) > 0.1 for threshold in one.thresholds[one.thresholds > found.value])


def test_where_tracks_are_known_errors_are_along_each_prompts_own() -> None:
    """A prediction that nowhere changes costs nothing, one that does is computed; nothing is asked of other prompts."""
    plain = calibration(4)
    still = Track(np.ones(3, "f4"), np.ones((3, 12), "f4"), np.ones(12))
    moving = replace(still, values=np.arange(36, dtype="f4").reshape(3, 12))
    assert replace(plain, costs=replace(plain.costs, tracks=(still,))).for_error(0.0).value == plain.thresholds[-1]
    found = replace(plain, costs=replace(plain.costs, tracks=(still, moving))).for_error(0.0)
    assert found.share < 1 and simulated(plain.changes[1], found.value).all()


def test_shares_and_errors_that_cannot_be_are_refused() -> None:
    for share in (0.0, -1.0, 1.1, np.nan):
        with pytest.raises(ValueError, match="computed share"):
            calibration().for_share(share)
    with pytest.raises(ValueError, match="error"):
        calibration().for_error(np.nan)


def test_the_largest_change_over_guidance_halves_counts(made: Callable[..., Trace]) -> None:
    trace = made(10)
    both = signals(trace)["rel_l1"].sel(site=MODULATED).values
    found = changes_of(trace)
    assert found.shape == (10, NUM_STEPS - 1) and (both[:, 0] > both[:, 1]).any() and (both[:, 0] < both[:, 1]).any()
    np.testing.assert_array_equal(found, np.maximum(both[:, 0], both[:, 1]))


def test_a_signal_that_is_no_signal_or_was_not_recorded_is_refused(
    made: Callable[..., Trace], tmp_path: Path, shard: Callable[..., Shard]
) -> None:
    with pytest.raises(ValueError, match="residual"):
        changes_of(made(1), "residual")
    with pytest.raises(IncompleteError, match="no stack"):
        changes_of(traced(tmp_path / "plain.trace", shard()))
    with pytest.raises(IncompleteError, match="one step"):
        changes_of(made(1, 1))


def test_one_prompt_gives_a_policy_without_intervals(made: Callable[..., Trace]) -> None:
    policy, _ = planned(made(1))
    told = policy.predicted
    assert told["held_out_prompts"] == 0 and told["low"] is None and told["times_static"]["low"] is None
    assert told["better"] == NEITHER and "the prompts it is made from" in "\n".join(lines_of(policy))


def test_two_steps_are_enough(made: Callable[..., Trace]) -> None:
    policy, _ = planned(made(3, 2))
    assert policy.made["threshold"]["share"] == 0.5 and policy.static.rows[0].compute == (True, False)


@pytest.mark.parametrize("signal", [MODULATED, MODEL_INPUT])
def test_a_policy_predicts_by_each_held_out_prompts_own_mask(made: Callable[..., Trace], signal: str) -> None:
    trace = made()
    policy, costs = planned(trace, settings=Settings(signal, most=4))
    masks = simulated(changes_of(trace, signal)[list(costs.held)], policy.threshold, Settings(signal, most=4))
    errors = [error_of(one, mask[None], [1]) for one, mask in zip(costs.held_out, masks)]
    told = policy.predicted
    assert told["error"] == pytest.approx(np.exp(np.log(errors).mean()))
    assert told["low"] < told["error"] < told["high"] and told["held_out_prompts"] == 2
    assert told["computed_share"]["value"] == masks.mean()
    assert policy.signal == signal and policy.most == 4 and "uncached run" in policy.made["note"]
    assert policy.static.computed_share == pytest.approx(policy.made["threshold"]["share"], abs=1 / NUM_STEPS)


def test_the_better_one_is_named(made: Callable[..., Trace]) -> None:
    """The rule, where cheap steps are those that each prompt's mask leaves out; the plan, where most masks compute
    them."""
    trace = made(20)
    costs, changes, named = costs_of(trace), changes_of(trace), []
    found = Calibration(changes[list(costs.planned_with)], costs, Settings()).for_share(0.6)
    masks = simulated(changes, found.value)
    assert len(np.unique(masks, axis=0)) > 3
    for dear in (masks, np.broadcast_to(masks.mean(0) < 0.5, masks.shape)):
        each = np.broadcast_to(np.where(dear, 1.0, 0.01)[:, None, None, None], (20, 1, 1, NUM_STEPS, NUM_STEPS))
        own = replace(costs, planning=each[list(costs.planned_with)].mean(0), held_out=each[list(costs.held)])
        named.append(policy_of(trace, own, Planner(trace, own), 0.6).predicted["better"])
    assert named == [POLICY, STATIC]


def test_settings_are_chosen_for_the_least_error_on_prompts_to_plan_with(made: Callable[..., Trace]) -> None:
    """Two steps that cost much, at the start and at the end, are computed, whatever the signal says."""
    trace = made(10)
    costs = costs_of(trace)
    each = np.where(np.isin(np.arange(NUM_STEPS), (1, 9)), 1.0, 0.01)
    own = replace(costs, planning=np.broadcast_to(each, costs.planning.shape))
    found = best_settings(trace, own, 0.5)
    policy = policy_of(trace, own, Planner(trace, own), 0.5, settings=found)
    masks = simulated(changes_of(trace)[list(costs.planned_with)], policy.threshold, found)
    assert masks[:, [1, 9]].all() and abs(masks.mean() - 0.5) <= 0.05
    assert (policy.first, policy.last, policy.most) == (found.first, found.last, found.most)


def test_settings_of_one_prompt_and_of_two_steps_can_be_chosen(made: Callable[..., Trace]) -> None:
    for trace in (made(1), made(3, 2)):
        settings = best_settings(trace, costs_of(trace), 0.5, MODEL_INPUT)
        assert settings.signal == MODEL_INPUT and settings.first >= 1


def test_a_rule_that_computes_the_same_steps_for_all_prompts_is_told(made: Callable[..., Trace]) -> None:
    same = "compute the same steps"
    policy, _ = planned(made(), None, error=0.0)
    assert policy.predicted["different_masks"] == 1 and same in lines_of(policy)[-1]
    policy, _ = planned(made(20))
    assert policy.predicted["different_masks"] > 1 and not any(same in line for line in lines_of(policy))


def test_a_policy_is_written_and_read(made: Callable[..., Trace], tmp_path: Path) -> None:
    policy, _ = planned(made(3))
    write_policy(tmp_path / "a.json", policy)
    assert read_policy(tmp_path / "a.json") == policy


def test_the_polynomial_is_of_prompts_to_plan_with(made: Callable[..., Trace]) -> None:
    trace = made()
    policy, costs = planned(trace, fitted=True)
    assert len(policy.coefficients) == 5 and costs.held == (4, 9)
    with pytest.raises(ValueError, match="polynomial"):
        planned(trace, settings=Settings(MODEL_INPUT), fitted=True)


def test_a_policy_is_for_whole_steps_and_the_traced_number_of_them(made: Callable[..., Trace]) -> None:
    trace = made(3)
    layers, longer = costs_of(trace, "layer"), costs_of(trace, steps=12)
    for costs, told in ((layers, "whole steps"), (longer, "--steps 12")):
        with pytest.raises(OutOfReachError, match=told):
            policy_of(trace, costs, Planner(trace, costs), 0.5)


def test_a_share_or_an_error_is_asked_for(made: Callable[..., Trace]) -> None:
    trace = made(3)
    for share, error in ((None, None), (0.5, 0.1)):
        with pytest.raises(ValueError, match="one of them"):
            planned(trace, share, error=error)
    policy, _ = planned(trace, None, error=0.0)
    assert policy.threshold == 0 and policy.static.mask.all() and policy.predicted["times_static"]["value"] == 1
