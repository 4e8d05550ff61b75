"""Standard errors of weighted means."""

from __future__ import annotations

import numpy as np
from dit_analyzer.measures.errors import strata_of, weighted_error


def test_error_is_that_of_the_formula_by_channel() -> None:
    rng = np.random.default_rng(0)
    channel = np.repeat([0, 1, 2], [5, 8, 20])
    weight = np.repeat([1 / 15, 1 / 24, 1 / 60], [5, 8, 20])
    values = rng.normal(size=(33, 2))
    parts = [values[channel == c] for c in range(3)]
    by_hand = np.sqrt(sum(part.var(0, ddof=1) / len(part) / 9 for part in parts))
    found = weighted_error(values, weight, strata_of(channel, weight), 10**12)
    np.testing.assert_allclose(found, by_hand, rtol=1e-6)


def test_channels_with_few_positions_share_a_stratum() -> None:
    channel = np.array([7, 7, 7, 7, 7, 1, 2, 3, 4, 5])
    weight = np.where(channel == 7, 0.02, 0.18)
    found = strata_of(channel, weight)
    assert len(set(found[channel == 7])) == 1
    assert np.bincount(found).min() >= 4


def test_nothing_is_uncertain_where_everything_is_sampled() -> None:
    values = np.random.default_rng(0).normal(size=(12, 3))
    channel = np.tile(np.arange(3), 4)
    found = weighted_error(values, np.full(12, 1 / 12), strata_of(channel, np.full(12, 1 / 12)), 12)
    np.testing.assert_allclose(found, 0, atol=1e-12)


def test_error_is_about_the_spread_over_draws() -> None:
    """Of a tensor with massive channels, sampled by channel in proportion to how they spread."""
    rng = np.random.default_rng(0)
    scale = rng.lognormal(0, 0.8, 48)
    scale[[3, 20]] *= 30
    x = np.abs(rng.normal(size=(512, 48))) * scale
    count = np.maximum(4, (1024 * 0.8 * scale / scale.sum() + 4).astype(int))
    channel = np.repeat(np.arange(48), count)
    weight = 1 / 48 / count[channel]
    means, told = [], []
    for draw in range(200):
        rng = np.random.default_rng(draw)
        token = np.concatenate([rng.choice(512, n, replace=False) for n in count])
        values = x[token, channel][:, None]
        means.append((weight * values[:, 0]).sum())
        told.append(weighted_error(values, weight, strata_of(channel, weight), x.size)[0])
    assert abs(np.mean(told) / np.std(means) - 1) < 0.15
    assert abs(np.mean(means) - x.mean()) < 4 * np.std(means) / np.sqrt(200)


def test_values_that_are_not_there_are_left_out() -> None:
    values = np.random.default_rng(0).normal(size=(20, 1))
    weight, channel = np.full(20, 1 / 20), np.repeat([0, 1], 10)
    strata = strata_of(channel, weight)
    whole = weighted_error(values, weight, strata, 10**9)
    values[3] = np.nan
    assert np.isfinite(weighted_error(values, weight, strata, 10**9)).all()
    assert weighted_error(values * np.nan, weight, strata, 10**9)[0] != whole
