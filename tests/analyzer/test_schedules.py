import math

import numpy as np
import pytest
from dit_analyzer.measures.schedules import (
    bfloat16,
    contrast,
    equal_pairs,
    flux_shift,
    from_paper_step,
    linear_quadratic,
    shifted,
)


def test_flux_shifts_by_its_limits_at_the_fewest_and_the_most_tokens():
    assert flux_shift(256) == pytest.approx(math.exp(0.5))
    assert flux_shift(4096) == pytest.approx(math.exp(1.15))


def test_the_papers_two_schedulers_differ_by_a_hundredth():
    apart, step = contrast(shifted(28, flux_shift()), shifted(28, 3.0))
    assert apart == pytest.approx(0.0128, abs=5e-5)
    assert step == 21


def test_no_shift_against_three_differs_twenty_times_as_much():
    assert contrast(shifted(28, 1.0), shifted(28, 3.0))[0] == pytest.approx(0.268, abs=5e-4)


def test_step_16_of_28_and_34_of_56_start_at_one_sigma():
    levels = [shifted(n, flux_shift())[from_paper_step(step, n)] for n, step in ((28, 16), (56, 34), (14, 7))]
    assert levels == pytest.approx([levels[0]] * 3, rel=1e-12)


@pytest.mark.parametrize("num_steps", [1, 2, 3, 28])
def test_a_shifted_grid_starts_at_one_and_falls(num_steps):
    grid = shifted(num_steps, 3.0)
    assert grid[0] == 1
    assert (np.diff(grid) < 0).all() and grid[-1] > 0


@pytest.mark.parametrize("num_steps", [2, 7, 64])
def test_mochis_grid_is_a_line_in_its_first_half(num_steps):
    grid = linear_quadratic(num_steps)
    half = num_steps // 2
    assert grid[0] == 1
    assert (np.diff(grid) < 0).all()
    np.testing.assert_allclose(np.diff(grid[: half + 1]), -0.025 / half)


@pytest.mark.parametrize("num_steps", [7, 64])
def test_mochis_grid_is_a_parabola_in_its_second_half_that_starts_with_the_slope_of_the_line_and_ends_at_zero(
    num_steps,
):
    half = num_steps // 2
    curve = np.polynomial.Polynomial.fit(range(half, num_steps), linear_quadratic(num_steps)[half:], 2)
    assert curve(num_steps) == pytest.approx(0, abs=1e-9)
    assert curve.deriv()(half) == pytest.approx(-0.025 / half)


def test_in_bfloat16_26_of_mochis_first_33_pairs_are_equal():
    grid = linear_quadratic(64)
    rounded = bfloat16(grid)
    still = equal_pairs(rounded)
    assert len([t for t in still if t < 33]) == 26 == len(still)
    assert sorted(set(range(33)) - set(still)) == [2, 7, 12, 17, 22, 27, 32]
    assert len(set(rounded[:34])) == 8
    assert equal_pairs(grid.astype("f4")) == []


def test_rounding_to_bfloat16_keeps_what_fits_and_goes_half_to_even():
    assert bfloat16(np.array([0.0, 1.0, -2.5, 1 + 2**-8, 1 + 3 * 2**-8])).tolist() == [0, 1, -2.5, 1, 1 + 2**-6]


def test_rounding_to_bfloat16_is_off_by_half_a_unit_at_most():
    values = np.random.default_rng(0).lognormal(size=1000)
    assert (abs(bfloat16(values) / values - 1) <= 2.0**-8).all()


@pytest.mark.parametrize("lengths", [(3, 4), (0, 0)])
def test_grids_of_unequal_or_no_length_are_refused(lengths):
    with pytest.raises(ValueError, match="same number of steps"):
        contrast(*(np.ones(length) for length in lengths))
