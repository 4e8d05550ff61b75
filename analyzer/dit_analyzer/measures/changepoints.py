"""Where a curve of L1 over transitions breaks: exact posterior probabilities, and what is declared from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

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
        posterior: Probability that the change is here or one transition beside.
        low, high: First and last transition of the shortest interval that holds 95 % of its posterior, given the
            changes declared beside it.
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


@dataclass(frozen=True)
class JointChangePoints:
    """What `joint_change_points` found in the curves of several layers that change together or not at all.

    Attributes:
        any, probability, points: As in `ChangePoints`; `jump` and `slope` of a point are the (geometric) means over
            layers.
        layer_any, layer_probability: Of each layer alone, (layer,) and (layer, transition); NaN for those left out.
        jumps: Jump factor of each layer at each declared change, (point, layer).
        effective_layers: How many independent layers these are worth; see `joint_change_points`.
        left_out: Layers that were left out, and why.
        note: As in `ChangePoints`.
    """

    any: float
    probability: NDArray[np.float64]
    points: tuple[ChangePoint, ...]
    layer_any: NDArray[np.float64]
    layer_probability: NDArray[np.float64]
    jumps: NDArray[np.float64]
    effective_layers: float
    left_out: dict[int, str] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class _Axis:
    """What a transition is called: its number, the number of steps, and the noise levels if known."""

    transitions: NDArray[np.int64]
    num_steps: int
    sigma: NDArray[np.float64] | None

    def names(self, place: int) -> dict[str, int | float | None]:
        transition = int(self.transitions[place])
        sigma = None if self.sigma is None else float(self.sigma[place])
        return {"transition": transition, "paper_step": self.num_steps - 2 - transition, "sigma": sigma}


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
    l1, axis = _read(curve, sigma, num_steps, 1)
    left_out = _unusable(l1, axis)
    if len(left_out) == len(l1):
        raise ValueError(f"no L1 of the {len(l1)} is positive and finite; first: {_first(left_out)}; nothing to segment")
    y = _log(l1)
    dips = tuple(run for run in find_dips(y) if not _beside_change(run, y))
    named = tuple(Dip(length=run.length, factor=float(np.exp(run.depth)), **axis.names(run.start)) for run in dips)
    places = np.flatnonzero(np.isfinite(_without(dips, y)))
    if len(places) < FEWEST:
        return ChangePoints(np.nan, np.full(len(y), np.nan), (), (), named, left_out, _too_short(len(places)))
    sums, fits = _segment(places, y)
    points = tuple(_point(k, sums, [fits], places, axis) for k in peaks(sums))
    best = tuple(int(axis.transitions[places[k]]) for k in sums.best)
    return ChangePoints(sums.any, _spread(sums.probability, places, len(y)), points, best, named, left_out)


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


def joint_change_points(
    curves: ArrayLike | xr.DataArray,
    sigma: Sequence[float] | ArrayLike | None = None,
    num_steps: int | None = None,
    temper: bool = True,
) -> JointChangePoints:
    """The transitions at which the layers of a model break together.

    Each layer has lines, noise and evidence of its own; the places are common, so the evidence is added up. Layers that
    share their noise say the same thing several times; unless `temper` is False the sum is taken down to what
    independent layers would say, effective layers = L / (1 + (L - 1) r), r the mean correlation of what their lines
    leave: without it, joint false alarms come up, with it hardly a change is lost (benchmarks/changepoints.py).

    Args:
        curves: L1 of shape (layer, transition), mean over prompts.
        sigma, num_steps: As in `change_points`.

    Raises:
        ValueError: Not two-dimensional, or no layer has six usable transitions.
    """
    l1, axis = _read(curves, sigma, num_steps, 2)
    y = _log(l1)
    enough = np.isfinite(y).sum(1) >= FEWEST
    left_out = {int(k): f"{_too_short(int(np.isfinite(y[k]).sum()))}" for k in np.flatnonzero(~enough)}
    if not enough.any():
        raise ValueError(f"none of the {len(y)} layers has {FEWEST} transitions of a positive, finite L1 to segment")
    used = y[enough]
    places = np.flatnonzero(np.isfinite(used).any(0))
    x, used = places.astype(np.float64), used[:, places]
    fits = [fit_segments(x, row) for row in used]
    smooth = [smooth_evidence(x, row) for row in used]
    alone = [sum_segmentations(fit.evidence, flat) for fit, flat in zip(fits, smooth)]
    total = np.sum([fit.evidence for fit in fits], 0)
    effective = _effective_layers(x, used, sum_segmentations(total, sum(smooth)).best)
    share = effective / len(used) if temper else 1.0
    sums = sum_segmentations(share * total, share * sum(smooth))
    found = peaks(sums)
    layer_any, layers, jumps = (np.full(shape, np.nan) for shape in (len(y), y.shape, (len(found), len(y))))
    layer_any[enough] = [one.any for one in alone]
    layers[enough] = [_spread(one.probability, places, y.shape[1]) for one in alone]
    for row, k in zip(jumps, found):
        row[enough] = [_break(k, sums, fit)[0] for fit in fits]
    return JointChangePoints(
        sums.any,
        _spread(sums.probability, places, y.shape[1]),
        tuple(_point(k, sums, fits, places, axis) for k in found),
        layer_any,
        layers,
        np.exp(jumps),
        effective,
        left_out,
    )


def peaks(sums: Sums) -> list[int]:
    """The points at which a change is declared: three together hold half the probability, and no other is as near as a
    segment is long."""
    if not sums.any >= DECLARED:
        return []
    mass = _around(sums.probability)
    found: list[int] = []
    for k in np.argsort(-sums.probability, kind="stable"):
        if mass[k] >= DECLARED and all(abs(k - other) >= SHORTEST for other in found):
            found.append(int(k))
    return sorted(found)


def _point(k: int, sums: Sums, fits: list[Fits], places: NDArray[np.int64], axis: _Axis) -> ChangePoint:
    """The record of the change that begins at point k."""
    first, last = _interval(k, sums)
    breaks = np.mean([_break(k, sums, fit) for fit in fits], 0)
    return ChangePoint(
        posterior=float(min(_around(sums.probability)[k], 1.0)),
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


def _break(k: int, sums: Sums, fit: Fits) -> tuple[float, float]:
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


def _spread(values: NDArray[np.float64], places: NDArray[np.int64], n: int) -> NDArray[np.float64]:
    spread = np.full(n, np.nan)
    spread[places] = values
    return spread


def _effective_layers(x: NDArray[np.float64], y: NDArray[np.float64], starts: Sequence[int]) -> float:
    """L / (1 + (L - 1) r), r the mean correlation, at least 0, of what the layers' lines leave of y (layer, n)."""
    rest = y[:, np.isfinite(y).all(0)]
    if len(y) < 2 or rest.shape[1] < FEWEST:
        return float(len(y))
    segment = np.searchsorted(starts, np.flatnonzero(np.isfinite(y).all(0)), "right")
    member = segment[:, None] == np.arange(len(starts) + 1)
    design = np.hstack([member, member * x[np.isfinite(y).all(0), None]]).astype(np.float64)
    rest = rest - rest @ np.linalg.pinv(design).T @ design.T
    rest = rest / np.maximum(np.sqrt((rest**2).sum(1, keepdims=True)), np.finfo(float).tiny)
    together = ((rest.sum(0) ** 2).sum() - len(y)) / (len(y) * (len(y) - 1))
    return float(len(y) / (1 + (len(y) - 1) * max(together, 0.0)))


