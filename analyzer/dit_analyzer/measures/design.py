"""Which prompts of a trace are the same text under several seeds."""

from __future__ import annotations

import numpy as np
import xarray as xr
from numpy.typing import NDArray

ONE_SEED, UNKNOWN, CROSSED = "seed not varied", "seeds not known", "prompts by seeds"
MIXED = "prompts and seeds vary together and cannot be told apart; trace each prompt with --seeds"


def crossed(ds: xr.Dataset) -> tuple[xr.Dataset, str]:
    """The same with prompts told apart by text and seed, (prompt, seed, ...), and the design in words.

    If two texts or more have each of the trace's seeds, and these are two or more, the design is `CROSSED`; texts that
    lack a seed are left out. Images made at once count as seeds, for their noise differs. Otherwise every prompt stays
    as it is, and there is one seed.

    Args:
        ds: Anything with a dimension prompt; its coordinates text, seed and image tell which is which.
    """
    places, design = _places(ds)
    if design != CROSSED:
        return ds.drop_vars("seed", errors="ignore").expand_dims("seed"), design
    labels = [name for name, values in ds.coords.items() if "prompt" in values.dims]
    told = ds["text"].values[places[:, 0]]
    whole = ds.drop_vars(labels).isel(prompt=xr.DataArray(places, dims=("prompt", "seed")))
    return whole.assign_coords(text=("prompt", told), seed=ds["seed"].values[places[0]]), design


def _places(ds: xr.Dataset) -> tuple[NDArray[np.intp], str]:
    """Places of the prompts, (text, seed)."""
    alone = np.arange(ds.sizes["prompt"])[:, None]
    if "text" not in ds.coords or "seed" not in ds.coords:
        return alone, UNKNOWN
    images = ds["image"].values.tolist() if "image" in ds.coords else [0] * len(alone)
    keys = list(zip(ds["text"].values.tolist(), zip(ds["seed"].values.tolist(), images)))
    at = {key: place for place, key in enumerate(keys)}
    seeds = list(dict.fromkeys(seed for _, seed in keys))
    if len(seeds) == 1:
        return alone, ONE_SEED
    whole = [text for text in dict.fromkeys(text for text, _ in keys) if all((text, seed) in at for seed in seeds)]
    if len(whole) < 2:
        return alone, MIXED
    return np.array([[at[text, seed] for seed in seeds] for text in whole]), CROSSED
