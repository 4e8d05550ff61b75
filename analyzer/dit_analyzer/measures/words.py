"""The shapes of all curves of a trace in words, and how many layers of a kind have each."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dit_analyzer.measures.shapes import WORDS, shape_of

VOCABULARY = (*WORDS.values(), "decreasing with a sharp rise", "early fluctuation", "late spike", "irregular")
"""All words of `shape_of`."""


def words(view: xr.Dataset) -> xr.Dataset:
    """The word of the curve of each kind and layer, and how far prompts agree on it: `shape_of`.

    Args:
        view: `paper_view`, or any `l1` (prompt, kind, layer, transition).

    Returns:
        Of dimensions (kind, layer): shape, the word; phrase, the moves in one line; agreement, the share of curves over
        resampled prompts that get the same word, NaN of one prompt; noise, of the mean log curve; and note, why there
        is no word, else "". A curve with too few usable transitions has the word "" and NaN.
        (kind, word): layers, how many layers have each word, of all words that there are.
        (kind): mean_shape, mean_phrase, mean_agreement, mean_noise and mean_note of the geometric mean over the layers
        that have a value throughout.
    """
    l1 = view["l1"].transpose("kind", "layer", "prompt", "transition")
    rows = [_row(curves) for layers in l1.values for curves in layers]
    names = _row(np.full((1, l1.sizes["transition"]), np.nan))
    found = {name: np.array([row[name] for row in rows]).reshape(l1.shape[:2]) for name in names}
    counts = np.array([(found["shape"] == word).sum(1) for word in VOCABULARY]).T
    means = [_row(_mean_curve(layers)) for layers in l1.values]
    mean = {f"mean_{name}": ("kind", np.array([row[name] for row in means])) for name in names}
    coordinates = {name: values for name, values in l1.coords.items() if set(values.dims) <= {"kind", "layer"}}
    return xr.Dataset(
        {name: (("kind", "layer"), values) for name, values in found.items()}
        | {"layers": (("kind", "word"), counts)}
        | mean,
        coordinates | {"word": list(VOCABULARY)},
        view.attrs | {"prompts": view.sizes["prompt"]},
    )


def _row(l1: NDArray[np.float64]) -> dict[str, Any]:
    """Of the curves of one kind and layer, (prompt, transition)."""
    try:
        found = shape_of(l1)
    except ValueError as error:
        return {"shape": "", "phrase": "", "agreement": np.nan, "noise": np.nan, "note": str(error)}
    told = {"shape": found.word, "phrase": found.phrase, "agreement": found.agreement, "noise": found.noise}
    return told | {"note": ""}


def _mean_curve(l1: NDArray[np.float64]) -> NDArray[np.float64]:
    """Geometric mean over layers of (layer, prompt, transition), as far as they have a logarithm throughout."""
    usable = (np.isfinite(l1) & (l1 > 0)).all((1, 2))
    return np.exp(np.log(l1[usable]).mean(0)) if usable.any() else np.full(l1.shape[1:], np.nan)
