"""How change depends on depth and on the kind, and how rough its curves are over the steps.

The paper (arXiv 2411.13588, section 4) sees deeper layers differ more, A far above K and V in some models, and smoother
curves with fewer steps. Here each is a number with a 95 % interval over prompts, from leaving one out.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from dit_analyzer.measures.axes import Floats, common_points, log_curves, places, relative_depth, resampled
from dit_analyzer.measures.pairing import common_kinds, common_prompts
from dit_analyzer.measures.stability import interval
from dit_analyzer.measures.unbiased import mean_square, mean_square_without_each, products

QUANTITIES = ("l1", "rel_l1")
"""Absolute change, and change as a share of the activation's own size."""


def depth_profile(view: xr.Dataset) -> xr.DataArray:
    """Mean change of each layer, as `depth_trend` fits it: (quantity, kind, depth), layers in the order they run."""
    kinds, quantities = view.kind.values.tolist(), _quantities(view)
    means = [[_layer_means(view.sel(kind=[kind]), name).mean(0) for kind in kinds] for name in quantities]
    coordinates = {"quantity": quantities, "kind": kinds, "depth": relative_depth(view.sizes["layer"])}
    return xr.DataArray(np.array(means), coordinates, ("quantity", "kind", "depth"))


def depth_trend(view: xr.Dataset) -> xr.Dataset:
    """Whether deeper layers change more: slope of ln mean l1 over relative depth.

    Means run over prompts and transitions, over cells that every prompt has above 0; layers stand at (l + 1/2) / L in
    the order they run.

    Args:
        view: `paper_view` of a run.

    Returns:
        Of dimensions (kind, quantity), the quantities l1 and rel_l1: slope, low, high, so that exp(slope) is the factor
        from the input to the output; explained, the share of the layers' log variance that the line explains, small
        where a slope is no trend; and trend: "rises" or "falls" where the interval leaves 0 out, else "none". NaN and
        "none" of fewer than two layers; no interval of fewer than 3 prompts.
    """
    rows = {}
    for kind in view.kind.values.tolist():
        for quantity in _quantities(view):
            means = _layer_means(view.sel(kind=[kind]), quantity)
            rows[kind, quantity] = _trend(means, relative_depth(means.shape[1]))
    return _table(rows, {"kind": view.kind.values.tolist(), "quantity": _quantities(view)}, view)


def kind_contrast(view: xr.Dataset) -> xr.Dataset:
    """How far one kind's change is above another's: mean of ln(l1 of one / l1 of the other).

    The mean runs over layers and transitions where both have a logarithm in every prompt.

    Returns:
        Of dimensions (pair, quantity), pairs as "a/k": log_ratio, low, high, so that exp(log_ratio) is the factor, and
        cells, their number. Without two kinds there is no pair.
    """
    kinds = [kind for kind in ("a", "v", "k") if kind in view.kind]
    pairs = [(one, other) for place, one in enumerate(kinds) for other in kinds[place + 1 :]]
    rows = {}
    for quantity in _quantities(view):
        logs = log_curves(view, "step", quantity)
        for one, other in pairs:
            apart = (logs.sel(kind=one) - logs.sel(kind=other)).values
            rows[f"{one}/{other}", quantity] = _ratio(apart[:, np.isfinite(apart).all(0)])
    return _table(rows, {"pair": [f"{a}/{b}" for a, b in pairs], "quantity": _quantities(view)}, view)


def roughness(one: xr.Dataset, other: xr.Dataset) -> xr.Dataset:
    """How far a curve's cells stand off the straight line between their neighbours, root mean square of the logs.

    Fewer steps look smoother for want of points. So beside each run's own roughness, over its relative steps, stands
    the one at matched noise: both runs' ln speed at the noise levels of the run with fewer steps, inside the stretch
    that both cover. The noise of prompts is taken off, and only common prompts are used.

    Returns:
        Of dimensions (run, kind): own, own_low, own_high, matched, matched_low, matched_high; per kind own_ratio and,
        of matched roughness, ratio: other over one, each with _low and _high; points, the number of matched noise
        levels. NaN where fewer than 3 points leave none with two neighbours, or where roughness is within the noise.

    Raises:
        ComparisonError: No prompt, kind or noise level in common.
    """
    one, other = common_prompts(one, other)
    kinds = common_kinds(one, other)
    views = [view.sel(kind=kinds) for view in (one, other)]
    points = _matched_points(views)
    own = [_roughnesses(view, "step", np.sort(places(view, "step"))) for view in views]
    matched = [_roughnesses(view, "noise", points) for view in views]
    found = {
        name: (("run", "kind"), values) for name, values in (_bounds("own", own) | _bounds("matched", matched)).items()
    }
    for name, roughnesses in (("own_ratio", own), ("ratio", matched)):
        ratios = np.array([_rough_ratio(*pair) for pair in zip(*roughnesses)])
        found |= {f"{name}{end}": ("kind", ratios[:, place]) for place, end in enumerate(("", "_low", "_high"))}
    models = [str(view.attrs.get("model", "")) for view in views]
    steps = [int(view.attrs["num_steps"]) for view in views]
    coordinates = {"kind": kinds, "model": ("run", models), "num_steps": ("run", steps)}
    return xr.Dataset(found | {"points": len(points)}, coordinates, {"prompts": one.sizes["prompt"]})