def _read(
    curve: ArrayLike | xr.DataArray, sigma: ArrayLike | None, num_steps: int | None, dimensions: int
) -> tuple[NDArray[np.float64], _Axis]:
    """The L1 with the transition last, and what its transitions are called."""
    numbers: NDArray[np.int64] | None = None
    if isinstance(curve, xr.DataArray):
        if "transition" not in curve.dims:
            raise ValueError(f"the curve has dimensions {list(curve.dims)}; change points need a dimension transition")
        curve = curve.transpose(..., "transition")
        numbers = np.asarray(curve["transition"].values, np.int64) if "transition" in curve.coords else None
        if sigma is None and "sigma" in curve.coords and curve["sigma"].dims == ("transition",):
            sigma = curve["sigma"].values
    l1 = np.asarray(curve, np.float64)
    if l1.ndim != dimensions:
        wanted = "one curve over transitions, the mean over prompts" if dimensions == 1 else "(layer, transition)"
        raise ValueError(f"shape {l1.shape} has {l1.ndim} dimensions; expected {wanted}")
    numbers = np.arange(l1.shape[-1]) if numbers is None else numbers
    return l1, _Axis(numbers, _steps(numbers, num_steps), _sigmas(sigma, l1.shape[-1]))


def _steps(transitions: NDArray[np.int64], num_steps: int | None) -> int:
    needed = int(transitions[-1]) + 2 if len(transitions) else 0
    if num_steps is not None and num_steps < needed:
        raise ValueError(f"num_steps {num_steps} with a transition {needed - 2}; that takes {needed} steps or more")
    return needed if num_steps is None else num_steps


def _sigmas(sigma: ArrayLike | None, n: int) -> NDArray[np.float64] | None:
    if sigma is None:
        return None
    values = np.asarray(sigma, np.float64)
    if values.shape not in {(n,), (n + 1,)}:
        raise ValueError(f"sigma has shape {values.shape}; expected {n} values, one a transition, or {n + 1}, one a step")
    return values[:n]


def _log(l1: NDArray[np.float64]) -> NDArray[np.float64]:
    usable = np.isfinite(l1) & (l1 > 0)
    return np.where(usable, np.log(np.where(usable, l1, 1.0)), np.nan)


def _unusable(l1: NDArray[np.float64], axis: _Axis) -> dict[int, str]:
    reasons = {int(t): _reason(float(value)) for t, value in zip(axis.transitions, l1)}
    return {transition: reason for transition, reason in reasons.items() if reason}


def _reason(value: float) -> str:
    if not np.isfinite(value):
        return f"not finite ({value})"
    return "" if value > 0 else "constant: L1 is zero" if value == 0 else f"negative ({value:g})"


def _first(left_out: dict[int, str]) -> str:
    return next((f"transition {t}, {reason}" for t, reason in left_out.items()), "there is none")


def _too_short(usable: int) -> str:
    return f"{usable} usable transitions; a change needs {FEWEST}, {SHORTEST} on each side"
