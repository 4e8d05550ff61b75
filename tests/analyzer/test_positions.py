"""Fast sums over positions give what their definitions give."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from dit_analyzer.measures.positions import MEANS, Positions

CHANNELS, TOKENS, STEPS = 30, 50, 7


def activation(positions: int = 300, unequal: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Samples, weights and channels of one layer; two positions more than there are elements."""
    rng = np.random.default_rng(positions)
    samples = np.cumsum(rng.normal(size=(positions + 2, STEPS)), axis=1).astype("f4")
    channel = np.append(rng.permutation(positions) % CHANNELS, [-1, -1])
    weight = (1 + (channel % 3 if unequal else 0)) * (channel >= 0)
    samples[channel < 0] = np.nan
    return samples, weight / weight.sum(), channel


def by_definition(x: np.ndarray, weight: np.ndarray, lag: int) -> np.ndarray:
    """All means but the error, value by value."""
    x = x.astype(float)
    before, after = x[:, :-lag], x[:, lag:]
    d = after - before

    def mean(values: np.ndarray) -> list[float]:
        good = np.isfinite(values)
        return [
            np.average(v[g], weights=weight[g]) if weight[g].sum() > 0 else np.nan for v, g in zip(values.T, good.T)
        ]

    return np.array([mean(v) for v in (abs(d), d**2, before * after, abs(before), before**2, after**2)])


def nothing(x: np.ndarray) -> None: ...


def shorter_text(x: np.ndarray) -> None:
    x[200:] = np.nan


def step_not_recorded(x: np.ndarray) -> None:
    x[:, 3] = np.nan


def overflow(x: np.ndarray) -> None:
    x[5, 2], x[7, 1:3], x[9, 4] = np.inf, [np.inf, -np.inf], np.nan


def everything(x: np.ndarray) -> None:
    x[...] = np.nan


@pytest.mark.parametrize("lag", [1, 3])
@pytest.mark.parametrize("unequal", [False, True])
@pytest.mark.parametrize("lose", [nothing, shorter_text, step_not_recorded, overflow, everything])
def test_means_are_those_of_their_definition(lose, unequal: bool, lag: int) -> None:
    samples, weight, channel = activation(unequal=unequal)
    lose(samples)
    found = Positions(weight, channel, TOKENS, CHANNELS).means(samples, lag)
    with np.errstate(invalid="ignore"):
        expected = by_definition(samples, weight, lag)
    np.testing.assert_allclose(found[:-1], expected, rtol=1e-12)
    assert found.shape == (len(MEANS), STEPS - lag)


def test_orthogonal_activations_have_an_exact_cosine() -> None:
    samples, weight, channel = activation()
    samples[:, 1] = np.tile([1, -1], 151)
    samples[:, 0] = 1 + np.arange(302) // 2 % 2 * 1e-3
    samples[300:] = np.nan
    found = Positions(weight, channel, TOKENS, CHANNELS).means(samples, 1)
    expected = by_definition(samples, weight, 1)
    assert abs(expected[2, 0]) < 1e-3
    np.testing.assert_allclose(found[2], expected[2], rtol=1e-12, atol=1e-18)


def test_the_error_is_that_of_its_formula() -> None:
    samples, weight, channel = activation()
    d = abs(np.diff(samples.astype(float)))[:300]
    strata = channel[:300] // 1
    n, whole = 300, TOKENS * CHANNELS
    parts = [(np.sum(strata == g) / n) ** 2 * d[strata == g].var(0, ddof=1) / np.sum(strata == g) for g in set(strata)]
    expected = np.sqrt((1 - n / whole) * sum(parts))
    np.testing.assert_allclose(Positions(weight, channel, TOKENS, CHANNELS).means(samples, 1)[-1], expected, rtol=1e-12)


@pytest.mark.parametrize("positions", [0, 1])
def test_the_error_of_one_value_is_unknown(positions: int) -> None:
    samples, weight, channel = activation(max(positions, 1))
    channel[positions:] = -1
    assert np.isnan(Positions(weight, channel, TOKENS, CHANNELS).means(samples, 1)[-1]).all()


def test_the_last_digits_do_not_depend_on_threads() -> None:
    code = """if True:
        import hashlib, numpy as np
        from dit_analyzer.measures.positions import Positions
        rng = np.random.default_rng(0)
        x, n = rng.normal(size=(8192, 28)).astype("f4"), 8192
        found = Positions(rng.random(n), rng.integers(0, 3000, n), 4096, 3000).means(x, 1)
        print(hashlib.sha256(found.tobytes()).hexdigest())
    """
    digests = set()
    for threads in ("1", "2", "4"):
        env = {**os.environ, "OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads}
        digests.add(subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, check=True).stdout)
    assert len(digests) == 1
