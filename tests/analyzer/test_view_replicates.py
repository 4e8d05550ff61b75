"""Standard errors of views from sampled positions: replicated weights."""

from __future__ import annotations

import numpy as np
import pytest
from dit_analyzer.measures.views.replicates import REPLICATES, over_prompts, replicated_weights, weighted_mean


def drawn(rng: np.random.Generator, tokens: int, channels: int, each: int) -> tuple[np.ndarray, np.ndarray]:
    """Token and channel of positions: so many tokens of each channel, at random."""
    token = np.concatenate([rng.permutation(tokens)[:each] for _ in range(channels)])
    return token, np.repeat(np.arange(channels), each)


def error_of(values: np.ndarray, weights: np.ndarray, statistic) -> float:
    """values (1, position, 2)"""
    return float(over_prompts(lambda place: statistic(weighted_mean(weights, values)[:, 0]), 1)[1])


@pytest.mark.parametrize(
    "statistic",
    [lambda mean: mean[:, 0], lambda mean: mean[:, 0] / mean[:, 1], lambda mean: np.sqrt(mean[:, 1])],
    ids=["mean", "ratio", "root"],
)
@pytest.mark.parametrize("each", [4, 24])
def test_the_error_is_as_large_as_samples_stray(statistic, each: int) -> None:
    """A tensor whose channels differ more than its tokens; of 32 tokens, 24 leave a quarter to chance."""
    rng = np.random.default_rng(0)
    x = np.exp(rng.normal(size=(32, 24, 2)) * 0.5 + 2 * rng.normal(size=(1, 24, 1)))
    truth = statistic(x.mean((0, 1))[None])[0]
    found = []
    for _ in range(300):
        token, channel = drawn(rng, 32, 24, each)
        weights = replicated_weights(np.full(len(token), 1 / len(token)), channel, 32, 24)
        values = x[token, channel][None]
        found.append((statistic(weighted_mean(weights, values)[:, 0])[0] - truth, error_of(values, weights, statistic)))
    apart, errors = np.array(found).T
    assert np.sqrt((errors**2).mean()) == pytest.approx(np.sqrt((apart**2).mean()), rel=0.15)


def test_the_first_row_is_the_sample_and_all_rows_sum_to_one() -> None:
    weight = np.array([1.0, 1, 2, 2, 3, 3, 1, 1])
    weights = replicated_weights(weight, np.repeat(np.arange(4), 2), 10, 4)
    np.testing.assert_allclose(weights[0], weight / weight.sum())
    np.testing.assert_allclose(weights.sum(1), 1)
    assert weights.shape == (REPLICATES, 8) and (weights > 0).all()


def test_all_elements_leave_no_error() -> None:
    rng = np.random.default_rng(1)
    weights = replicated_weights(np.full(24, 1 / 24), np.repeat(np.arange(4), 6), 6, 4)
    assert error_of(rng.normal(size=(1, 24, 2)), weights, lambda mean: mean[:, 0]) == 0


def test_one_position_and_none_are_taken() -> None:
    one = replicated_weights(np.ones(1), np.zeros(1, int), 5, 5)
    np.testing.assert_allclose(one, 1)
    none = replicated_weights(np.empty(0), np.empty(0, int), 5, 5)
    assert np.isnan(weighted_mean(none, np.empty((2, 0, 3)))).all()


def test_what_is_not_finite_is_left_out_of_a_mean() -> None:
    weights = replicated_weights(np.full(4, 0.25), np.arange(4), 1, 4)
    values = np.array([[1.0, 2], [np.nan, 4], [3, np.inf], [4, 2]])[None]
    np.testing.assert_allclose(weighted_mean(weights, values)[0, 0], [8 / 3, 8 / 3])
    assert np.isnan(weighted_mean(weights, np.full((1, 4, 2), np.nan))).all()
