"""Where a curve of L1 over transitions breaks: exact posterior probabilities, and what is declared from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from dit_analyzer.measures.curve import Axis, log_of, read_curve, unusable
from dit_analyzer.measures.dips import BESIDE, Run, find_dips
from dit_analyzer.measures.segments import SHORTEST, Fits, Sums, fit_segments, smooth_evidence, sum_segmentations

DECLARED = 0.5
"""Probability from which on a curve has a change, and a place with its neighbours is one."""
MASS = 0.95
FEWEST = 2 * SHORTEST
"""Transitions that a curve needs for a change."""


@dataclass(frozen=True)
class ChangePoint:
    """A change: `transition` is the first of the new segment, the pair (step `transition`, step `transition + 1`).

    Attributes:
        posterior: Probability that the change is within three transitions in a row, this one the likeliest of them.
        low, high: First and last transition of the shortest interval that holds 95 % of its posterior, given that it
            is one and the changes declared beside it are where they are.
        jump: Factor by which the L1 jumps: the new line over the old, both read half-way between the two transitions.
        slope: By how much the slope of log L1 changes, per transition.
        paper_step: The transition as the paper counts: num_steps - 2 - transition. FLUX's 16 of 28 is transition 10.
        sigma: Noise level of step `transition`, if given.
    """

    transition: int
    posterior: float
    low: int
    high: int
    jump: float
    slope: float
    paper_step: int
    sigma: float | None = None


@dataclass(frozen=True)
class Dip:
    """One or two transitions off the course of those beside: L1 times `factor`; above 1 it is a spike.

    It is too short for a segment and takes no part in the change points. `transition` is its first.
    """

    transition: int
    length: int
    factor: float
    paper_step: int
    sigma: float | None = None


@dataclass(frozen=True)
class ChangePoints:
    """What `change_points` found in a curve of n transitions.

    Attributes:
        any: Probability that there is a change at all; NaN where the curve is too short to tell.
        probability: Of a new segment beginning at each transition, (n,); NaN where a transition took no part.
        points: The declared changes: none unless `any` is 0.5 or more, each with a posterior of 0.5 or more.
        best: First transitions of the later segments in the most probable segmentation with a change.
        dips: Isolated dips of one or two transitions.
        left_out: Transitions without a usable L1, and why.
        note: What a reader must know about this answer; mostly empty.
    """

    any: float
    probability: NDArray[np.float64]
    points: tuple[ChangePoint, ...] = ()
    best: tuple[int, ...] = ()
    dips: tuple[Dip, ...] = ()
    left_out: dict[int, str] = field(default_factory=dict)
    note: str = ""


def change_points(
    curve: ArrayLike | xr.DataArray, sigma: Sequence[float] | ArrayLike | None = None, num_steps: int | None = None
) -> ChangePoints:
    """The transitions at which a curve of L1 breaks, by exact Bayesian segmentation of its log into lines.

    Method and priors: `segments`. A transition whose L1 is zero (a constant activation), negative or not finite has no
    log; it is left out and named.

    Args:
        curve: L1 over transitions, mean over prompts; of a DataArray the coordinates `transition` and `sigma` are used.
        sigma: Noise level of each transition's first step; one more, of the last step, is ignored.
        num_steps: Of the run, for the paper's numbering; default one more than the last transition's number.

    Raises:
        ValueError: Not one-dimensional, or no usable L1 at all.
    """
    l1, axis = read_curve(curve, sigma, num_steps, 1)
    left_out = unusable(l1, axis)
    if len(left_out) == len(l1):
        raise ValueError(f"none of {len(l1)} L1 is positive and finite (first: {_first(left_out)}); nothing to segment")
    y = log_of(l1)
    dips = tuple(run for run in find_dips(y) if not _beside_change(run, y))
    named = tuple(Dip(length=run.length, factor=float(np.exp(run.depth)), **axis.names(run.start)) for run in dips)
    places = np.flatnonzero(np.isfinite(_without(dips, y)))
    if len(places) < FEWEST:
        return ChangePoints(np.nan, np.full(len(y), np.nan), (), (), named, left_out, too_short(len(places)))
    sums, fits = _segment(places, y)
    points = tuple(point_at(k, sums, [fits], places, axis) for k in peaks(sums))
    best = tuple(int(axis.transitions[places[k]]) for k in sums.best)
    return ChangePoints(sums.any, spread(sums.probability, places, len(y)), points, best, named, left_out)


def _segment(places: NDArray[np.int64], y: NDArray[np.float64]) -> tuple[Sums, Fits]:
    x = places.astype(np.float64)
    fits = fit_segments(x, y[places])
    return sum_segmentations(fits.evidence, smooth_evidence(x, y[places])), fits


def _without(runs: Sequence[Run], y: NDArray[np.float64]) -> NDArray[np.float64]:
    y = y.copy()
    for run in runs:
        y[run.start : run.start + run.length] = np.nan
    return y


def _beside_change(run: Run, y: NDArray[np.float64]) -> bool:
    """Whether a change is still there when the run is left out: then it is a corner of the curve, not a dip."""
    places = np.flatnonzero(np.isfinite(_without([run], y)))
    if len(places) < FEWEST:
        return False
    return any(abs(places[k] - run.start) <= BESIDE + run.length for k in peaks(_segment(places, y)[0]))


def peaks(sums: Sums) -> list[int]:
    """The points at which a change is declared: the likeliest of three that together hold half the probability, no two
    as near each other as a segment is long."""
    if not sums.any >= DECLARED:
        return []
    mass = _around(sums.probability)
    found: list[int] = []
    for middle in np.argsort(-sums.probability, kind="stable"):
        if mass[middle] >= DECLARED and all(abs(middle - other) >= SHORTEST for other in found):
            found.append(int(middle))
    return sorted(_likeliest(middle, found, sums.probability) for middle in found)


def _likeliest(middle: int, found: list[int], probability: NDArray[np.float64]) -> int:
    """Of a point and those beside it the most probable that keeps its distance from the others."""
    beside = range(max(middle - 1, 0), min(middle + 2, len(probability)))
    apart = [k for k in beside if all(abs(k - other) > SHORTEST for other in found if other != middle)]
    return max([middle, *apart], key=lambda k: probability[k])


def point_at(k: int, sums: Sums, fits: list[Fits], places: NDArray[np.int64], axis: Axis) -> ChangePoint:
    """The record of the change that begins at point k."""
    first, last = _interval(k, sums)
    mass = _around(sums.probability)[max(k - 1, 0) : k + 2]
    breaks = np.mean([break_at(k, sums, fit) for fit in fits], 0)
    return ChangePoint(
        posterior=float(min(mass.max(), 1.0)),
        low=int(axis.transitions[places[first - 1] + 1]),
        high=int(axis.transitions[places[last]]),
        jump=float(np.exp(breaks[0])),
        slope=float(breaks[1]),
        **axis.names(int(places[k])),
    )


def _interval(k: int, sums: Sums) -> tuple[int, int]:
    """The shortest stretch of points around k with 95 % of where this change is, the declared ones beside it fixed."""
    found, n = peaks(sums), len(sums.probability)
    at = found.index(k)
    start, stop = ([0, *found][at], [*found, n][at + 1])
    inner = np.arange(start + 1, stop)
    logs = sums.segment[start, inner] + sums.segment[inner, stop]
    mass = np.exp(logs - logs.max())
    total = np.concatenate([[0.0], np.cumsum(mass / mass.sum())])
    spans = [(j - i, -(total[j] - total[i]), i, j) for i in range(len(inner)) for j in range(i + 1, len(inner) + 1)]
    holding = [span for span in spans if -span[1] >= MASS and inner[span[2]] <= k <= inner[span[3] - 1]]
    _, _, i, j = min(holding, default=(0, 0.0, k - start - 1, k - start))
    return int(inner[i]), int(inner[j - 1])


def break_at(k: int, sums: Sums, fit: Fits) -> tuple[float, float]:
    """Log jump and change of slope at point k, averaged over where the segments that meet there begin and end."""
    before = _shares(sums.ahead[:k] + sums.segment[:k, k])
    after = _shares(sums.behind[k + 1 :] + sums.segment[k, k + 1 :])
    jump = after @ fit.left[k, k + 1 :] - before @ fit.right[:k, k]
    return float(jump), float(after @ fit.slope[k, k + 1 :] - before @ fit.slope[:k, k])


def _shares(logs: NDArray[np.float64]) -> NDArray[np.float64]:
    weights = np.exp(logs - logs.max())
    return weights / weights.sum()


def _around(probability: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of three points in a row together: no two of them begin a segment, so probabilities add up."""
    return np.convolve(probability, np.ones(3))[1:-1]


def spread(values: NDArray[np.float64], places: NDArray[np.int64], n: int) -> NDArray[np.float64]:
    spread = np.full(n, np.nan)
    spread[places] = values
    return spread


def _first(left_out: dict[int, str]) -> str:
    return next((f"transition {t}, {reason}" for t, reason in left_out.items()), "there is none")


def too_short(usable: int) -> str:
    return f"{usable} usable transitions; a change needs {FEWEST}, {SHORTEST} on each side"
