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
        self._whole = self._weights[0].sum()

    def means(self, samples: NDArray[np.float32], lag: int) -> Floats:
        """All of `MEANS` of samples (position, step): (mean, transition), NaN where there is nothing.

        Values that are not finite are left out; with equal weights the standard error is then unknown.
        """
        with np.errstate(invalid="ignore"):
            by_step = self.by_step(samples, lag)
            if not np.isfinite(by_step[:4]).all():
                return self.means_of_finite(samples, by_step[4], lag)
            means = by_transition(by_step, lag)
            if not_told_apart(means).any():
                means[2] = self.product(samples, lag)
        return means

    def by_step(self, samples: NDArray[np.float32], lag: int) -> Floats:
        """Means of |d|, d^2, |x| and x^2, and SE^2 of the first, (mean, step); NaN if anything is not finite.

        Of those that take two steps, the last `lag` steps mean nothing.
        """
        result = np.full((5, samples.shape[1]), np.nan)
        if not len(samples) or not len(self._kept) or np.isnan(samples[0, 0]) and not np.isfinite(samples).any():
            return result
        sums, change = _sums(self._there(samples), self._weights, lag)
        np.divide(sums[:, 0], self._whole, out=result[:4])
        if self._strata:
            result[4] = self._strata.squared_error(sums[1, 1], change)
        return result

    def product(self, samples: NDArray[np.float32], lag: int) -> Floats:
        """Mean of x[t] x[t + lag] where all is finite, (transition)."""
        return _product(self._there(samples), self._weights[0], lag)

    def means_of_finite(self, samples: NDArray[np.float32], squared_error: Floats, lag: int) -> Floats:
        """All of `MEANS` over those values that are finite."""
        samples, weight = self._there(samples), self._weights[0]
        if not np.isfinite(samples).any():
            return np.full((len(MEANS), samples.shape[1] - lag), np.nan)
        error = np.sqrt(squared_error[:-lag])
        if self._strata and self._strata.unequal:
            error = self._strata.error_of_finite(samples.astype(np.float64), lag)
        return np.concatenate([_means_of_finite(samples, weight, lag), error[None]])

    def mean(self, values: Floats) -> Floats:
        """Weighted mean over positions of values (position, transition); what is not finite is left out."""
        values, weight = values[self._kept], self._weights[0][:, None]
        finite = np.isfinite(values)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(finite, values * weight, 0).sum(0) / (finite * weight).sum(0)

    def error(self, values: Floats) -> Floats:
        """Standard error of that mean; NaN where it tells nothing."""
        values = values[self._kept]
        if not self._strata:
            return np.full(values.shape[1], np.nan)
        if np.isfinite(values).all():
            return np.sqrt(self._strata.squared_error(self._weights[1] @ values**2, values))
        return self._strata.error_of_values(values)

    def _there(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """Samples of the positions that there are."""
        return samples if len(self._kept) == len(samples) else samples[self._kept]


def by_transition(by_step: Floats, lag: int) -> Floats:
    """All of `MEANS`, (..., mean, transition), of what `Positions.by_step` gives, (..., mean, step), where finite."""
    change, square_change, size, square, error = np.moveaxis(by_step, -2, 0)
    before, after, square_change = square[..., :-lag], square[..., lag:], square_change[..., :-lag]
    product = (before + after - square_change) / 2
    means = change[..., :-lag], square_change, product, size[..., :-lag], before, after, np.sqrt(error[..., :-lag])
    return np.stack(means, axis=-2)


def not_told_apart(means: Floats) -> NDArray[np.bool_]:
    """Where the product of (..., mean, transition) is so small that `by_transition` gives too few digits of it."""
    product, before, after = means[..., 2, :], means[..., 4, :], means[..., 5, :]
    return np.abs(product) < SAME * (before + after)


class Strata:
    """The positions cut into strata, for only the spread within them counts: the sample spreads evenly over channels.

    SE^2 = sum_g W_g^2 (1 - n_g / N_g) s_g^2 / n_g, with s_g^2 = (sum of d^2 - (sum of |d|)^2 / n_g) / (n_g - 1).
    W_g is the stratum's share of the weights, N_g = W_g N. Where weights are equal, strata are ceil(4 C / n)
    channels in order, and W_g = n_g / n; else they are as `strata_of` makes them. A stratum of one value tells nothing
    about the spread.

    s_g^2 is taken in one pass. Where |d| hardly varies that costs digits of the error: its relative error is 2e-12 if
    the spread is 1 % of the mean, 3e-10 at 0.1 %, 5e-4 at 1e-6.
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

    def squared_error(self, squares: Floats, change: Floats) -> Floats:
        """SE^2 of the mean of |d| over positions, (step).

        Args:
            squares: Sum over positions of `of_square` times d^2.
            change: |d|, (position, step).
        """
        sums = self._members @ change
        sums *= sums
        return np.maximum(squares - np.einsum("g,gs->s", self._of_sum, sums), 0)

    def error_of_finite(self, x: Floats, lag: int) -> Floats:
        """The same of samples (position, step), leaving out what is not finite; (transition)."""
        with np.errstate(invalid="ignore"):
            return self.error_of_values(np.abs(x[:, lag:] - x[:, :-lag]))

    def error_of_values(self, values: Floats) -> Floats:
        """Standard error of the mean of values (position, transition), leaving out what is not finite."""
        return weighted_error(values, self._weight, self._stratum, self._size)


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
        change[-1, -lag:] = 0  # what an earlier call left there might not be finite
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


def _means_of_finite(samples: NDArray[np.float32], weight: Floats, lag: int) -> Floats:
    """The means over those values that are finite."""
    finite = np.isfinite(samples)
    whole = finite.all(1)
    if whole.any() and not finite[~whole].any():  # a shorter text: positions that are missing at all steps
        return _means_of_whole(samples[whole], weight[whole], lag)
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


def _means_of_whole(samples: NDArray[np.float32], weight: Floats, lag: int) -> Floats:
    """The means where all is finite."""
    sums, _ = _sums(samples, np.stack([weight, np.zeros_like(weight)]), lag)
    means = by_transition(np.concatenate([sums[:, 0] / weight.sum(), sums[:1, 1]]), lag)
    if not_told_apart(means).any():
        means[2] = _product(samples, weight, lag)
    return means[:-1]


def _product(samples: NDArray[np.float32], weight: Floats, lag: int) -> Floats:
    """Mean of x[t] x[t + lag], taken one by one."""
    x = samples.astype(np.float64)
    return np.einsum("p,ps,ps->s", weight, x[:, :-lag], x[:, lag:]) / weight.sum()
