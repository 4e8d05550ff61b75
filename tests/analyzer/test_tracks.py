"""Errors of a plan's steps, summed position by position."""

from __future__ import annotations

import numpy as np
import pytest
from dit_analyzer.plans.tracks import Track, coefficients

STEPS = 6


def direct(track: Track, compute: np.ndarray, levels: np.ndarray, linear: bool) -> float:
    """The sum over steps as it is defined, one position at a time."""
    total = np.zeros(len(track.values))
    for step in np.flatnonzero(~compute):
        past = np.flatnonzero(compute[:step])
        last = past[-1]
        stand_in = track.values[:, last].astype(float)
        if linear and len(past) > 1:
            before = past[-2]
            slope = (stand_in - track.values[:, before]) / (levels[last] - levels[before])
            stand_in = stand_in + slope * (levels[step] - levels[last])
        total += track.moved[step] * (stand_in - track.values[:, step])
    return float(track.weights.astype(float) @ np.abs(total))


@pytest.mark.parametrize("linear", [False, True])
def test_the_error_is_the_sum_over_steps_that_are_left_out(linear: bool) -> None:
    rng = np.random.default_rng(0)
    levels = np.sort(rng.random(STEPS))[::-1]
    track = Track(rng.random(9, "f4"), rng.normal(size=(9, STEPS)).astype("f4"), rng.random(STEPS))
    for number in range(2**STEPS // 2):
        compute = np.array([True, *(bool(number >> bit & 1) for bit in range(STEPS - 1))])
        assert track.error(compute, levels, linear) == pytest.approx(direct(track, compute, levels, linear), abs=1e-6)


def test_a_plan_that_computes_everything_takes_nothing() -> None:
    assert not coefficients(np.ones(STEPS, bool), np.arange(STEPS, 0.0, -1), np.ones(STEPS), True).any()


def test_what_runs_along_a_line_costs_nothing_when_it_is_predicted() -> None:
    levels = np.array([1.0, 0.9, 0.6, 0.4, 0.1, 0.05])
    values = (np.arange(1, 4)[:, None] * levels - 0.5).astype("f4")
    track = Track(np.ones(3, "f4"), values, np.ones(STEPS))
    compute = np.array([True, True, False, False, True, False])
    assert track.error(compute, levels, True) == pytest.approx(0, abs=1e-5)
    assert track.error(compute, levels, False) > 0.1


def test_errors_of_opposite_sign_cancel() -> None:
    track = Track(np.ones(1, "f4"), np.array([[0.0, 1, 0, -1]], "f4"), np.ones(4))
    assert track.error(np.array([True, False, False, False]), np.arange(4.0), False) == 0
