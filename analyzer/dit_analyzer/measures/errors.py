"""The standard error of a weighted mean over sampled positions, where some channels are sampled more densely."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FEW = 4
"""Positions that a stratum has at least; fewer tell too little about the spread."""


def weighted_error(
    values: NDArray[np.float64], weight: NDArray[np.float64], strata: NDArray[np.int64], size: int
) -> NDArray[np.float64]:
    """Standard error of the weighted mean of values (..., position, transition): (..., transition).

    SE^2 = sum over strata of W^2 (1 - n / N) s^2 / n: W is a stratum's share of the weights, s^2 the variance within
    it, n of its N = W * size elements are sampled. Values that are not finite are left out. With channels for strata it
    is sum_c (1 / C)^2 s_c^2 / n_c.

    Args:
        strata: The stratum of each position, as `strata_of` gives them.
        size: Elements of the whole tensor.
    """
    finite = np.isfinite(values)
    clean = np.where(finite, values, 0.0)
    member = (strata == np.arange(strata.max(initial=-1) + 1)[:, None]).astype(np.float64)  # (stratum, position)
    n = member @ finite
    share = (member * weight) @ finite
    with np.errstate(invalid="ignore", divide="ignore"):
        share = share / share.sum(-2, keepdims=True)
        mean = (member @ clean) / n
        square = (member @ np.where(finite, (clean - mean[..., strata, :]) ** 2, 0.0)) / (n - 1)
        missing = np.clip(1 - n / (share * size), 0, 1)
        part = np.where(n > 1, share**2 * missing * square / n, 0.0)
    return np.where((n > 1).any(-2), np.sqrt(part.sum(-2)), np.nan)


def strata_of(channel: NDArray[np.int64], weight: NDArray[np.float64]) -> NDArray[np.int64]:
    """The stratum of each position: its channel, or several channels of about one weight that have few positions."""
    order = np.lexsort((channel, weight))
    stratum, held, last = np.empty(len(channel), np.int64), 0, 0
    starts = np.flatnonzero(np.diff(channel[order], prepend=-1))
    for start, stop in zip(starts, [*starts[1:], len(order)]):
        if held >= FEW:
            last, held = last + 1, 0
        stratum[order[start:stop]] = last
        held += stop - start
    if 0 < held < FEW and last:
        stratum[stratum == last] = last - 1
    return stratum