def _quantities(view: xr.Dataset) -> list[str]:
    return [name for name in QUANTITIES if name in view]


def _layer_means(view: xr.Dataset, quantity: str) -> Floats:
    """Mean over transitions of one kind, (prompt, layer); NaN where a layer has no usable cell."""
    cells = np.exp(log_curves(view, "step", quantity)).isel(kind=0)
    return cells.mean("transition").values


def _trend(means: Floats, depth: Floats) -> dict[str, object]:
    there = np.isfinite(means).all(0)
    means, depth = means[:, there], depth[there]
    if len(depth) < 2:
        return {"slope": np.nan, "low": np.nan, "high": np.nan, "explained": np.nan, "trend": "none"}
    across = (depth - depth.mean()) / ((depth - depth.mean()) ** 2).sum()
    logs = np.log(means.mean(0))
    slope = float(logs @ across)
    low, high = interval(slope, np.log(_without_each(means)) @ across)
    spread = ((logs - logs.mean()) ** 2).sum()
    explained = slope**2 * ((depth - depth.mean()) ** 2).sum() / spread if spread else np.nan
    trend = "rises" if low > 0 else "falls" if high < 0 else "none"
    return {"slope": slope, "low": low, "high": high, "explained": explained, "trend": trend}


def _ratio(apart: Floats) -> dict[str, object]:
    """Mean log ratio of (prompt, cell)."""
    if not apart.shape[1]:
        return {"log_ratio": np.nan, "low": np.nan, "high": np.nan, "cells": 0}
    of_prompts = apart.mean(1)
    found = float(of_prompts.mean())
    low, high = interval(found, _without_each(of_prompts[:, None])[:, 0])
    return {"log_ratio": found, "low": low, "high": high, "cells": apart.shape[1]}


def _without_each(values: Floats) -> Floats:
    """Means over prompts without each in turn, (prompt, ...); NaN of one prompt."""
    if len(values) < 2:
        return np.full(values.shape, np.nan)
    return (values.sum(0) - values) / (len(values) - 1)


def _matched_points(views: Sequence[xr.Dataset]) -> Floats:
    """Noise levels of the run with fewer transitions, inside the stretch that both cover."""
    standing = [places(view, "noise") for view in views]
    low, *_, high = common_points(*standing)
    coarse = np.sort(min((x[np.isfinite(x)] for x in standing), key=len))
    return coarse[(coarse >= low) & (coarse <= high)]


def _roughnesses(view: xr.Dataset, axis: str, points: Floats) -> list[tuple[float, Floats]]:
    """Per kind, the mean square off the neighbours' line: of all prompts, and without each."""
    curves, standing = log_curves(view, axis), places(view, axis)
    return [_off_line(resampled(curves.isel(kind=k).values, standing, points), points) for k in range(len(view.kind))]


def _off_line(curves: Floats, points: Floats) -> tuple[float, Floats]:
    if len(points) < 3:
        return np.nan, np.full(len(curves), np.nan)
    share = (points[1:-1] - points[:-2]) / (points[2:] - points[:-2])
    off = curves[..., 1:-1] - (1 - share) * curves[..., :-2] - share * curves[..., 2:]
    off = off[:, np.isfinite(off).all(0)]
    if not off.shape[1]:
        return np.nan, np.full(len(curves), np.nan)
    product = products(off)
    return mean_square(product), mean_square_without_each(product)


def _bounds(name: str, found: Sequence[Sequence[tuple[float, Floats]]]) -> dict[str, Floats]:
    """Roots of the mean squares and of the ends of their intervals, each (run, kind)."""
    cells = [[(square, *interval(square, without)) for square, without in run] for run in found]
    roots = np.sqrt(np.maximum(np.array(cells), 0))
    return {f"{name}{end}": roots[..., place] for place, end in enumerate(("", "_low", "_high"))}


def _rough_ratio(one: tuple[float, Floats], other: tuple[float, Floats]) -> tuple[float, float, float]:
    """Ratio of roughness with its interval, on the logarithm; NaN where one is within its noise."""
    everything = np.array([one[0], other[0], *one[1], *other[1]])
    if not (everything[:2] > 0).all():
        return np.nan, np.nan, np.nan
    found = 0.5 * np.log(other[0] / one[0])
    with np.errstate(invalid="ignore", divide="ignore"):
        low, high = interval(found, 0.5 * np.log(other[1] / one[1]))
    return float(np.exp(found)), float(np.exp(low)), float(np.exp(high))


def _table(rows: dict[tuple[str, str], dict[str, object]], axes: dict[str, list[str]], view: xr.Dataset) -> xr.Dataset:
    """Rows by two labels as a dataset over both."""
    names = list(next(iter(rows.values()))) if rows else []
    first, second = axes.values()
    found = {name: (tuple(axes), [[rows[a, b][name] for b in second] for a in first]) for name in names}
    return xr.Dataset(found, axes, {"model": str(view.attrs.get("model", "")), "prompts": view.sizes["prompt"]})
