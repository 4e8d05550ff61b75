"""Where a trace changes least: the block of neighbouring layers and steps with the smallest relative change."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import NDArray

SHARE = 0.25
"""Of all cells that a region has at least."""


@dataclass(frozen=True)
class Region:
    """Consecutive layers and transitions, both ends included, as places; and the means of inside and of all cells."""

    layers: tuple[int, int]
    transitions: tuple[int, int]
    inside: float
    overall: float


def least_changing(view: xr.Dataset, share: float = SHARE) -> Region | None:
    """The region whose mean rel_l1, over prompts and kinds, is smallest, among all that hold this share of the cells.

    A cell without a value for some prompt is in no region. None where no region is large enough.

    Args:
        view: `paper_view`; places of layers are in its order.
    """
    by_kind = view["rel_l1"].transpose("prompt", "kind", "layer", "transition").mean("prompt", skipna=False)
    return least_block(by_kind.mean("kind").values, share)


def least_block(values: NDArray[np.float64], share: float = SHARE) -> Region | None:
    """The same of values (layer, transition)."""
    usable = np.isfinite(values)
    sums = _summed(np.where(usable, values, 0.0))
    counts = _summed(usable.astype(float))
    layers, transitions = values.shape
    height = np.arange(transitions + 1)
    width = height[None, :] - height[:, None]
    best = None
    for top in range(layers):
        for bottom in range(top + 1, layers + 1):
            area = (bottom - top) * width
            inside, there = (of[bottom] - of[top] for of in (sums, counts))
            fits = (area >= share * values.size) & (area > 0) & (there[None, :] - there[:, None] == area)
            mean = np.where(fits, (inside[None, :] - inside[:, None]) / np.maximum(area, 1), np.inf)
            first, last = np.unravel_index(mean.argmin(), mean.shape)
            if mean[first, last] < (best[0] if best else np.inf):
                best = float(mean[first, last]), top, bottom - 1, int(first), int(last) - 1
    if best is None:
        return None
    return Region(best[1:3], best[3:5], best[0], float(values[usable].mean()))


def _summed(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sums of all cells above and left of each corner, (layer + 1, transition + 1)."""
    return np.pad(values, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
