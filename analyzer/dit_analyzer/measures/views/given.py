"""What the views share: refusals, guidance halves, means that keep what is missing visible, and sampled activations."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr
from dit_formats.errors import IncompleteError
from dit_formats.reader import Trace
from numpy.typing import NDArray

from dit_analyzer.measures.paper import HALVES

NAMES = {"a": "attention output", "f": "feed-forward output"}
LATENT = "latent"

Floats = NDArray[np.float64]


def need_kinds(trace: Trace, *kinds: str) -> None:
    """IncompleteError unless the latent stream has all of these kinds; it names the option that records them."""
    there = trace.kinds(LATENT) if LATENT in trace.streams else ()
    lacking = [kind for kind in kinds if kind not in there]
    if lacking:
        told = " and no ".join(f"{NAMES[kind]} (kind {kind})" for kind in lacking)
        recorded = ",".join(dict.fromkeys(["k", "v", "a", *kinds]))
        raise IncompleteError(f"{trace.path}: holds no {told}; trace with --kinds {recorded}")


def need_steps(trace: Trace) -> None:
    """IncompleteError if there is one step only."""
    if trace.num_steps < 2:
        raise IncompleteError(f"{trace.path}: has one step, so nothing to compare; trace with --steps 2 or more")


def has_samples(trace: Trace, stream: str) -> bool:
    """Whether values were stored, not statistics alone."""
    return trace.shape(stream, "token")[-1] > 0


def need_samples(trace: Trace, stream: str) -> None:
    """IncompleteError if the trace holds statistics alone."""
    if not has_samples(trace, stream):
        raise IncompleteError(f"{trace.path}: holds statistics only, no samples; trace without --stats-only")


def halves(trace: Trace, stream: str) -> list[int]:
    """Places of the guidance halves among the branches; of all where a pipeline names them in another way."""
    names = trace.branches(stream)
    return [i for i, name in enumerate(names) if name in HALVES] or list(range(len(names)))


def over_halves(trace: Trace) -> list[str]:
    """A note that both guidance halves are in the mean, if there are two."""
    return ["mean over guidance halves"] if len(halves(trace, LATENT)) > 1 else []


def mean_of(values: xr.DataArray, recorded: xr.DataArray, axes: Sequence[str]) -> xr.DataArray:
    """Mean over what was recorded along some axes; NaN where any of that has no value."""
    lost = (recorded & values.isnull()).any(axes)
    return values.where(recorded).mean(axes).where(~lost)


def sum_of(values: xr.DataArray, recorded: xr.DataArray, axes: Sequence[str]) -> xr.DataArray:
    """The same for the sum; NaN where nothing was recorded."""
    lost = (recorded & values.isnull()).any(axes)
    return values.where(recorded).sum(axes).where(~lost & recorded.any(axes))


class Samples:
    """The sampled values of a stream or the stack; where they lie is read once."""

    def __init__(self, trace: Trace, stream: str) -> None:
        self._trace, self._stream, self._branches = trace, stream, halves(trace, stream)
        self._there = trace.geometry(stream, "channel") >= 0
        self._weight = trace.geometry(stream, "weight")

    def of(self, prompt: int, kind: int, layer: int) -> tuple[Floats, Floats]:
        """One kind and layer in the guidance halves, (branch, position, step), and weights (position) that sum to 1.

        Of the stack, `layer` is a site and its kind is 0.
        """
        shard, row = self._trace.rows[prompt]
        kept = self._there[kind, layer]
        with shard:
            cells = [shard.cell(self._stream, row, branch, kind, layer) for branch in self._branches]
        return np.stack(cells)[:, kept].astype(np.float64), self._weight[kind, layer][kept]


def coordinates(trace: Trace, stream: str = LATENT) -> dict[str, object]:
    """Names of prompts, guidance halves, transitions and steps, with timestep and sigma of each step."""
    branches = trace.branches(stream)
    return {
        "prompt": [prompt.index for prompt in trace.prompts],
        "branch": [branches[place] for place in halves(trace, stream)],
        "step": range(trace.num_steps),
        "timestep": ("step", trace.timesteps),
        "sigma": ("step", trace.sigmas),
    }


def dataset(
    trace: Trace,
    variables: dict[str, xr.DataArray],
    formulas: dict[str, tuple[str, str]],
    source: str,
    notes: Sequence[str],
) -> xr.Dataset:
    """The variables, each with its unit and formula, and in `notes` what was computed and how the paper differs."""
    attributes = {
        "model": str(trace.run.settings.get("model", "")),
        "num_steps": trace.num_steps,
        "source": source,
        "notes": "; ".join(notes),
    }
    view = xr.Dataset(variables, attrs=attributes)
    for name, (unit, formula) in formulas.items():
        view[name].attrs = {"units": unit, "formula": formula}
    return view
