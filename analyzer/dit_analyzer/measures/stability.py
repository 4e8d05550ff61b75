"""Whether two runs have curves of the same shape: concordance S and difference D, each with an interval over prompts.

Curves are logs on a common axis (`axes`), less their mean over the axis in each layer: a and b, means over P prompts of
a_p and b_p; d_p = b_p - a_p of the same prompt. Means without a name run over layers and points.

    D^2 = mean (b - a)^2 - mean var_p(d_p) / P            what prompts alone would make apart is taken off
    S   = 1 - D^2 / (mean a^2 + mean b^2 + 2 tau^2)       1 for equal shapes, about 0 for unrelated, to -1 for opposite

The noise of prompts is taken off mean a^2 and mean b^2 too. tau = 0.1 keeps flat curves from being called unlike:
without it the noise of a flat curve would be its shape. The interval of S is on S itself, cut at -1 and 1: on atanh S,
which has no end at 1, it misses equal shapes in one of five cases (`benchmarks/stability.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr

from dit_analyzer.measures.axes import (
    Floats,
    at_depths,
    common_points,
    log_curves,
    most_apart,
    places,
    resampled,
)
from dit_analyzer.measures.jackknife import from_replicates
from dit_analyzer.measures.pairing import common_kinds, common_prompts
from dit_analyzer.measures.unbiased import (
    mean_square,
    mean_square_without_each,
    products,
    sign_flip,
)

TAU = 0.1
ALIKE = 0.15
"""Shapes are equivalent if the upper end of the interval of D is below: then they differ by less than a factor 1.16."""

LITTLE_CONTRAST = 0.05
"""Below this |d sigma| two schedulers are so alike that their traces say little of schedulers."""

CONFIDENCE = 0.95
NOTHING: dict[str, object] = {
    **dict.fromkeys(("s", "s_low", "s_high", "d", "d_low", "d_high", "level", "p_value"), np.nan),
    "verdict": "undecided",
}
"""Of two curves without a common cell."""


@dataclass(frozen=True)
class Shapes:
    """Two sets of curves on one axis, (prompt, cell): less their layer's mean; and the mean of ln(other / one)."""

    one: Floats
    other: Floats
    level: float


def stability(one: xr.Dataset, other: xr.Dataset, axis: str = "step") -> xr.Dataset:
    """How alike the curves of two runs are, over the prompts that both have.

    Layers of models with different depth are compared at the same relative depth; of a kind, cells where some prompt's
    l1 is zero or not finite are bridged and counted.

    Args:
        one: `paper_view` of a run; so is `other`.
        axis: "step" compares l1 at the same relative step; "noise" compares l1 / |d sigma| at the same noise level.

    Returns:
        Per kind that both have: s, s_low, s_high; d, d_low, d_high, to be read as a factor exp(d); level, the factor by
        which `other` is above `one`, shape apart; p_value of "no difference", by flipping the signs of the prompts'
        differences; verdict: "equivalent" if d_high < 0.15, else "different" if p_value < 0.05, else "undecided";
        cells_left_out. For all kinds: max_dsigma, the largest |d sigma| at the same relative step, and prompts.
        Intervals are at 95 %, by leaving one prompt out; of fewer than 3 prompts they are NaN. Of one prompt noise is
        not taken off.

    Raises:
        ComparisonError: No prompt or no kind in common, no noise levels, or curves of a single transition.
        ValueError: An unknown axis.
    """
    one, other = common_prompts(one, other)
    return by_kind(one, other, axis, _compared)


def by_kind(
    one: xr.Dataset, other: xr.Dataset, axis: str, compared: Callable[[Shapes], dict[str, object]]
) -> xr.Dataset:
    """What `compared` says of the shapes of each kind, and what `stability` says of all; `NOTHING` where no cell has a
    value in both."""
    kinds = common_kinds(one, other)
    points = common_points(places(one, axis), places(other, axis))
    pairs = [shapes(one, other, kind, axis, points) for kind in kinds]
    rows = [compared(pair) if pair.one.shape[1] else NOTHING for pair in pairs]
    found = {name: ("kind", [row[name] for row in rows]) for name in NOTHING}
    return xr.Dataset(
        found
        | {
            "cells_left_out": _left_out(one.sel(kind=kinds)) + _left_out(other.sel(kind=kinds)),
            "max_dsigma": most_apart((one, other)),
            "prompts": min(one.sizes["prompt"], other.sizes["prompt"]),
        },
        {"kind": kinds},
        {"axis": axis, "models": [str(view.attrs.get("model", "")) for view in (one, other)]},
    )


