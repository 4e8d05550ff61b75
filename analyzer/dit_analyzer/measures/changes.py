"""Where the curves of a trace break: of every kind and layer, and of the layers of a kind together, in one Dataset."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dit_analyzer.measures.changepoints import ChangePoint, ChangePoints, Dip, change_points
from dit_analyzer.measures.curve import Axis, unusable
from dit_analyzer.measures.jointly import joint_change_points

JOINT = "joint_"
ALL = "all"
"""What stands for the layer of a change of all layers together."""
NEAR = 1
"""Transitions by which the change of a layer may be off another and count as the same."""
MARKS = ("posterior", "low", "high", "jump", "slope")
"""What is told of a declared change, as in `ChangePoint`."""


def changes(view: xr.Dataset) -> xr.Dataset:
    """Change points and dips of the mean over prompts: `change_points`, and per kind `joint_change_points`.

    Args:
        view: `paper_view`, or any `l1` (prompt, kind, layer, transition) with num_steps among its attributes.

    Returns:
        Of dimensions (kind, layer, transition): probability that a new segment begins there; declared, whether a change
        is; and where one is, else NaN, its posterior, low, high (both transitions), jump and slope. dip_factor and
        dip_length stand at the first transition of a dip. reason says why a transition took no part, else "".
        (kind, layer): any, the probability that there is a change at all, and note, what must be known about the curve.
        The same of all layers together with `joint_` before the name, of dimensions (kind, transition) and (kind),
        without dips, which are not looked for; and joint_layers, how many layers have a declared change within 1 of
        each transition; joint_effective_layers. Where a curve or a kind has too few usable L1 all is NaN, and its note
        says so. Coordinates: paper_step, besides those of the view.
    """
    l1 = view["l1"].transpose("prompt", "kind", "layer", "transition").mean("prompt", skipna=False)
    sigma = view["sigma"].values if "sigma" in view.coords and view["sigma"].dims == ("transition",) else None
    numbers = view["transition"].values.astype(np.int64)
    axis = Axis(numbers, int(view.attrs["num_steps"]), sigma)
    alone = [_alone(curve, axis) for curves in l1.values for curve in curves]
    together = [_together(curves, axis) for curves in l1.values]
    without = np.full((1, len(numbers)), np.nan)  # tells the names where there is no kind or layer
    found = _stacked(alone or [_alone(without[0], axis)], l1.shape, ("kind", "layer", "transition"))
    joint = _stacked(together or [_together(without, axis)], l1.shape[::2], ("kind", "transition"), JOINT)
    near = _near(found["declared"][1]).sum(1)
    coordinates = {**l1.coords, "paper_step": ("transition", axis.num_steps - 2 - numbers)}
    attributes = view.attrs | {"prompts": view.sizes["prompt"]}
    return xr.Dataset(found | joint | {f"{JOINT}layers": (("kind", "transition"), near)}, coordinates, attributes)


def points(found: xr.Dataset) -> list[dict[str, Any]]:
    """The changes that `changes` declares, a record each: per kind those of all layers together, then layer by layer.

    `transition` t is the pair of from_step t and to_step t + 1, as the sampler counts; paper_step, as the paper counts
    down, is to_step; sigma is the noise level of from_step. low and high are transitions. `layers` of `of_layers`,
    those with curves long enough to tell, have a change within 1 of it.
    """
    records = []
    for kind in found["kind"].values.tolist():
        of_kind = found.sel(kind=kind)
        names = [str(name) for name in found.data_vars if str(name).startswith(JOINT)]
        joint = of_kind[names].rename({name: name.removeprefix(JOINT) for name in names})
        told = {"of_layers": int(of_kind["any"].notnull().sum())}
        records += [_record(kind, ALL, joint, place, joint, told) for place in _declared(joint)]
        for at, layer in enumerate(found["layer"].values.tolist()):
            one = of_kind.isel(layer=at)
            records += [_record(kind, layer, one, place, joint, told) for place in _declared(one)]
    return records


def dips(found: xr.Dataset) -> list[dict[str, Any]]:
    """The dips in `changes`, and spikes, whose factor is above 1: a record each, as those of `points`."""
    there = np.argwhere(found["dip_factor"].notnull().values)
    records = []
    for kind, layer, place in there.tolist():
        one = found.isel(kind=kind, layer=layer, transition=place)
        told = {"length": int(one["dip_length"]), "factor": float(one["dip_factor"])}
        records.append({"kind": one["kind"].item(), "layer": one["layer"].item()} | _names(one) | told)
    return records


def _alone(l1: NDArray[np.float64], axis: Axis) -> dict[str, Any]:
    """What is told of one curve, by name: arrays along its transitions, and single values."""
    why = unusable(l1, axis)
    try:
        one = change_points(_curve(l1, axis), axis.sigma, axis.num_steps)
    except ValueError as error:
        one = ChangePoints(np.nan, np.full(len(l1), np.nan), note=str(error))
    for dip in one.dips:
        why |= dict.fromkeys(range(dip.transition, dip.transition + dip.length), "a dip")
    reason = np.array([why.get(int(transition), "") for transition in axis.transitions], str)
    told = {"reason": reason, "any": one.any, "note": one.note}
    return {"probability": one.probability} | _marks(one.points, axis) | _dips(one.dips, axis) | told


def _together(l1: NDArray[np.float64], axis: Axis) -> dict[str, Any]:
    """The same of the curves of one kind, (layer, transition)."""
    try:
        joint = joint_change_points(_curve(l1, axis), axis.sigma, axis.num_steps)
    except ValueError as error:
        told = {"any": np.nan, "effective_layers": np.nan, "note": str(error)}
        return {"probability": np.full(l1.shape[1], np.nan)} | _marks((), axis) | told
    out = len(joint.left_out)
    note = f"{out} of {len(l1)} layers took no part: {next(iter(joint.left_out.values()))}" if out else ""
    told = {"any": joint.any, "effective_layers": joint.effective_layers, "note": note}
    return {"probability": joint.probability} | _marks(joint.points, axis) | told


def _curve(l1: NDArray[np.float64], axis: Axis) -> xr.DataArray:
    dims = ("layer", "transition")[2 - l1.ndim :]
    return xr.DataArray(l1, {"transition": axis.transitions}, dims)


def _marks(declared: Sequence[ChangePoint], axis: Axis) -> dict[str, Any]:
    """declared and `MARKS` along the transitions."""
    marks = {name: _along(axis, declared, name) for name in MARKS}
    return {"declared": np.isin(axis.transitions, [point.transition for point in declared])} | marks


def _dips(found: Sequence[Dip], axis: Axis) -> dict[str, Any]:
    return {f"dip_{name}": _along(axis, found, name) for name in ("factor", "length")}


def _along(axis: Axis, found: Iterable[ChangePoint | Dip], name: str) -> NDArray[np.float64]:
    """One attribute of what was found, where it was; NaN elsewhere."""
    values = np.full(len(axis.transitions), np.nan)
    for one in found:
        values[axis.transitions == one.transition] = getattr(one, name)
    return values


def _stacked(
    rows: Sequence[dict[str, Any]], shape: tuple[int, ...], dims: tuple[str, ...], before: str = ""
) -> dict[str, Any]:
    """Variables from rows in order of all dims but the last, along which some values of a row go."""
    found = {}
    for name in rows[0]:
        values = np.array([row[name] for row in rows])[: math.prod(shape[:-1])]
        axes = len(dims) + values.ndim - 2
        found[f"{before}{name}"] = (dims[:axes], values.reshape(shape[:axes]))
    return found


def _near(declared: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Whether a change is within `NEAR` of each transition, (kind, layer, transition)."""
    padded = np.pad(declared, ((0, 0), (0, 0), (NEAR, NEAR)))
    count = declared.shape[-1]
    return np.any([padded[..., shift : shift + count] for shift in range(2 * NEAR + 1)], axis=0)


def _declared(one: xr.Dataset) -> list[int]:
    return np.flatnonzero(one["declared"].values).tolist()


def _record(
    kind: str, layer: int | str, one: xr.Dataset, place: int, joint: xr.Dataset, told: dict[str, Any]
) -> dict[str, Any]:
    point = one.isel(transition=place)
    marks = {name: float(point[name]) for name in MARKS} | {name: int(point[name]) for name in ("low", "high")}
    near = {"layers": int(joint["layers"][place])}
    return {"kind": kind, "layer": layer} | _names(point) | marks | near | told


def _names(point: xr.Dataset) -> dict[str, Any]:
    """What a transition is called."""
    transition = int(point["transition"])
    sigma = float(point["sigma"]) if "sigma" in point.coords else None
    steps = {"transition": transition, "from_step": transition, "to_step": transition + 1}
    return steps | {"paper_step": int(point["paper_step"]), "sigma": sigma}
