"""Several runs beside each other: the matrix of S between all of them, and their mean curves on one axis."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations_with_replacement

import numpy as np
import xarray as xr

from dit_analyzer.measures.axes import common_points, places
from dit_analyzer.measures.pairing import common_prompts, share_prompts
from dit_analyzer.measures.stability import Shapes, curves_of, scale_of, shapes
from dit_analyzer.measures.unbiased import mean_square, products


def concordance(views: Sequence[xr.Dataset], axis: str = "step") -> xr.DataArray:
    """Shape concordance S (`stability`) between every two runs over relative depth and step, (kind, model, other).

    Prompts that two runs have in common are paired; without any, the noise of each is taken off alone. Of one prompt
    it cannot be. NaN where a run lacks the kind.

    Args:
        views: `paper_view` of each run.

    Raises:
        ComparisonError: Curves of a single transition, no stretch in common, or no noise levels.
    """
    kinds = list(dict.fromkeys(kind for view in views for kind in view.kind.values.tolist()))
    names = [str(view.attrs.get("model", "")) for view in views]
    values = np.full((len(kinds), len(views), len(views)), np.nan)
    for i, j in combinations_with_replacement(range(len(views)), 2):
        one, other, paired = _paired(views[i], views[j])
        points = common_points(places(one, axis), places(other, axis))
        for row, kind in enumerate(kinds):
            if kind in one.kind and kind in other.kind:
                values[row, i, j] = values[row, j, i] = _s(shapes(one, other, kind, axis, points), paired)
    return xr.DataArray(values, {"kind": kinds, "model": names, "other": names}, ("kind", "model", "other"))


def mean_curves(views: Sequence[xr.Dataset], axis: str = "step") -> xr.DataArray:
    """Mean curves of several runs at common points, (run, kind, point), each over its own mean: shapes, without level.

    Means are geometric, over prompts, and over the layers that have a value at every point.

    Raises:
        ComparisonError: As `concordance`.
    """
    points = common_points(*(places(view, axis) for view in views))
    kinds = list(dict.fromkeys(kind for view in views for kind in view.kind.values.tolist()))
    curves = np.full((len(views), len(kinds), len(points)), np.nan)
    for i, view in enumerate(views):
        for row, kind in enumerate(kinds):
            logs = curves_of(view, kind, axis, points) if kind in view.kind else np.empty((1, 0, len(points)))
            whole = logs[:, np.isfinite(logs).all((0, 2))]
            if whole.size:
                mean = whole.mean((0, 1))
                curves[i, row] = np.exp(mean - mean.mean())
    return xr.DataArray(curves, {"kind": kinds, "point": points}, ("run", "kind", "point"), attrs={"axis": axis})


def _paired(one: xr.Dataset, other: xr.Dataset) -> tuple[xr.Dataset, xr.Dataset, bool]:
    """Both with their common prompts, where there are some; else as they are."""
    return (*common_prompts(one, other), True) if share_prompts(one, other) else (one, other, False)


def _s(pair: Shapes, paired: bool) -> float:
    if not pair.one.shape[1]:
        return float("nan")
    own = [products(values) for values in (pair.one, pair.other)]
    if paired:
        square = mean_square(products(pair.other - pair.one))
    else:
        square = sum(map(mean_square, own)) - 2 * float((pair.one.mean(0) * pair.other.mean(0)).mean())
    return min(1 - square / scale_of(own), 1.0)
