"""What the views share: refusals, guidance halves, and means that keep what is missing visible."""

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


def need_sites(trace: Trace, *sites: str) -> None:
    """IncompleteError unless there are two steps, and these sites of the stack."""
    need_steps(trace)
    if not trace.has_stack:
        raise IncompleteError(f"{trace.path}: holds no stack; trace without --no-stack")
    lacking = [site for site in sites if site not in trace.sites()]
    if lacking:
        raise IncompleteError(f"{trace.path}: has no {', '.join(lacking)}: a network without one stack of blocks")


def has_samples(trace: Trace, stream: str) -> bool:
    """Whether values were stored, not statistics alone."""
    return trace.shape(stream, "token")[-1] > 0


def need_samples(trace: Trace, stream: str, what: str) -> None:
    """IncompleteError if the trace holds statistics alone; `what` cannot be had from it."""
    if not has_samples(trace, stream):
        told = f"holds statistics only, no archive, and {what} can be had from samples alone"
        raise IncompleteError(f"{trace.path}: {told}; trace without --stats-only")


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
    errors: dict[str, tuple[xr.DataArray, xr.DataArray | bool]],
) -> xr.Dataset:
    """The variables, each with its unit and formula, and in `notes` what was computed and how the paper differs.

    Args:
        errors: For a variable, the standard error that sampled positions cause in its mean over prompts, kept as
            `NAME_se`; and where it is from exact statistics, kept as the coordinate `NAME_exact`.
    """
    sampled = any(has_samples(trace, stream) for stream in trace.streams)
    attributes = {
        "model": str(trace.run.settings.get("model", "")),
        "num_steps": trace.num_steps,
        "source": source,
        "notes": "; ".join([*notes, *([] if sampled else ["statistics only, no archive"])]),
    }
    view = xr.Dataset(variables, attrs=attributes)
    for name, (unit, formula) in formulas.items():
        view[name].attrs = {"units": unit, "formula": formula}
    for name, (error, exact) in errors.items():
        formula = "of the mean over prompts, from sampled positions: jackknife over groups of them, 0 where exact"
        view[f"{name}_se"] = error.assign_attrs(units=view[name].attrs["units"], formula=formula)
        view = view.assign_coords({f"{name}_exact": exact})
    return view


def no_error(values: xr.DataArray, *axes: str) -> xr.DataArray:
    """0 for what is exact, without prompts and some axes; NaN where there is no value."""
    return values.mean(("prompt", *axes), skipna=False) * 0
