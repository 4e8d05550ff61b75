"""How far views from samples are from those from exact statistics of the same trace."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from dit_analyzer.measures.agreement import deviation


def has_sampled(view: xr.Dataset) -> bool:
    """Whether anything in a view is from samples."""
    return not all(view[f"{name}_exact"].all() for name in _quantities(view))


def deviations_of(sampled: xr.Dataset, exact: xr.Dataset) -> list[dict[str, Any]]:
    """Relative deviation |sampled - exact| / exact of the means over prompts, by quantity.

    Args:
        sampled, exact: One of `dit_analyzer.views.VIEWS`, measured with either source.

    Returns:
        Records of quantity, cells compared, median and largest deviation, and largest standard error relative to the
        sampled mean. Compared is what really is exact in `exact`, finite and not 0, and has an error from samples if
        anything has; there may be nothing.
    """
    return [{"quantity": name} | _record(sampled, exact, name) for name in _quantities(sampled)]


def _record(sampled: xr.Dataset, exact: xr.Dataset, name: str) -> dict[str, Any]:
    axes = [axis for axis in sampled[name].dims if axis not in sampled[f"{name}_se"].dims]
    mean, known = (view[name].mean(axes, skipna=False) for view in (sampled, exact))
    error = sampled[f"{name}_se"]
    telling = error > 0 if (error > 0).any() else True  # a step's cosine with itself is 1 from any sample
    found = deviation(mean, known.where(exact[f"{name}_exact"]).where(telling))
    relative = (error / abs(mean).where(mean != 0)).values
    there = relative[np.isfinite(relative)]
    return found | {"largest_standard_error": float(there.max()) if there.size else np.nan}


def sentence(record: dict[str, Any]) -> str:
    """`rel l1 from samples deviates by median 0.1%, largest 2%`, to two digits."""
    of = f"{record['quantity'].replace('_', ' ')} from samples"
    if not record["cells"]:
        return f"{of}: nothing exact to compare with"
    return f"{of} deviates by median {100 * record['median']:.2g}%, largest {100 * record['largest']:.2g}%"


def _quantities(view: xr.Dataset) -> list[str]:
    return [str(name) for name in view.data_vars if f"{name}_se" in view]
