"""Curves of different runs on one axis, and layers of different models at one depth.

A run of n steps is cut into n equal parts: step i begins at the relative step i / n, and the transition from step t to
step t + lag stands midway, at (t + lag / 2) / n. So step 10 of 28 and step 20 of 56 stand at one place.

The noise level is sigma where it is a flow's, which never exceeds 1, and sigma / (1 + sigma) elsewhere, which is the
level at which a flow has the same ratio of signal to noise. A transition stands midway between the levels of its steps,
and what is compared there is its speed, l1 / |d level|: l1 alone is the larger, the further apart the steps are.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dit_analyzer.measures.pairing import ComparisonError

Floats = NDArray[np.float64]

POINTS = 32
"""Points of a common axis."""

AXES = ("step", "noise")


def places(view: xr.Dataset, axis: str) -> Floats:
    """Where each transition stands on `axis`, (transition), NaN where it stands nowhere.

    Raises:
        ValueError: An unknown axis.
        ComparisonError: The view does not know its noise levels.
    """
    if axis not in AXES:
        raise ValueError(f"axis {axis!r}: give 'step' or 'noise'")
    if axis == "step":
        return (view["transition"].values + _lag(view) / 2) / int(view.attrs["num_steps"])
    before, after = _levels_around(view)
    return np.where(before == after, np.nan, (before + after) / 2)


def log_curves(view: xr.Dataset, axis: str, quantity: str = "l1") -> xr.DataArray:
    """ln l1, or on the noise axis ln speed, (prompt, kind, layer, transition), layers in the order they run.

    NaN in every prompt where some prompt has no finite value above 0: such a cell has no logarithm.

    Raises:
        ValueError: No `paper_view`: branches and streams are still apart.
    """
    if further := [str(name) for name in view[quantity].dims if name in ("branch", "stream")]:
        raise ValueError(f"the view has a {further[0]} axis; give what `paper_view` makes of it")
    values = view[quantity].transpose("prompt", "kind", "layer", "transition").sortby("layer")
    usable = (np.isfinite(values) & (values > 0)).all("prompt")
    logs = np.log(values.where(usable))
    if axis == "step":
        return logs
    before, after = _levels_around(view)
    distance = np.abs(after - before)
    return logs - np.log(np.where(distance > 0, distance, np.nan))


def common_points(*standing: Floats, points: int = POINTS) -> Floats:
    """Equally spaced points of the stretch where all have transitions.

    Raises:
        ComparisonError: They share no stretch, or one has fewer than two transitions.
    """
    known = [x[np.isfinite(x)] for x in standing]
    if any(len(x) < 2 for x in known):
        raise ComparisonError("a curve needs two transitions or more; trace with --steps 3 or more")
    low, high = max(x.min() for x in known), min(x.max() for x in known)
    if low >= high:
        raise ComparisonError(
            f"the curves have no stretch in common: one ends at {high:.3g}, another begins at {low:.3g}"
        )
    return np.linspace(low, high, points)


def resampled(curves: Floats, standing: Floats, points: Floats) -> Floats:
    """Curves (prompt, layer, transition) by straight lines between their cells at `points`, (prompt, layer, point).

    A cell without a value is bridged; before the first and after the last cell of a layer there is NaN.
    """
    result = np.full((*curves.shape[:2], len(points)), np.nan)
    for layer in range(curves.shape[1]):
        there = np.flatnonzero(np.isfinite(standing) & np.isfinite(curves[:, layer]).all(0))
        if len(there) >= 2:
            there = there[np.argsort(standing[there])]
            result[:, layer] = curves[:, layer, there] @ _lines(standing[there], points)
    return result


def at_depths(curves: Floats, depths: int) -> Floats:
    """Curves (prompt, layer, point) at so many relative depths, (prompt, depth, point).

    Layer l of L stands at (l + 1/2) / L; between layers by straight lines, beyond the outermost as there.
    """
    place = np.clip(relative_depth(depths) * curves.shape[1] - 0.5, 0, curves.shape[1] - 1)
    below = np.floor(place + 1e-9).astype(int)
    share = np.maximum(place - below, 0.0)[:, None]
    above = np.minimum(below + 1, curves.shape[1] - 1)
    between = (1 - share) * curves[:, below] + share * curves[:, above]
    return np.where(share < 1e-9, curves[:, below], between)  # 0 * NaN would spread what the next layer lacks


def relative_depth(layers: int) -> Floats:
    """Where the layers stand between 0, the input, and 1, the output: (l + 1/2) / L."""
    return (np.arange(layers) + 0.5) / layers


def most_apart(views: Sequence[xr.Dataset]) -> float:
    """The largest |d sigma|: how far the noise levels of two runs are apart at the same relative step.

    NaN where a run does not tell its levels.
    """
    (u, one), (v, other) = (_level_of_steps(view) for view in views)
    knots = np.unique(np.concatenate([u, v]))
    knots = knots[(knots >= max(u[0], v[0])) & (knots <= min(u[-1], v[-1]))]
    return float(np.abs(np.interp(knots, u, one) - np.interp(knots, v, other)).max())


def noise_levels(sigmas: Floats) -> Floats:
    """The noise level of each sigma, from 0 to 1; see the head of this file."""
    if not (sigmas > 1).any():
        return sigmas
    with np.errstate(invalid="ignore"):
        return np.where(np.isinf(sigmas), 1.0, sigmas / (1 + sigmas))


def _level_of_steps(view: xr.Dataset) -> tuple[Floats, Floats]:
    """Relative step and noise level of every step."""
    lag = _lag(view)
    if not {"sigma", "sigma_after"} <= set(view.coords):
        return np.array([0.0, 1.0]), np.array([np.nan, np.nan])
    sigmas = np.concatenate([view["sigma"].values, view["sigma_after"].values[-lag:]])
    return np.arange(len(sigmas)) / int(view.attrs["num_steps"]), noise_levels(sigmas)


def _levels_around(view: xr.Dataset) -> tuple[Floats, Floats]:
    """Noise levels before and after each transition."""
    _, levels = _level_of_steps(view)
    if np.isnan(levels).any():
        raise ComparisonError(
            "the noise axis needs the sigma of every step, and this trace has none; take the step axis"
        )
    return levels[: view.sizes["transition"]], levels[_lag(view) :]


def _lag(view: xr.Dataset) -> int:
    return int(view.attrs.get("lag", 1))


def _lines(standing: Floats, points: Floats) -> Floats:
    """Weights (place, point) of straight lines between places; NaN outside."""
    rows = [np.interp(points, standing, unit, left=np.nan, right=np.nan) for unit in np.eye(len(standing))]
    return np.array(rows)
