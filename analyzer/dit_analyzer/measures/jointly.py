"""Where the layers of a model break together, each with lines and noise of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from dit_analyzer.measures.changepoints import FEWEST, ChangePoint, break_at, peaks, point_at, spread, too_short
from dit_analyzer.measures.curve import log_of, read_curve
from dit_analyzer.measures.segments import fit_segments, smooth_evidence, sum_segmentations


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
    l1, axis = read_curve(curves, sigma, num_steps, 2)
    y = log_of(l1)
    enough = np.isfinite(y).sum(1) >= FEWEST
    left_out = {int(k): f"{too_short(int(np.isfinite(y[k]).sum()))}" for k in np.flatnonzero(~enough)}
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
    layers[enough] = [spread(one.probability, places, y.shape[1]) for one in alone]
    for row, k in zip(jumps, found):
        row[enough] = [break_at(k, sums, fit)[0] for fit in fits]
    return JointChangePoints(
        sums.any,
        spread(sums.probability, places, y.shape[1]),
        tuple(point_at(k, sums, fits, places, axis) for k in found),
        layer_any,
        layers,
        np.exp(jumps),
        effective,
        left_out,
    )


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
