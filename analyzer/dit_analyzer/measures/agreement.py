"""How far what the samples give is from the exact statistics of the same trace."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dit_analyzer.measures.changes import changes
from dit_analyzer.measures.variation import variation


def agreement(sampled: xr.Dataset, exact: xr.Dataset) -> list[dict[str, Any]]:
    """Deviation of the sampled from the exact by kind: relative, |sampled - exact| / exact, of l1 over all cells and of
    the CV over prompts; as a difference, of the probabilities that a new segment begins at a transition.

    Args:
        sampled, exact: `paper_view` of one trace, from either source.

    Returns:
        For each kind and quantity (`l1`; `cv` where there are two prompts or more; `change`, of each layer and
        transition) a record of kind, quantity, cells compared, median and largest deviation (NaN where there is nothing
        to compare: no cell in which both are finite and the exact value of l1 or cv is not 0).

    Raises:
        ValueError: They are not of the same cells.
    """
    if sampled["l1"].sizes != exact["l1"].sizes:
        found = ", ".join(f"{axis} {sampled.sizes[axis]} and {exact.sizes[axis]}" for axis in exact["l1"].dims)
        raise ValueError(f"different cells ({found}); compare the two sources of one trace")
    records = []
    several = exact.sizes["prompt"] > 1
    finite = [view[["l1"]].where(np.isfinite(view["l1"])) for view in (sampled, exact)]
    cvs = [variation(view)["cv"] for view in finite] if several else []
    chances = [changes(view)["probability"] for view in (sampled, exact)]
    for kind in exact.kind.values.tolist():
        pairs = {"l1": [view["l1"].sel(kind=kind) for view in (sampled, exact)]}
        if several:
            pairs["cv"] = [cv.sel(kind=kind) for cv in cvs]
        records += [{"kind": kind, "quantity": name} | deviation(*pair) for name, pair in pairs.items()]
        apart = [np.asarray(chance.sel(kind=kind)) for chance in chances]
        records.append({"kind": kind, "quantity": "change"} | _summary(np.abs(apart[0] - apart[1])))
    return records


def deviation(sampled: xr.DataArray, exact: xr.DataArray) -> dict[str, Any]:
    """Cells in which both are finite and the exact value is not 0; median and largest relative deviation there."""
    one, other = np.asarray(sampled), np.asarray(exact)
    usable = np.isfinite(one) & np.isfinite(other) & (other != 0)
    return _summary(np.abs(one[usable] / other[usable] - 1))


def _summary(apart: NDArray[np.float64]) -> dict[str, Any]:
    apart = apart[np.isfinite(apart)]
    median, largest = (float(np.median(apart)), float(apart.max())) if apart.size else (np.nan, np.nan)
    return {"cells": apart.size, "median": median, "largest": largest}