def shapes(one: xr.Dataset, other: xr.Dataset, kind: str, axis: str, points: Floats) -> Shapes:
    """The curves of one kind of two runs at common points and depths, where both have a value."""
    depths = min(one.sizes["layer"], other.sizes["layer"])
    curves = [at_depths(curves_of(view, kind, axis, points), depths) for view in (one, other)]
    both = np.isfinite(curves[0]).all(0) & np.isfinite(curves[1]).all(0)  # (depth, point)
    both &= both.sum(-1, keepdims=True) >= 2  # a point alone has no shape
    centred = [_centred(curve, both) for curve in curves]
    levels = [curve[:, both].mean() if both.any() else np.nan for curve in curves]
    return Shapes(centred[0], centred[1], float(levels[1] - levels[0]))


def curves_of(view: xr.Dataset, kind: str, axis: str, points: Floats) -> Floats:
    """Log curves of one kind at common points, (prompt, layer, point)."""
    curves = log_curves(view.sel(kind=[kind]), axis)
    return resampled(curves.values[:, 0], places(view, axis), points)


def _centred(curves: Floats, there: np.ndarray) -> Floats:
    """Curves less the mean of their layer, of the cells that are there: (prompt, cell)."""
    counts = np.maximum(there.sum(-1, keepdims=True), 1)
    mean = np.where(there, curves, 0.0).sum(-1, keepdims=True) / counts
    return (curves - mean)[:, there]


def _compared(pair: Shapes) -> dict[str, object]:
    """What `stability` says of one kind."""
    apart, *own = (products(values) for values in (pair.other - pair.one, pair.one, pair.other))
    square, squares = mean_square(apart), mean_square_without_each(apart)
    s, without = (1 - part / scale for part, scale in ((square, scale_of(own)), (squares, _scales_without_each(own))))
    s_low, s_high = np.clip(interval(s, without), -1, 1)
    d_low, d_high = (float(np.sqrt(np.maximum(bound, 0))) for bound in interval(square, squares))
    p_value = sign_flip(apart)
    return {
        "s": min(s, 1.0), "s_low": float(s_low), "s_high": float(s_high),
        "d": float(np.sqrt(max(square, 0))), "d_low": d_low, "d_high": d_high,
        "level": float(np.exp(pair.level)), "p_value": p_value, "verdict": _verdict(d_high, p_value),
    }  # fmt: skip


def scale_of(own: Sequence[Floats]) -> float:
    """mean a^2 + mean b^2 + 2 tau^2, from the products of both."""
    return sum(max(mean_square(product), 0.0) for product in own) + 2 * TAU**2


def _scales_without_each(own: Sequence[Floats]) -> Floats:
    return np.sum([np.maximum(mean_square_without_each(product), 0) for product in own], 0) + 2 * TAU**2


def _verdict(d_high: float, p_value: float) -> str:
    if d_high < ALIKE:
        return "equivalent"
    return "different" if p_value < 1 - CONFIDENCE else "undecided"


def interval(found: float, without: Floats) -> tuple[float, float]:
    """Ends of the interval of a number from what it is without each prompt; NaN with fewer than three."""
    estimate = from_replicates(found, without, level=CONFIDENCE)
    return (float(estimate.low), float(estimate.high)) if len(without) > 2 else (float("nan"), float("nan"))


def _left_out(view: xr.Dataset) -> xr.DataArray:
    """Cells of each kind that were measured, but have no logarithm in some prompt."""
    l1 = view["l1"]
    usable = (np.isfinite(l1) & (l1 > 0)).all("prompt")
    return (l1.notnull().any("prompt") & ~usable).sum(("layer", "transition"))
