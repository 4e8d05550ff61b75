from __future__ import annotations

import numpy as np
import pytest
from dit_tracer.recording.sampling import balanced_scatter, positions

SHAPES = [(64, 96, 4096), (64, 128, 4096), (4096, 3072, 4096), (24, 96, 1024), (5, 3, 7), (1, 10, 4), (10, 1, 4)]
NEARLY_ALL = [(64, 96, 6143), (64, 96, 6121), (3, 4, 11)]


@pytest.mark.parametrize(("tokens", "channels", "n"), SHAPES + NEARLY_ALL)
def test_positions_are_distinct_and_inside(tokens: int, channels: int, n: int) -> None:
    kept = balanced_scatter(tokens, channels, n, np.random.default_rng(0))
    assert len(set(zip(kept.token.tolist(), kept.channel.tolist()))) == n
    assert kept.token.min() >= 0 and kept.token.max() < tokens
    assert kept.channel.min() >= 0 and kept.channel.max() < channels


@pytest.mark.parametrize(("tokens", "channels", "n"), SHAPES)
def test_positions_spread_evenly_over_tokens(tokens: int, channels: int, n: int) -> None:
    kept = balanced_scatter(tokens, channels, n, np.random.default_rng(1))
    counts = np.bincount(kept.token, minlength=tokens)
    assert counts.min() >= n // tokens - 1 and counts.max() <= n // tokens + 2


def test_positions_spread_evenly_over_channels_of_a_large_tensor() -> None:
    kept = balanced_scatter(4608, 3072, 16384, np.random.default_rng(2))
    counts = np.bincount(kept.channel, minlength=3072)
    assert counts.min() >= 5 and counts.max() <= 6


def test_all_positions_when_there_are_no_more() -> None:
    kept = balanced_scatter(3, 4, 50, np.random.default_rng(0))
    assert sorted(zip(kept.token.tolist(), kept.channel.tolist())) == [(t, c) for t in range(3) for c in range(4)]


def test_no_positions_for_statistics_only() -> None:
    assert len(balanced_scatter(3, 4, 0, np.random.default_rng(0)).token) == 0


def test_mean_over_positions_is_unbiased() -> None:
    """With a massive channel and a massive token, over many draws."""
    x = np.random.default_rng(0).lognormal(size=(32, 48))
    x[:, 7] *= 50
    x[5] *= 10
    means = []
    for draw in range(400):
        kept = balanced_scatter(32, 48, 256, np.random.default_rng(draw))
        means.append(x[kept.token, kept.channel].mean())
    error = np.std(means) / np.sqrt(len(means))
    assert abs(np.mean(means) - x.mean()) < 4 * error


def test_same_names_give_the_same_positions_and_others_do_not() -> None:
    one, same = (positions(64, 96, 100, 0, "latent", "k", "blocks.0") for _ in range(2))
    other = positions(64, 96, 100, 0, "latent", "k", "blocks.1")
    assert np.array_equal(one.token, same.token) and np.array_equal(one.channel, same.channel)
    assert not np.array_equal(one.channel, other.channel)
