"""The pictures of a report as plain values: paths, images and packed numbers of K, V and A."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from dit_analyzer.report import drawing
from dit_analyzer.show.figures import COLOURS, _curves, _l1


def kinds_of(view: xr.Dataset) -> list[str]:
    return [kind for kind in COLOURS if kind in view.kind]


def relative_means(view: xr.Dataset) -> xr.DataArray:
    """rel_l1, mean over prompts, (kind, layer, transition)."""
    relative = view["rel_l1"].sel(kind=kinds_of(view)).transpose("prompt", "kind", "layer", "transition")
    return relative.mean("prompt", skipna=False)


def maps(view: xr.Dataset, found: xr.Dataset) -> dict[str, Any]:
    """A picture for each kind, on one scale of colours, with the changes of all layers together."""
    means = _curves(_l1(view))["mean"]
    low, high = drawing.limits(means.values)
    return {
        "bar": drawing.colour_bar(low, high),
        "kinds": [
            {
                "kind": kind,
                "image": drawing.picture(means.sel(kind=kind).values, low, high),
                "changes": np.flatnonzero(found["joint_declared"].sel(kind=kind).values).tolist(),
            }
            for kind in kinds_of(view)
        ],
    }


def panels(view: xr.Dataset) -> dict[str, Any]:
    """The paper's small multiples: a panel for each layer."""
    l1 = _l1(view)
    curves = _curves(l1)
    low, high = drawing.limits(curves.to_array().values)
    scale = drawing.Scale(l1.sizes["transition"], low, high)
    last = l1.sizes["transition"] - 1
    ticks = sorted({0, last - last // 2, last})
    constant = (l1 == 0).all(("prompt", "transition"))
    return {
        "size": drawing.PANEL,
        "y": [{"at": scale.y(tick), "label": f"{tick:g}"} for tick in drawing.log_ticks(low, high, 3)],
        "x": [{"at": scale.x(place), "label": last - place} for place in ticks],
        "left": drawing.LEFT,
        "prompts": l1.sizes["prompt"],
        "layers": [
            [_lines(curves.isel(layer=layer).sel(kind=kind), scale) for kind in kinds_of(view)]
            for layer in range(l1.sizes["layer"])
        ],
        "constant": [
            ", ".join(kind.upper() for kind in kinds_of(view) if constant.isel(layer=layer).sel(kind=kind))
            for layer in range(l1.sizes["layer"])
        ],
    }


def _lines(curves: xr.Dataset, scale: drawing.Scale) -> dict[str, str]:
    low, high, mean = (curves[name].values for name in ("low", "high", "mean"))
    spread = "" if np.array_equal(low, high, equal_nan=True) else drawing.band(low, high, scale)
    return {"kind": str(curves.kind.item()), "line": drawing.line(mean, scale), "band": spread}


def numbers(view: xr.Dataset, varied: xr.Dataset | str) -> dict[str, Any]:
    """What the script draws, packed; (kind, layer, transition) each."""
    curves = _curves(_l1(view))
    arrays = {"l1": curves["mean"].values, "rel_l1": relative_means(view).values}
    if view.sizes["prompt"] > 1:
        arrays |= {"low": curves["low"].values, "high": curves["high"].values}
    if not isinstance(varied, str) and "seed" not in varied["cell_cv"].dims:
        cv = varied["cell_cv"].sel(kind=kinds_of(view)).transpose("kind", "layer", "transition")
        arrays["cv"] = cv.values
    return {name: drawing.packed(values, 1 if name in ("low", "high") else 2) for name, values in arrays.items()}
