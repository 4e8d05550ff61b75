"""Where all curves of a trace break: the change points of each layer, and of all layers of a kind together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import xarray as xr

from dit_analyzer.measures.changepoints import ChangePoint, ChangePoints, change_points
from dit_analyzer.measures.jointly import JointChangePoints, joint_change_points

OF_POINTS = ("posterior", "low", "high", "jump", "slope")
"""What is said of a declared change; see `ChangePoint`."""


def changes(view: xr.Dataset) -> xr.Dataset:
    """Change points of the mean over prompts, of every layer alone and of all layers of a kind together.

    A transition that some prompt lacks, or where l1 is 0, takes no part. Together, dips are not looked for.

    Args:
        view: `paper_view`.

    Returns:
        (kind, layer, transition): probability, that a new segment begins there; posterior, low, high, jump and slope of
        the changes that are declared, NaN elsewhere (`ChangePoint`; low and high are transitions); dip, the factor by
        which an isolated dip or spike is off its course, NaN elsewhere.
        (kind, layer): any, the probability that there is a change at all, NaN where too little is left to tell.
        (kind, transition) and (kind): the same of all layers together, as joint_probability, joint_posterior, ...,
        joint_any; layers_near, how many layers alone have a change declared there or one transition beside, where one
        is declared for all; effective_layers, how many independent layers these are worth.
        Coordinate paper_step: as the paper counts, num_steps - 2 - transition.
    """
    l1 = view["l1"].transpose("prompt", "kind", "layer", "transition").mean("prompt", skipna=False)
    steps = int(view.attrs["num_steps"])
    alone = [[_alone(curve, steps) for curve in curves] for curves in l1]
    together = [_together(curves, steps) for curves in l1]
    transitions = l1.transition.values.tolist()
    no = SimpleNamespace(any=np.nan, effective_layers=np.nan)
    found = {
        "any": (("kind", "layer"), _numbers([[(one or no).any for one in row] for row in alone], l1[..., 0])),
        "joint_any": ("kind", _numbers([(one or no).any for one in together], l1[:, 0, 0])),
        "effective_layers": ("kind", _numbers([(one or no).effective_layers for one in together], l1[:, 0, 0])),
        "dip": (l1.dims, _numbers([[_dips(one, transitions) for one in row] for row in alone], l1)),
    }
    every = [[_of_curve(one, transitions) for one in row] for row in alone]
    joint = [_of_curve(one, transitions) for one in together]
    for name in ("probability", *OF_POINTS):
        found[name] = (l1.dims, _numbers([[one[name] for one in row] for row in every], l1))
        found[f"joint_{name}"] = (("kind", "transition"), _numbers([one[name] for one in joint], l1[:, 0]))
    ds = xr.Dataset(found, l1.coords, view.attrs).assign_coords(paper_step=steps - 2 - l1.transition)
    near = ds["posterior"].notnull().rolling(transition=3, center=True, min_periods=1).max().sum("layer")
    return ds.assign(layers_near=near.where(ds["joint_posterior"].notnull()))


def declared(ds: xr.Dataset) -> Iterator[dict[str, Any]]:
    """The changes that are declared, first those of all layers of a kind (`layer` "all"), then of each: a record each.

    Args:
        ds: What `changes` returns.
    """
    for kind in ds.kind.values.tolist():
        yield from _records(ds.sel(kind=kind), "all", "joint_")
        for place, layer in enumerate(ds.layer.values.tolist()):
            yield from _records(ds.sel(kind=kind).isel(layer=place), layer, "")


def dips(ds: xr.Dataset) -> Iterator[dict[str, Any]]:
    """Isolated dips and spikes, a record for each kind and first transition: how many transitions and layers, and the
    (geometric) mean of the layers' factors."""
    for kind in ds.kind.values.tolist():
        factors = ds["dip"].sel(kind=kind).transpose("layer", "transition").values
        goes_on = factors[:, 1:] == factors[:, :-1]  # the second transition of a dip has the factor of the first
        begins = np.isfinite(factors)
        begins[:, 1:] &= ~goes_on
        for place in np.flatnonzero(begins.any(0)).tolist():
            layers = begins[:, place]
            yield {
                "kind": kind,
                "transition": int(ds.transition[place]),
                "paper_step": int(ds.paper_step[place]),
                "length": 1 + int(goes_on[layers, place : place + 1].any()),
                "factor": float(np.exp(np.log(factors[layers, place]).mean())),
                "layers": int(layers.sum()),
            }


def _alone(curve: xr.DataArray, steps: int) -> ChangePoints | None:
    """None of a curve that has no usable cell."""
    try:
        return change_points(curve, num_steps=steps)
    except ValueError:
        return None


def _together(curves: xr.DataArray, steps: int) -> JointChangePoints | None:
    """None where no layer has enough usable cells."""
    try:
        return joint_change_points(curves, num_steps=steps)
    except ValueError:
        return None


def _of_curve(found: ChangePoints | JointChangePoints | None, transitions: Sequence[int]) -> dict[str, Any]:
    """The probability at each transition, and what is said of the declared changes there."""
    rows = {name: np.full(len(transitions), np.nan) for name in OF_POINTS}
    points: tuple[ChangePoint, ...] = found.points if found else ()
    for point in points:
        for name, row in rows.items():
            row[transitions.index(point.transition)] = getattr(point, name)
    return rows | {"probability": found.probability if found else np.full(len(transitions), np.nan)}


def _dips(found: ChangePoints | None, transitions: Sequence[int]) -> np.ndarray:
    row = np.full(len(transitions), np.nan)
    for dip in found.dips if found else ():
        at = transitions.index(dip.transition)
        row[at : at + dip.length] = dip.factor
    return row


def _numbers(rows: Any, like: xr.DataArray) -> np.ndarray:
    """Rows as an array, also of no kind or layer at all."""
    return np.asarray(rows, np.float64).reshape(like.shape)


def _records(ds: xr.Dataset, layer: int | str, prefix: str) -> Iterator[dict[str, Any]]:
    for place in np.flatnonzero(ds[f"{prefix}posterior"].notnull()).tolist():
        at = ds.isel(transition=place)
        yield {
            "kind": str(ds.kind.item()),
            "layer": layer,
            "transition": int(at.transition),
            "paper_step": int(at.paper_step),
            "sigma": float(at.sigma) if "sigma" in at.coords else float("nan"),
            **{name: float(at[f"{prefix}{name}"]) for name in OF_POINTS},
            "layers_near": int(at.layers_near) if prefix else 1,
        }
