"""Means over the sampled positions of one activation, and how far they may be off.

Notation: x[t] is the activation at step t; d = x[t + lag] - x[t]. A mean over the tensor is estimated by the sum over
positions of weight times value.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from dit_analyzer.measures.errors import strata_of, weighted_error

MEANS = ("abs_diff", "square_diff", "product", "abs", "square", "next_square", "se")
"""Of |d|, d^2, x[t] x[t + lag]; of |x[t]|, x[t]^2, x[t + lag]^2; and the standard error of the first."""

TOGETHER = 30000
"""Values that are in the cache together."""

SAME = 0.01
"""x y is (x^2 + y^2 - (x - y)^2) / 2, to the last digits unless it is smaller than this share of x^2 + y^2."""

Floats = NDArray[np.float64]


class Positions:
    """Where the sample of one layer and kind lies in the tensor.

    Args:
        weight, channel: Of each position, channel -1 where there is none.
        num_tokens, num_channels: Shape of the whole tensor.
    """

    def __init__(self, weight: Floats, channel: NDArray[np.int64], num_tokens: int, num_channels: int) -> None:
        self._kept = np.flatnonzero(channel >= 0)
        kept = channel[self._kept], weight[self._kept], num_tokens, num_channels
        self._strata = Strata(*kept) if len(self._kept) > 1 else None
        of_square = self._strata.of_square if self._strata else np.zeros(len(self._kept))
        self._weights = np.stack([weight[self._kept], of_square])

    def means(self, samples: NDArray[np.float32], lag: int) -> Floats:
        """All of `MEANS` of samples (position, step): (mean, transition), NaN where there is nothing.

        Values that are not finite are left out; with equal weights the standard error is then unknown.
        """
        if not np.isfinite(samples[:1, :1]).all() and not np.isfinite(samples).any():
            return np.full((len(MEANS), samples.shape[1] - lag), np.nan)
        if len(self._kept) < len(samples):
            samples = samples[self._kept]
        with np.errstate(invalid="ignore"):
            sums, change = _sums(samples, self._weights, lag)
            means = _means(sums[:, 0], samples, self._weights[0], lag)
            error = self._strata.error(sums[1, 1], change) if self._strata else np.full(samples.shape[1], np.nan)
        if not np.isfinite(means).all():
            means = _means_of_finite(samples, self._weights[0], lag)
            if self._strata and self._strata.unequal:
                error = self._strata.error_of_finite(samples.astype(np.float64), lag)
        return np.concatenate([means, error[None, : means.shape[1]]])


class Strata:
    """The positions cut into strata, for only the spread within them counts: the sample spreads evenly over channels.

    SE^2 = sum_g W_g^2 (1 - n_g / N_g) s_g^2 / n_g, with s_g^2 = (sum of d^2 - (sum of |d|)^2 / n_g) / (n_g - 1), its
    share of the weights and N_g = W_g N. Where weights are equal, strata are ceil(4 C / n) channels in order,
    and W_g = n_g / n; else they are as `strata_of` makes them. A stratum of one value tells nothing about the spread.
    """

    def __init__(self, channel: NDArray[np.int64], weight: Floats, num_tokens: int, num_channels: int) -> None:
        from scipy.sparse import csr_array  # a tenth of a second, which exact distances need not wait for

        n, self._size = len(channel), num_tokens * num_channels
        self.unequal = bool(np.ptp(weight) > 1e-9 * weight.max())
        self._stratum = strata_of(channel, weight) if self.unequal else channel // -(-4 * num_channels // n)
        self._weight = weight
        order = np.argsort(self._stratum.astype(np.min_scalar_type(num_channels)), kind="stable").astype(np.int32)
        bounds = np.append(np.flatnonzero(np.diff(self._stratum[order], prepend=-1)), n).astype(np.int32)
        sizes = np.diff(bounds)
        share = np.add.reduceat(weight[order], bounds[:-1]) / weight.sum() if self.unequal else sizes / n
        missing = np.clip(1 - sizes / (share * self._size), 0, 1)
        self._of_sum = np.where(sizes > 1, missing * (share / sizes) ** 2 / np.maximum(sizes - 1, 1), 0.0)
        self.of_square = np.empty(n)
        self.of_square[order] = np.repeat(self._of_sum * sizes, sizes)
        self._members = csr_array((np.ones(n), order, bounds), shape=(len(sizes), n))

    def error(self, squares: Floats, change: Floats) -> Floats:
        """Standard error of the mean of |d| over positions, (step).

        Args:
            squares: Sum over positions of `of_square` times d^2.
            change: |d|, (position, step).
        """
        sums = self._members @ change
        sums *= sums
        return np.sqrt(np.maximum(squares - np.einsum("g,gs->s", self._of_sum, sums), 0))

    def error_of_finite(self, x: Floats, lag: int) -> Floats:
        """The same of samples (position, step), leaving out what is not finite; (transition)."""
        with np.errstate(invalid="ignore"):
            return weighted_error(np.abs(x[:, lag:] - x[:, :-lag]), self._weight, self._stratum, self._size)


def _sums(samples: NDArray[np.float32], weights: Floats, lag: int) -> tuple[Floats, Floats]:
    """Weighted sums over positions of |d|, d^2, |x| and x^2, (term, weight, step); and |d| itself, (position, step).

    Of |d| and d^2 the last `lag` steps mean nothing. Positions are taken a few at a time, which then stay in the
    processor's cache; and in the same memory each time, for fresh memory costs as much as the sums. So the next call
    overwrites |d|.

    Args:
        weights: Two for each position, (weight, position). With two, BLAS does not divide so little among threads, on
            whose number the last digits would depend.
    """
    num_steps = samples.shape[1]
    together = max(TOGETHER // num_steps, 1)
    changes, rooms = _room(samples.shape, together)
    sums = np.zeros((4, 2, num_steps))
    for first in range(0, len(samples), together):
        at = slice(first, first + together)
        change, weight = changes[at], weights[:, at]
        x, term = rooms[:, : len(change)]
        np.copyto(x, samples[at])
        line = x.ravel()  # along all positions at once: twice as fast as over short rows
        np.subtract(line[lag:], line[:-lag], out=change.ravel()[:-lag])
        np.abs(change, out=change)
        sums[0] += weight @ change
        sums[1] += weight @ np.multiply(change, change, out=term)
        sums[3] += weight @ np.multiply(x, x, out=term)
        sums[2] += weight @ np.abs(x, out=x)
    return sums, changes


@lru_cache(maxsize=4)
def _room(shape: tuple[int, int], together: int) -> tuple[Floats, Floats]:
    """Memory for |d|, and for what is made of a few positions at a time."""
    return np.zeros(shape), np.zeros((2, min(shape[0], together), shape[1]))


def _means(sums: Floats, samples: NDArray[np.float32], weight: Floats, lag: int) -> Floats:
    """The means but for the error, from the sums by the first weight, (term, step), where all is finite."""
    whole = weight.sum()
    change, square_change, size, square = sums / whole
    before, after = square[:-lag], square[lag:]
    means = np.empty((len(MEANS) - 1, len(before)))
    means[0], means[1], means[3], means[4], means[5] = change[:-lag], square_change[:-lag], size[:-lag], before, after
    both = before + after
    np.divide(both - means[1], 2, out=means[2])
    if (np.abs(means[2]) < SAME * both).any():
        x = samples.astype(np.float64)
        means[2] = np.einsum("p,ps,ps->s", weight, x[:, :-lag], x[:, lag:]) / whole
    return means


def _means_of_finite(samples: NDArray[np.float32], weight: Floats, lag: int) -> Floats:
    """The means over those values that are finite."""
    finite = np.isfinite(samples)
    whole = finite.all(1)
    if whole.any() and not finite[~whole].any():  # a shorter text: positions that are missing at all steps
        weight = weight[whole]
        return _means(_sums(samples[whole], np.stack([weight, weight]), lag)[0][:, 0], samples[whole], weight, lag)
    x = np.where(finite, samples, 0.0).astype(np.float64)
    before, after = x[:, :-lag], x[:, lag:]
    first, second = finite[:, :-lag], finite[:, lag:]
    both = first & second
    change = np.abs(after - before)

    def mean(values: Floats, there: NDArray[np.bool_]) -> Floats:
        share = np.einsum("p,ps->s", weight, there)
        return np.einsum("p,ps->s", weight, values * there) / np.where(share > 0, share, np.nan)

    changes = [mean(change, both), mean(change**2, both), mean(before * after, both)]
    return np.stack([*changes, mean(np.abs(before), first), mean(before**2, first), mean(after**2, second)])
