"""Sums over segmentations against their definition: every segmentation written out."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from dit_analyzer.measures.segments import BEND, LEVEL, SCALE, SHAPE, SHORTEST, fit_segments, sum_segmentations
from dit_analyzer.measures.segments import smooth_evidence as smooth
from numpy.typing import NDArray
from scipy.special import logsumexp
from scipy.stats import multivariate_t

Array = NDArray[np.float64]


def by_density(design: Array, y: Array) -> float:
    """Log evidence of a linear model as the multivariate t that its priors make of y."""
    variance = np.diag([1 / LEVEL] + [1 / BEND] * (design.shape[1] - 1))
    shape = SCALE / SHAPE * (np.eye(len(y)) + design @ variance @ design.T)
    return float(multivariate_t.logpdf(y, np.zeros(len(y)), shape, 2 * SHAPE))


def line(x: Array) -> Array:
    return np.stack([np.ones_like(x), 2 * (x - x[0]) / (x[-1] - x[0]) - 1], 1)


def all_segmentations(n: int) -> list[tuple[int, ...]]:
    """The corners, both ends included, of all ways to cut n points into segments that are long enough."""
    ways = [(0, *inner, n) for count in range(n) for inner in combinations(range(1, n), count)]
    return [way for way in ways if min(np.diff(way)) >= SHORTEST]


def by_brute_force(evidence: Array, flat: float) -> tuple[float, Array, tuple[int, ...]]:
    n = len(evidence)
    chance = n**-0.5
    ways = [way for way in all_segmentations(n) if len(way) > 2]
    prior = np.array([(len(w) - 2) * np.log(chance) + (n - len(w) + 1) * np.log(1 - chance) for w in ways])
    weight = prior + [sum(evidence[i, j] for i, j in zip(w, w[1:])) for w in ways]
    change = logsumexp(weight) - logsumexp(prior)
    any_change = np.exp(change - np.logaddexp(change, flat))
    share = np.exp(weight - logsumexp(weight)) * any_change
    probability = np.array([sum(p for p, way in zip(share, ways) if k in way[1:-1]) for k in range(n)])
    return any_change, probability, ways[int(np.argmax(weight))][1:-1]


@pytest.mark.parametrize("seed", range(3))
def test_evidence_of_every_segment_is_that_of_its_density(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = np.cumsum(rng.integers(1, 4, 9)).astype(float)
    y = rng.standard_normal(9)
    got = fit_segments(x, y).evidence
    for i, j in combinations(range(10), 2):
        if j - i >= SHORTEST:
            assert got[i, j] == pytest.approx(by_density(line(x[i:j]), y[i:j] - y.mean()), abs=1e-9)


def test_points_that_say_nothing_take_no_part_in_the_evidence() -> None:
    x, y = np.arange(8.0), np.random.default_rng(1).standard_normal(8)
    y[[2, 5]] = np.nan
    seen = np.isfinite(y)
    got = fit_segments(x, y).evidence[0, 8]
    assert got == pytest.approx(by_density(line(x)[seen], y[seen] - y[seen].mean()), abs=1e-9)


def test_line_of_a_segment_is_the_least_squares_line_when_data_outweigh_the_prior() -> None:
    x = np.arange(200.0)
    y = 0.01 * x - 1 + 0.01 * np.random.default_rng(2).standard_normal(200)
    fits = fit_segments(x, y)
    slope, level = np.polyfit(x, y, 1)
    assert fits.slope[0, 200] == pytest.approx(slope, rel=1e-3)
    assert fits.left[0, 200] == pytest.approx(level - slope / 2, abs=1e-3)
    assert fits.right[0, 200] == pytest.approx(level + 199.5 * slope, abs=1e-3)


def test_smooth_evidence_is_the_mean_over_polynomials_and_power_laws() -> None:
    x, y = np.arange(11.0), np.random.default_rng(3).standard_normal(11)
    u = x / 5 - 1
    first, last = (2 * np.log(1 + v) / np.log(11) - 1 for v in (x, x[::-1]))
    legendre = np.stack([np.ones(11), u, (3 * u**2 - 1) / 2, (5 * u**3 - 3 * u) / 2], 1)
    designs = [legendre[:, : k + 1] for k in range(4)] + [np.stack([np.ones(11), v], 1) for v in (first, last)]
    want = logsumexp([by_density(design, y - y.mean()) for design in designs]) - np.log(6)
    assert smooth(x, y) == pytest.approx(want, abs=1e-9)


@pytest.mark.parametrize("n", [6, 7, 9, 13])
def test_sums_and_the_best_segmentation_are_those_of_brute_force(n: int) -> None:
    for seed in range(4):
        rng = np.random.default_rng(seed)
        y = np.where(np.arange(n) < n // 2, 0.0, rng.uniform(0, 2)) + 0.1 * rng.standard_normal(n)
        evidence, flat = fit_segments(np.arange(float(n)), y).evidence, smooth(np.arange(float(n)), y)
        got = sum_segmentations(evidence, flat)
        any_change, probability, best = by_brute_force(evidence, flat)
        assert got.any == pytest.approx(any_change, abs=1e-12)
        np.testing.assert_allclose(got.probability, probability, atol=1e-12)
        assert got.best == best


def test_best_lines_are_those_of_ruptures_where_the_costs_agree() -> None:
    """Given residual sums of squares for costs and the number of changes, the best segmentation is the same."""
    ruptures = pytest.importorskip("ruptures")
    for seed in range(20):
        rng = np.random.default_rng(seed)
        x = np.arange(24.0)
        y = np.interp(x, [0, 8, 8.5, 16, 23], [0, -1, 0.5, 0, 1]) + 0.3 * rng.standard_normal(24)
        series = np.stack([y, np.ones(24), x], 1)
        found = ruptures.Dynp(model="linear", min_size=SHORTEST, jump=1).fit(series).predict(2)
        assert sum_of_squares(x, y, found[:-1]) == pytest.approx(best_of_two(x, y), rel=1e-9)
        assert best_given_a_price(x, y) == tuple(found[:-1])


def sum_of_squares(x: Array, y: Array, starts: list[int]) -> float:
    pieces = zip([0, *starts], [*starts, len(y)])
    return sum(float(((y[i:j] - np.polyval(np.polyfit(x[i:j], y[i:j], 1), x[i:j])) ** 2).sum()) for i, j in pieces)


def best_of_two(x: Array, y: Array) -> float:
    ways = [way for way in combinations(range(1, len(y)), 2) if min(np.diff([0, *way, len(y)])) >= SHORTEST]
    return min(sum_of_squares(x, y, list(way)) for way in ways)


def best_given_a_price(x: Array, y: Array) -> tuple[int, ...]:
    """Our own best segmentation on the same costs, at a price per segment for which there are two changes."""
    n = len(y)
    squares = np.zeros((n, n + 1))
    for i, j in combinations(range(n + 1), 2):
        if j - i >= SHORTEST:
            squares[i, j] = sum_of_squares(x[i:j], y[i:j], [])
    for price in np.geomspace(30, 0.001, 400):
        best = sum_segmentations(-1e3 * (squares + price), 0.0).best
        if len(best) == 2:
            return best
    raise AssertionError("no price gives two changes")
