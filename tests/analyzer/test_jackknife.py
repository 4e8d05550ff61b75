"""The jackknife: against formulas, and on the scales that it knows."""

from __future__ import annotations

import numpy as np
import pytest
from dit_analyzer.measures.jackknife import SCALES, from_replicates, jackknife_t
from scipy.stats import sem, t

X = np.random.default_rng(0).normal(3, 1, 12)


def test_error_of_a_mean_is_that_of_the_formula() -> None:
    found = jackknife_t(lambda kept: X[kept].mean(), 12)
    assert found.error == pytest.approx(sem(X))
    assert (found.low, found.high) == pytest.approx(t.interval(0.95, 11, X.mean(), sem(X)))


def test_statistic_may_be_an_array() -> None:
    x = np.random.default_rng(0).normal(size=(9, 2, 3))
    found = jackknife_t(lambda kept: x[kept].mean(0), 9)
    np.testing.assert_allclose(found.error, sem(x, 0))
    assert found.low.shape == (2, 3)


def test_interval_on_the_log_is_that_of_the_log_drawn_back() -> None:
    plain = jackknife_t(lambda kept: np.log(X[kept].std(ddof=1)), 12)
    found = jackknife_t(lambda kept: X[kept].std(ddof=1), 12, "log")
    assert (found.low, found.high) == pytest.approx((np.exp(plain.low), np.exp(plain.high)))
    assert found.error == pytest.approx(plain.error)


@pytest.mark.parametrize("scale", SCALES)
def test_scales_lead_back(scale: str) -> None:
    there, back = SCALES[scale]
    values = np.array([0.01, 0.3, 0.9])
    np.testing.assert_allclose(back(there(values)), values)


def test_correlation_stays_within_its_bounds() -> None:
    y = X + np.random.default_rng(1).normal(0, 0.1, 12)
    found = jackknife_t(lambda kept: np.corrcoef(X[kept], y[kept])[0, 1], 12, "atanh")
    assert -1 < found.low < found.value < found.high < 1


def test_distance_whose_square_is_negative_begins_at_zero() -> None:
    squares = np.array([0.3, -0.2, 0.1, -0.4, 0.05])
    found = jackknife_t(lambda kept: np.sign(m := squares[kept].mean()) * np.sqrt(abs(m)), 5, "square")
    assert found.low == 0 and found.high > 0


def test_groups_are_left_out_whole() -> None:
    labels = np.arange(12) % 4
    found = jackknife_t(lambda kept: X[kept].mean(), 12, groups=labels)
    means = [X[labels == label].mean() for label in range(4)]
    assert found.error == pytest.approx(sem(means)) and found.replicates == 4


def test_units_are_given_in_order() -> None:
    seen = []
    jackknife_t(lambda kept: seen.append(kept.tolist()) or 0.0, 3)
    assert seen == [[0, 1, 2], [1, 2], [0, 2], [0, 1]]


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("value", [0.0, 0.4, 1.0])
def test_what_never_moves_has_no_error(scale: str, value: float) -> None:
    found = jackknife_t(lambda kept: value, 5, scale)
    assert found.error == 0 and found.low == found.high == pytest.approx(value)


def test_bias_of_a_variance_is_that_of_theory() -> None:
    found = jackknife_t(lambda kept: X[kept].var(), 12)
    assert found.bias == pytest.approx(X.var() - X.var(ddof=1))
    without = [np.delete(X, place).var() for place in range(12)]
    assert from_replicates(X.var(), without, bias=True).error == pytest.approx(np.hypot(found.error, found.bias))


def test_one_unit_tells_nothing() -> None:
    found = jackknife_t(lambda kept: X[kept].mean(), 1)
    assert found.value == X[0] and np.isnan([found.error, found.low, found.high]).all()


def test_statistic_that_fails_without_some_unit_has_no_error() -> None:
    found = from_replicates([2.0, 1.0], [[2.0, 1.0], [np.nan, 1.1], [2.1, 0.9]])
    assert np.isnan(found.error[0]) and found.error[1] > 0
    assert np.isnan(from_replicates(1.0, [0.0, 2.0, 1.0], "log").error)


@pytest.mark.parametrize(("arguments", "said"), [
    ({"num": 0}, "no units"),
    ({"num": 3, "transform": "sqrt"}, "give one of none, log"),
    ({"num": 3, "groups": [0, 1]}, "one label for each"),
])  # fmt: skip
def test_wrong_arguments_are_told(arguments: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        jackknife_t(lambda kept: 1.0, **arguments)
