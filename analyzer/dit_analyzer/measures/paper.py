"""Distances as the paper's recorder saw them (arXiv 2411.13588, section 3).

The paper takes the mean of |x[t + 1] - x[t]| over all elements of one tensor: both guidance halves together, latent
tokens alone in layers with separate streams, text and latent tokens together where one block joins them. It leaves out
cross-attention, and lists spatial layers before temporal ones.
"""

from __future__ import annotations

import numpy as np
import xarray as xr

JOINED = ("single",)
"""Layer types in which the paper measured text and latent tokens as one tensor."""

LEFT_OUT = ("cross", "ff")
ORDER = ("spatial", "temporal")
HALVES = ("cond", "uncond")
KINDS = ("k", "v", "a")
NEEDED = ("l1", "rms", "size", "count", "l1_se")

A_BEFORE_PROJECTION = ("MochiTransformer3DModel",)
"""Classes of which the paper took A before the output projection: the heads' output, kind `o`."""


def paper_view(ds: xr.Dataset) -> xr.Dataset:
    """What the paper averages, from `distances`.

    Of a model that the paper did not study it takes what a self-attention layer takes, with text tokens where the
    layer joins them before. Layers of other streams (audio) and calls beside the two guidance halves are left out.

    Returns:
        Variables of dimensions (prompt, kind, layer, transition): l1, rel_l1 and variance (unbiased, of |d|); count of
        elements; l1_se, where there is one, as if the parts that are joined erred alike, which is a bound; and text_l1
        and text_variance, which the paper recorded for layers with a text stream of their own but never used.
    """
    ds = ds[[name for name in NEEDED if name in ds]]
    ds = ds.isel(layer=_part(_layers(ds)), branch=_part(guidance_halves(ds)))
    ds = _paper_kinds(ds)
    joined = ds.layer_type.isin(JOINED)
    latent = ds.stream == "latent"
    is_text = ds.stream == "text"
    whole = _join(ds, latent | (joined & is_text))
    text = _join(ds, is_text & ~joined)
    return xr.Dataset(
        {
            "l1": whole["l1"],
            "rel_l1": whole["rel_l1"],
            "variance": whole["variance"],
            "count": whole["count"],
            **({"l1_se": whole["l1_se"]} if "l1_se" in whole else {}),
            "text_l1": text["l1"],
            "text_variance": text["variance"],
        },
        attrs=ds.attrs,
    )


def _layers(ds: xr.Dataset) -> list[int]:
    """The layers that the paper looks at, in its order."""
    types = ds.layer_type.values.tolist()
    rank = {name: place for place, name in enumerate(ORDER)}
    of_latent = (ds["count"].sel(stream="latent") if "latent" in ds.stream else ds["count"]).notnull()
    seen = of_latent.any([axis for axis in of_latent.dims if axis != "layer"]).values
    kept = [layer for layer, name in enumerate(types) if name not in LEFT_OUT and seen[layer]]
    return sorted(kept, key=lambda layer: rank.get(types[layer], -1))


def _part(places: list[int]) -> list[int] | slice:
    """The places as a slice where they follow one another, which takes a view of arrays that may be large."""
    whole = range(places[0], places[0] + len(places)) if places else range(0)
    return slice(whole.start, whole.stop) if places == list(whole) else places


def guidance_halves(ds: xr.Dataset) -> list[int]:
    """Places of the guidance halves among the branches; of all where a pipeline names them in another way."""
    names = ds.branch.values.tolist()
    return [i for i, name in enumerate(names) if name in HALVES] or list(range(len(names)))


def _paper_kinds(ds: xr.Dataset) -> xr.Dataset:
    """K, V and A as the paper defines them for this model; A is missing where what it takes was not recorded."""
    kinds = [kind for kind in KINDS if kind in ds.kind]
    if not set(str(ds.attrs.get("transformer", "")).split("+")) & set(A_BEFORE_PROJECTION):
        return ds.isel(kind=_part([ds.kind.values.tolist().index(kind) for kind in kinds]))
    heads = ds.sel(kind=["o"]).assign_coords(kind=["a"]) if "o" in ds.kind else ds.sel(kind=["a"]).where(False)
    return xr.concat([ds.sel(kind=[kind for kind in kinds if kind != "a"]), heads], "kind", data_vars="minimal")


def _join(ds: xr.Dataset, wanted: xr.DataArray) -> dict[str, xr.DataArray]:
    """One tensor of all branches and of the streams that are wanted, (prompt, kind, layer, transition).

    Where a part was recorded but has no finite value, neither has the whole.
    """
    count = ds["count"].where(wanted)
    axes = ("branch", "stream")
    recorded = total = count.sum(axes, min_count=1)
    lost = (count.notnull() & ds["l1"].isnull()).any(axes)
    total = total.where((total > 0) & ~lost)
    l1 = (ds["l1"] * count).sum(axes) / total
    square = (ds["rms"] ** 2 * count).sum(axes) / total
    size = (ds["size"] * count).sum(axes) / total
    with np.errstate(divide="ignore", invalid="ignore"):
        variance = (square - l1**2) * total / (total - 1)
        found = {"l1": l1, "rel_l1": l1 / size, "variance": variance, "count": recorded}
    return found | ({"l1_se": (ds["l1_se"] * count).sum(axes) / total} if "l1_se" in ds else {})
