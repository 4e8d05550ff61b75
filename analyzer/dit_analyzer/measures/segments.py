"""All ways to cut a series into straight pieces, weighed exactly.

A piece (segment) is a line with its own level, slope and noise. With conjugate priors its evidence has a closed form,
and sums over all segmentations take n^2 operations instead of 2^n (Fearnhead 2006, doi:10.1007/s11222-006-8450-8).
Against them stands a series without any change: one smooth curve. Knows arrays only, no steps and no models.

The priors, for y on a natural log scale: noise variance ~ InverseGamma(2, 2 * 0.1^2); level of a segment, and its drift
from the first point to the last, ~ N(0, 20^2 times that variance), so about 2 where the noise is 0.1; a change at each
place with probability n^-1/2; change and no change equally likely. Without change the curve is, equally likely, a
polynomial of degree 0, 1, 2 or 3 or a power law from the first point on or up to the last, with priors as wide.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import lgamma

import numpy as np
from numpy.polynomial.legendre import legvander
from numpy.typing import NDArray
from scipy.special import expit, gammaln

SHORTEST = 3
"""Points that a segment has at least."""
SHAPE, SCALE = 2.0, 2 * 0.1**2
"""Of the inverse gamma distribution of the noise variance."""
LEVEL, BEND = (0.1 / 2) ** 2, 4 * (0.1 / 2) ** 2
"""Prior precision of a level, and of each other coefficient on a scale from -1 to 1, in units of the noise's."""
DEGREE = 3
"""The highest degree of a smooth series."""


@dataclass(frozen=True)
class Fits:
    """What each segment of points i to j - 1 says: arrays (i, j), of no meaning where the segment is too short.

    `evidence` is its log probability; `left` and `right` are its line half a place before the first and after the last
    point; `slope` is its rise per place.
    """

    evidence: NDArray[np.float64]
    left: NDArray[np.float64]
    right: NDArray[np.float64]
    slope: NDArray[np.float64]


@dataclass(frozen=True)
class Sums:
    """Sums over all segmentations of n points: `any`, the probability that there is a change at all; `probability`
    (n,), that a segment begins at a point, not counting the first; `best`, the first points of the most probable
    segmentation's later segments, if there is a change; `ahead` and `behind` (n + 1,), the log weights of all that can
    come before and after a boundary, itself included; `segment` (n, n + 1), the log weight of each segment."""

    any: float
    probability: NDArray[np.float64]
    best: tuple[int, ...]
    ahead: NDArray[np.float64]
    behind: NDArray[np.float64]
    segment: NDArray[np.float64]


def fit_segments(x: NDArray[np.float64], y: NDArray[np.float64]) -> Fits:
    """The line of every segment of y (n,) at places x (n,), rising; where y is NaN, the point says nothing."""
    seen = np.isfinite(y)
    x = x - x.mean()
    v = np.where(seen, y - y[seen].mean(), 0.0) if seen.any() else np.zeros_like(x)
    w = seen.astype(np.float64)
    n, sx, sxx, sy, sxy, syy = (_between(part) for part in (w, w * x, w * x * x, v, x * v, v * v))
    centre, half = _frames(x)
    su, suy = (sx - centre * n) / half, (sxy - centre * sy) / half
    suu = (sxx - 2 * centre * sx + centre**2 * n) / half**2
    a, d = n + LEVEL, suu + BEND
    determinant = np.maximum(a * d - su**2, LEVEL * BEND)
    level, drift = (d * sy - su * suy) / determinant, (a * suy - su * sy) / determinant
    rest = np.maximum(syy - level * sy - drift * suy, 0.0)
    edge = 1 + 0.5 / half
    offset = y[seen].mean() if seen.any() else 0.0
    return Fits(
        _log_evidence(n, np.log(determinant / (LEVEL * BEND)), rest),
        offset + level - drift * edge,
        offset + level + drift * edge,
        drift / half,
    )


