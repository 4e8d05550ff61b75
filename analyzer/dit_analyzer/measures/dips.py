"""Places where a log curve leaves its course for one or two points and comes back: too short to be a segment."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LONGEST = 2
"""Points of a dip at most."""
BESIDE = 3
"""Points on each side that say where the curve would have been; two do at an end or beside a gap."""
STRENGTH = 5.0
"""Standard errors that a dip is away from that course."""
SMALLEST = 0.02
"""Depth, of the log, below which nothing is called a dip."""
ALONE = 8
"""Places on each side without another dip; more often than that is a fluctuation."""


@dataclass(frozen=True)
class Run:
    """`length` points from `start` on, `depth` above (below: negative) the parabola through the points beside."""

    start: int
    length: int
    depth: float


def find_dips(y: NDArray[np.float64]) -> tuple[Run, ...]:
    """Isolated dips, and isolated spikes, of y (n,); NaN says nothing."""
    found: list[tuple[float, Run]] = []
    for length in range(1, LONGEST + 1):
        looks = [(start, _look(y, start, length)) for start in range(2, len(y) - length - 1)]
        seen = [(start, look) for start, look in looks if look is not None]
        for start, look in seen:
            elsewhere = [other.scatter for at, other in seen if abs(at - start) > BESIDE + length]
            error = max(look.scatter, np.median(elsewhere) if elsewhere else np.inf) * look.leverage
            if look.agrees and abs(look.depth) > max(SMALLEST, STRENGTH * error):
                found.append((abs(look.depth) / max(error, SMALLEST / STRENGTH), Run(start, length, look.depth)))
    apart = _strongest(found)
    starts = np.array([run.start for run in apart])
    return tuple(run for run in apart if (abs(starts - run.start) <= ALONE).sum() == 1)


@dataclass(frozen=True)
class _Look:
    """How far a run is off the parabola through the points beside it, how much those scatter about it, by what to
    multiply their scatter for the error of the depth, and whether each point of the run says so."""

    depth: float
    scatter: float
    leverage: float
    agrees: bool


def _look(y: NDArray[np.float64], start: int, length: int) -> _Look | None:
    inside = y[start : start + length]
    places = np.r_[max(start - BESIDE, 0) : start, start + length : min(start + length + BESIDE, len(y))]
    places = places[np.isfinite(y[places])]
    if (places < start).sum() < 2 or (places > start).sum() < 2 or len(places) < 5 or not np.isfinite(inside).all():
        return None
    centre = start + (length - 1) / 2
    design = np.vander(places - centre, 3)
    weights = np.linalg.pinv(design)
    course = weights @ y[places]
    scatter = np.sqrt(((y[places] - design @ course) ** 2).sum() / max(len(places) - 3, 1))
    off = inside - np.vander(np.arange(start, start + length) - centre, 3) @ course
    depth = float(off.mean())
    leverage = np.sqrt(1 / length + (weights[2] ** 2).sum())
    return _Look(depth, float(scatter), float(leverage), bool((off * np.sign(depth)).min() >= abs(depth) / 2))


def _strongest(found: list[tuple[float, Run]]) -> list[Run]:
    """Of runs that touch or are next to each other the strongest, in order."""
    kept: list[Run] = []
    for _, run in sorted(found, key=lambda one: -one[0]):
        if all(run.start > one.start + one.length or one.start > run.start + run.length for one in kept):
            kept.append(run)
    return sorted(kept, key=lambda run: run.start)
