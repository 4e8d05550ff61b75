"""The curves of a trace in words: `shape_of` each layer, and of the layers together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xarray as xr

from dit_analyzer.measures.shapes import shape_of

NONE = ""


@dataclass(frozen=True)
class _Word:
    word: str
    phrase: str
    agreement: float


def words(view: xr.Dataset) -> xr.Dataset:
    """What each curve does, and for how many resampled sets of prompts it does the same.

    Args:
        view: `paper_view`.

    Returns:
        (kind, layer): word and phrase, see `Shape`, empty where fewer than four transitions have a value; agreement,
        NaN with one prompt. (kind): mean_word, mean_phrase and mean_agreement of the geometric mean over layers that
        have a value throughout; layers_agree, how many layers have that word.
    """
    l1 = view["l1"].transpose("prompt", "kind", "layer", "transition")
    every = [[_word(l1[:, k, layer]) for layer in range(l1.sizes["layer"])] for k in range(l1.sizes["kind"])]
    means = [_word(_mean_curve(l1[:, k])) for k in range(l1.sizes["kind"])]
    found: dict[str, object] = {}
    for name, kind in (("word", np.str_), ("phrase", np.str_), ("agreement", np.float64)):
        rows = np.array([[getattr(one, name) for one in row] for row in every], kind)
        found[name] = (("kind", "layer"), rows.reshape(l1.shape[1:3]))
        found[f"mean_{name}"] = ("kind", np.array([getattr(one, name) for one in means], kind))
    agree = [sum(one.word == mean.word != NONE for one in row) for row, mean in zip(every, means)]
    found["layers_agree"] = ("kind", np.array(agree, np.int64))
    coordinates = {name: each for name, each in l1.coords.items() if set(each.dims) <= {"kind", "layer"}}
    return xr.Dataset(found, coordinates, view.attrs)


def _word(curve: xr.DataArray) -> _Word:
    """Of (prompt, transition)."""
    try:
        found = shape_of(curve)
    except ValueError:
        return _Word(NONE, NONE, float("nan"))
    return _Word(found.word, found.phrase, found.agreement)


def _mean_curve(l1: xr.DataArray) -> xr.DataArray:
    """Geometric mean over the layers whose every cell is positive and finite; NaN without one."""
    usable = (np.isfinite(l1) & (l1 > 0)).all(("prompt", "transition"))
    return np.exp(np.log(l1.where(usable)).mean("layer"))