def smooth_evidence(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Log probability of the whole series y (n,) at places x (n,) as one smooth curve."""
    seen = np.isfinite(y)
    if not seen.any():
        return 0.0
    v = y[seen] - y[seen].mean()
    logs = [_linear_evidence(design[seen], v) for design in _smooth_designs(x)]
    return _log_sum(np.array(logs)) - np.log(len(logs))


def _smooth_designs(x: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """Legendre polynomials of degree 0 to 3, and power laws from the first place on and up to the last."""
    u = 2 * (x - x[0]) / (x[-1] - x[0]) - 1
    polynomials = [legvander(u, degree) for degree in range(DEGREE + 1)]
    since = np.log(1 + x - x[0])
    left = np.stack([np.ones_like(x), 2 * since / since[-1] - 1], 1)
    until = np.log(1 + x[-1] - x)
    right = np.stack([np.ones_like(x), 1 - 2 * until / until[0]], 1)
    return [*polynomials, left, right]


def _linear_evidence(design: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Log probability of y (n,) as a combination of the columns of design (n, k) and noise."""
    k = design.shape[1]
    prior = np.array([LEVEL] + [BEND] * (k - 1))
    precision = design.T @ design + np.diag(prior)
    moment = design.T @ y
    rest = max(float(y @ y - moment @ np.linalg.solve(precision, moment)), 0.0)
    volume = np.linalg.slogdet(precision)[1] - np.log(prior).sum()
    return float(_log_evidence(np.float64(len(y)), volume, np.float64(rest)))


def sum_segmentations(evidence: NDArray[np.float64], smooth: float) -> Sums:
    """Weigh all segmentations of n points against no change: evidence (n, n + 1) of the segments, and of no change."""
    n = len(evidence)
    length = np.arange(n + 1) - np.arange(n)[:, None]
    boundary = -0.5 * np.log(n)
    prior = np.where(length < SHORTEST, -np.inf, (length - 1) * np.log1p(-np.exp(boundary)))
    segment = np.where(length < SHORTEST, -np.inf, evidence) + prior
    ahead, behind = _forward(segment, boundary), _backward(segment, boundary)
    changed = _some_change(ahead, segment)
    chance = float(expit(changed - _some_change(_forward(prior, boundary), prior) - smooth))
    probability = np.zeros(n)
    probability[1:] = np.exp(ahead[1:n] + behind[1:n] - boundary - changed) * chance
    return Sums(chance, probability, _most_probable(segment, boundary), ahead, behind, segment)


def _log_sum(logs: NDArray[np.float64]) -> float:
    """Log of the sum of exponentials; scipy's takes ten times as long on short arrays."""
    most = logs.max(initial=-np.inf)
    return float(most + np.log(np.exp(logs - most).sum())) if most > -np.inf else float(most)


def _between(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sums over points i to j - 1, (n, n + 1)."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    return total - total[:-1, None]


def _frames(x: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Centre and half width of each segment, (n, n + 1); a width of 1 where the segment has no width."""
    last = np.concatenate([x[:1], x])
    half = (last - x[:, None]) / 2
    return (last + x[:, None]) / 2, np.where(half > 0, half, 1.0)


def _log_evidence(
    n: NDArray[np.float64], log_volume: NDArray[np.float64], rest: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Of a linear model of n points whose noise variance is integrated out: a multivariate t distribution.

    Args:
        log_volume: Log determinant of 1 + prior variance times X'X.
        rest: Sum of squares that the posterior mean leaves, its own distance from the prior included.
    """
    shape = SHAPE + n / 2
    constant = SHAPE * np.log(SCALE) - lgamma(SHAPE)
    spread = n / 2 * np.log(2 * np.pi) + log_volume / 2
    return gammaln(shape) + constant - spread - shape * np.log(SCALE + rest / 2)


def _forward(segment: NDArray[np.float64], boundary: float) -> NDArray[np.float64]:
    """Log weight of all ways to fill the points before j with whole segments, and of a boundary there, (n + 1,)."""
    n = len(segment)
    ahead = np.full(n + 1, -np.inf)
    ahead[0] = 0.0
    for j in range(SHORTEST, n + 1):
        ahead[j] = _log_sum(ahead[:j] + segment[:j, j]) + (boundary if j < n else 0.0)
    return ahead


def _backward(segment: NDArray[np.float64], boundary: float) -> NDArray[np.float64]:
    """Log weight of all ways to fill the points from i on with whole segments, and of a boundary there, (n + 1,)."""
    n = len(segment)
    behind = np.full(n + 1, -np.inf)
    behind[n] = 0.0
    for i in range(n - SHORTEST, -1, -1):
        behind[i] = _log_sum(segment[i, i + 1 :] + behind[i + 1 :]) + (boundary if i else 0.0)
    return behind


def _some_change(ahead: NDArray[np.float64], segment: NDArray[np.float64]) -> float:
    """Log weight of all segmentations with two segments or more."""
    return _log_sum(ahead[1:-1] + segment[1:, -1])


def _most_probable(segment: NDArray[np.float64], boundary: float) -> tuple[int, ...]:
    """First points of the later segments in the one best segmentation with two segments or more (Viterbi)."""
    n = len(segment)
    best, origin = np.full(n + 1, -np.inf), np.zeros(n + 1, np.int64)
    best[0] = 0.0
    for j in range(SHORTEST, n + 1):
        weights = best[:j] + segment[:j, j] + np.where(np.arange(j) > 0, boundary, 0.0)
        if j == n:
            weights[0] = -np.inf
        origin[j] = int(np.argmax(weights))
        best[j] = weights[origin[j]]
    found, at = [], int(origin[n])
    while at > 0:
        found.append(at)
        at = int(origin[at])
    return tuple(reversed(found))
