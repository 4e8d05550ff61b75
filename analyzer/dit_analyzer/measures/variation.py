"""How much the curves of different prompts differ: the coefficient of variation."""

from __future__ import annotations

import numpy as np
import xarray as xr


def variation(ds: xr.Dataset) -> xr.Dataset:
    """Coefficient of variation of `l1` over prompts.

    Each cell (layer, transition, ...) has a CV, standard deviation over mean of its values over prompts; a kind has the
    mean of its cells. Cells where some prompt's l1 is zero or not finite are left out and counted: a constant K or V,
    as in cross-attention, has no CV.

    Args:
        ds: `distances` or `paper_view`, with N prompts.

    Returns:
        cell_cv, as l1 without prompt: (1 + 1 / 4N) s / mean, with s of N - 1 degrees of freedom, which is nearly free
        of bias; per kind cv, the mean of the cells; cv_published, as the paper computes it, with N degrees of freedom
        and no correction; median, cells and cells_left_out.

    Raises:
        ValueError: Fewer than two prompts.
    """
    l1 = ds["l1"]
    prompts = l1.sizes["prompt"]
    if prompts < 2:
        raise ValueError("a coefficient of variation needs two prompts or more; trace more with -n")
    usable = (np.isfinite(l1) & (l1 > 0)).all("prompt")
    measured = l1.notnull().any("prompt")
    ratio = (l1.std("prompt", ddof=0) / l1.mean("prompt")).where(usable)
    cell = ratio * np.sqrt(prompts / (prompts - 1)) * (1 + 1 / (4 * prompts))
    rest = [axis for axis in ratio.dims if axis != "kind"]
    return xr.Dataset(
        {
            "cell_cv": cell,
            "cv": cell.mean(rest),
            "cv_published": ratio.mean(rest),
            "median": cell.median(rest),
            "cells": usable.sum(rest),
            "cells_left_out": (measured & ~usable).sum(rest),
        },
        attrs=ds.attrs | {"prompts": prompts},
    )
