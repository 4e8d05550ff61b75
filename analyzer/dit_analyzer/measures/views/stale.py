"""How stale K and V of the step before are, which PipeFusion and xDiT take for patches that are elsewhere."""

from __future__ import annotations

import numpy as np
import xarray as xr
from dit_formats.errors import IncompleteError
from dit_formats.reader import Trace
from numpy.typing import NDArray

from dit_analyzer.measures.bootstrap import drawn_shares, percentiles
from dit_analyzer.measures.distance import distances
from dit_analyzer.measures.paper import guidance_halves
from dit_analyzer.measures.views.given import LATENT, Floats, dataset, mean_of, need_steps, no_error, over_halves
from dit_analyzer.measures.views.replicates import REPLICATES, Samples, over_prompts, weighted_mean

KINDS = ("k", "v")
THRESHOLDS = (0.05, 0.1, 0.2)
"""Relative changes for which warm-up steps are suggested. How much an image bears, a trace does not tell."""

COUNTS = {
    "warm_up": "1 + last step of the first half at which `joint`, mean over prompts, is at the threshold or above",
    "later": "steps of the second half at which it is",
}


def stale_kv(trace: Trace, source: str = "exact") -> xr.Dataset:
    """How much K and V change from a step to the next, and after how many steps little (PipeFusion, arXiv 2405.14430).

    PipeFusion attends to keys and values of the step before where those of a patch are not there yet, and computes the
    first steps, its warm-up, without. That paper draws nothing of the kind. Latent tokens, for those are divided.

    Returns:
        rel_l1 = mean |x[t + 1] - x[t]| / mean |x[t]|, mean over guidance halves, (prompt, kind, layer, transition), of
        layers that have K and V of latent tokens; joint, its mean over layers, (prompt, kind, transition). warm_up,
        (kind, threshold): so many first steps are to be computed that no stale value is used in the first half of the
        steps where `joint`, mean over prompts, is at the threshold or above; 1 at least, as the first step has nothing
        before it. later: how many steps of the second half are there, which no warm-up helps. Both with ends of their
        95 % intervals from the prompts (bootstrap), NAME_low and NAME_high, NaN of one prompt or of missing changes.

    Raises:
        IncompleteError: No K and V of latent tokens; no samples where they are asked for; one step only.
    """
    need_steps(trace)
    ds = _changes(trace, source)
    recorded = ds["count"].notnull()
    rel_l1 = mean_of(ds["rel_l1"], recorded, ["branch"])
    joint = mean_of(rel_l1, recorded.any("branch"), ["layer"])
    errors = no_error(rel_l1), no_error(joint)
    if source == "sample":
        errors = _errors(trace, rel_l1, joint)
    variables = {"rel_l1": rel_l1, "joint": joint}
    formulas = {"rel_l1": ("1", "mean |x[t+1] - x[t]| / mean |x[t]|"), "joint": ("1", "mean of rel_l1 over layers")}
    for name, values in _suggestions(joint).items():
        variables[name] = values
        formulas[name] = ("steps", COUNTS[name.removesuffix("_low").removesuffix("_high")])
    notes = ["K and V of latent tokens", *over_halves(trace)]
    exact = source == "exact"
    return dataset(
        trace, variables, formulas, source, notes, {"rel_l1": (errors[0], exact), "joint": (errors[1], exact)}
    )


def _changes(trace: Trace, source: str) -> xr.Dataset:
    """Distances of K and V of latent tokens in the guidance halves, of the layers that have them."""
    kinds = trace.kinds(LATENT) if LATENT in trace.streams else ()
    if not set(KINDS) <= set(kinds):
        recorded = ",".join(dict.fromkeys([*KINDS, *kinds]))
        raise IncompleteError(f"{trace.path}: holds no K and V; trace with --kinds {recorded}")
    ds = distances(trace, source=source)
    ds = ds.isel(branch=guidance_halves(ds)).sel(stream=LATENT, kind=list(KINDS)).drop_vars("stream")
    seen = ds["count"].notnull().any([axis for axis in ds["count"].dims if axis != "layer"])
    if not seen.any():
        raise IncompleteError(f"{trace.path}: no layer has K and V of latent tokens, as self-attention has")
    return ds.isel(layer=seen.values)


