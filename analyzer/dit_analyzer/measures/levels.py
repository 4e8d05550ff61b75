"""How far a prompt's curves lie above those of all prompts."""

from __future__ import annotations

import numpy as np
import xarray as xr


def prompt_levels(view: xr.Dataset) -> xr.DataArray:
    """Factor of each prompt's l1 over the geometric mean of all prompts, (prompt).

    The mean of ln l1 runs over the kinds, layers and transitions that every prompt has above 0. NaN without any.
    """
    l1 = view["l1"].transpose("prompt", ...)
    values = l1.values.reshape(l1.sizes["prompt"], -1)
    usable = (np.isfinite(values) & (values > 0)).all(0)
    if not usable.any():
        return xr.DataArray(np.full(len(values), np.nan), {"prompt": l1["prompt"]}, ["prompt"])
    means = np.log(values[:, usable]).mean(1)
    return xr.DataArray(np.exp(means - means.mean()), {"prompt": l1["prompt"]}, ["prompt"])