def _errors(trace: Trace, rel_l1: xr.DataArray, joint: xr.DataArray) -> tuple[xr.DataArray, xr.DataArray]:
    """Standard errors, from sampled positions, of the means over prompts of both."""
    samples, kinds = Samples(trace, LATENT), [trace.kinds(LATENT).index(kind) for kind in KINDS]
    layers = rel_l1.layer.values

    def of_prompt(place: int) -> Floats:
        """(replicate, kind, layer and the mean over layers, transition)"""
        found = np.full((REPLICATES, len(kinds), len(layers) + 1, rel_l1.sizes["transition"]), np.nan)
        for row, at in np.ndindex(len(kinds), len(layers)):
            x, weights = samples.of(place, kinds[row], int(layers[at]))
            with np.errstate(invalid="ignore", divide="ignore"):
                ratio = weighted_mean(weights, abs(np.diff(x))) / weighted_mean(weights, abs(x[..., :-1]))
            found[:, row, at] = ratio.mean(1)
        found[:, :, -1] = found[:, :, :-1].mean(2)
        return found

    _, error = over_prompts(of_prompt, rel_l1.sizes["prompt"])
    return no_error(rel_l1).copy(data=error[:, :-1]), no_error(joint).copy(data=error[:, -1])


def _suggestions(joint: xr.DataArray) -> dict[str, xr.DataArray]:
    """warm_up and later with the ends of their intervals, (kind, threshold)."""
    values = joint.transpose("prompt", "kind", "transition").values
    number = len(values)
    drawn = np.einsum("rp,pkt->rkt", drawn_shares(number), values)
    names = {"kind": joint.kind.values, "threshold": list(THRESHOLDS)}
    found = {}
    for name, count in (("warm_up", warm_up), ("later", later)):
        low, high = percentiles(count(drawn, THRESHOLDS), number)
        parts = {name: count(values.mean(0), THRESHOLDS), f"{name}_low": low, f"{name}_high": high}
        found |= {key: xr.DataArray(part, names, ("kind", "threshold")) for key, part in parts.items()}
    return found


def warm_up(curve: Floats, thresholds: tuple[float, ...] = THRESHOLDS) -> Floats:
    """How many first steps to compute so that the first half uses no change at a threshold or above, (..., threshold).

    Args:
        curve: (..., transition), the change into step t + 1 at place t; where any is NaN, so is the answer.

    >>> warm_up(np.array([0.3, 0.06, 0.12, 0.04, 0.04, 0.04, 0.3])).tolist()
    [4.0, 4.0, 2.0]
    """
    above, first = _above(curve, thresholds)
    steps = np.arange(1, curve.shape[-1] + 1)
    return _unless_missing(1 + (above * first * steps).max(-1), curve)


def later(curve: Floats, thresholds: tuple[float, ...] = THRESHOLDS) -> Floats:
    """How many steps of the second half have a change at a threshold or above, (..., threshold)."""
    above, first = _above(curve, thresholds)
    return _unless_missing((above & ~first).sum(-1), curve)


def _above(curve: Floats, thresholds: tuple[float, ...]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Whether a change is at a threshold or above, (..., threshold, transition); and into a step of the first half."""
    steps = np.arange(1, curve.shape[-1] + 1)
    with np.errstate(invalid="ignore"):
        return curve[..., None, :] >= np.array(thresholds)[:, None], steps < (len(steps) + 1) / 2


def _unless_missing(counts: NDArray, curve: Floats) -> Floats:
    return np.where(np.isnan(curve).any(-1)[..., None], np.nan, counts)
