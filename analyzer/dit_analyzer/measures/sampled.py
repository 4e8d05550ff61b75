"""Standard errors of what is read from sampled tensors.

The same positions are sampled at every step and prompt, so their error is common to all prompts and does not average
out. The error of one activation has a formula (`positions.Strata`), and comes with `distances` as l1_se; so has that of
a mean over prompts, and of the ratio of two steps (`position_errors`). Any other statistic of a trace, a CV, has the
jackknife: leave out one of 20 groups of positions all over the trace.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import xarray as xr
from dit_formats.reader import Trace

from dit_analyzer.measures.curve_errors import answer_of_layer
from dit_analyzer.measures.distance import AXES, Asked, distances
from dit_analyzer.measures.groups import GROUPS, LEFT_OUT_VARIABLES, answer_by_group
from dit_analyzer.measures.jackknife import Estimate, from_replicates


def left_out_positions(
    trace: Trace, *, groups: int = GROUPS, lag: int = 1, prompts: Sequence[int] | None = None, dask: Any = None
) -> xr.Dataset:
    """What `distances(trace, source="sample")` gives with one group of positions left out, for each group.

    Feed it to what `distances` feeds, `paper_view` for one. FLUX at 28 steps takes 8 MB of memory a prompt.

    Returns:
        l1, rel_l1, rms, size, speed and count, of dimensions (group, prompt, branch, stream, kind, layer, transition).
        Where all elements are sampled, all groups are equal.

    Raises:
        ValueError: Fewer than two groups, or a lag that the trace cannot give.
        IncompleteError: The trace has a single step, or holds no samples.
    """
    if groups < 2:
        raise ValueError(f"{groups} groups: leave one out of two or more")
    asked = Asked(trace, "sample", lag, prompts)
    counts = np.empty((len(asked.rows), *asked.question.shape))
    values = {name: np.empty((groups, *counts.shape)) for name in LEFT_OUT_VARIABLES}
    for places, (found, counted) in asked.mapped(partial(answer_by_group, groups), dask):
        counts[places] = counted
        for name, array in zip(LEFT_OUT_VARIABLES, found):
            values[name][:, places] = array
    ds = asked.dataset(values, ("group", *AXES)).assign(count=(AXES, counts))
    step = xr.DataArray(asked.question.sigma_steps, dims="transition")
    with np.errstate(invalid="ignore", divide="ignore"):
        speed = ds["l1"] / step.where((step > 0) & np.isfinite(step))
        return ds.assign(rel_l1=ds["l1"] / ds["size"], speed=speed)


def position_errors(trace: Trace, *, lag: int = 1, dask: Any = None) -> xr.Dataset:
    """Standard errors of means over prompts that come from sampled positions, for `mean_curves`.

    By the formula of one activation, of each position's mean over prompts. It is closer than the jackknife, whose
    groups of few positions are not as even over channels as the whole sample; but it is of one stream and branch.

    Returns:
        Of dimensions (branch, stream, kind, layer, transition): se, and ratio_se, that of the ratio to the transition
        before, relative to it.

    Raises:
        ValueError, IncompleteError: As `distances` of samples.
    """
    asked = Asked(trace, "sample", lag, None)
    branches, streams, kinds, layers, transitions = asked.question.shape
    values = np.full((2, branches, streams, kinds, layers, transitions), np.nan)
    for layer, found in asked.by_layer(answer_of_layer, dask):
        values[:, :, :, :, layer] = found
    return asked.dataset(dict(zip(("se", "ratio_se"), values)), AXES[1:])


def position_error(
    trace: Trace,
    statistic: Callable[[xr.Dataset], Any],
    transform: str = "none",
    *,
    groups: int = GROUPS,
    lag: int = 1,
    dask: Any = None,
) -> Estimate:
    """Any statistic of the sampled tensors, with the error that comes from sampling positions.

    By `jackknife` over groups of positions, spread over channels, with Student's t of groups - 1; it holds what a
    finite sample biases the statistic by. It does not hold the error of having some prompts and not others.

    Args:
        statistic: From what `distances(trace, source="sample")` gives, less l1_se and cosine, to a number or an array.
        transform: Scale of the interval, see `jackknife.SCALES`.

    Raises:
        ValueError, IncompleteError: As `left_out_positions`.

    Example:
        position_error(trace, lambda ds: variation(paper_view(ds))["cv"], "log")
    """
    without = left_out_positions(trace, groups=groups, lag=lag, dask=dask)
    whole = distances(trace, source="sample", lag=lag, dask=dask).drop_vars(["l1_se", "cosine"])
    rest = [np.asarray(statistic(without.isel(group=group)), float) for group in range(groups)]
    return from_replicates(np.asarray(statistic(whole), float), np.array(rest), transform, bias=True)


def mean_curves(ds: xr.Dataset, positions: xr.Dataset | None = None) -> xr.Dataset:
    """Means of `l1` over P prompts, and ratios of a transition to the one before, with their standard errors.

    SE^2 = s^2 / P + SE_pos^2: s is the standard deviation over prompts, SE_pos the error that sampled positions cause,
    which is common to all prompts. The ratio's is of l1[t] / mean[t] - l1[t - 1] / mean[t - 1], where what prompts or
    positions do to all steps alike cancels.

    Args:
        ds: `distances` or `paper_view`.
        positions: Where SE_pos is from: `position_errors` for `distances`, or for either `left_out_positions`, seen in
            the same way as ds. Without it exact distances have no SE_pos; sampled ones the mean of l1_se over prompts,
            which is a bound, and of a ratio none is known.

    Returns:
        Variables as l1 without prompt: l1, se, se_prompts and se_positions; ratio = l1[t] / l1[t - 1], NaN at the
        first, ratio_se, and its parts ratio_se_prompts and ratio_se_positions, relative to the ratio. With one prompt
        se_prompts is NaN, and so is se.
    """
    l1 = ds["l1"]
    mean = l1.mean("prompt", skipna=False)
    ratio, of_ratio = _ratio(mean), _ratio_change(l1, mean)
    if positions is None:
        se, ratio_se = _known_error(ds)
    elif "group" in positions.dims:
        moved = positions["l1"].mean("prompt", skipna=False)
        se, ratio_se = _jackknife(moved, mean, "none"), _jackknife(_ratio(moved), ratio, "log")
    else:
        se, ratio_se = positions["se"], positions["ratio_se"]
    prompts = l1.sizes["prompt"]
    of_mean, of_ratios = (
        x.std("prompt", ddof=1, skipna=False) / np.sqrt(prompts) if prompts > 1 else mean * np.nan
        for x in (l1, of_ratio)
    )
    return xr.Dataset(
        {
            "l1": mean,
            "se": np.sqrt(of_mean**2 + se**2),
            "se_prompts": of_mean,
            "se_positions": se,
            "ratio": ratio,
            "ratio_se": np.sqrt(of_ratios**2 + ratio_se**2),
            "ratio_se_prompts": of_ratios,
            "ratio_se_positions": ratio_se,
        },
        attrs=ds.attrs | {"prompts": prompts},
    )


def _ratio(mean: xr.DataArray) -> xr.DataArray:
    """To the transition before; not a number where that is 0."""
    before = mean.shift(transition=1)
    return mean / before.where(before > 0)


def _ratio_change(l1: xr.DataArray, mean: xr.DataArray) -> xr.DataArray:
    share = l1 / mean.where(mean > 0)
    return share - share.shift(transition=1)


def _known_error(ds: xr.Dataset) -> tuple[xr.DataArray, xr.DataArray]:
    """Bound on the error of the mean that positions cause, and of the ratio, from `l1_se` alone."""
    nothing = ds["l1"].isel(prompt=0, drop=True)
    if "l1_se" not in ds:
        return nothing * np.nan, nothing * np.nan
    bound = ds["l1_se"].mean("prompt", skipna=False)
    return bound, bound.where(bound == 0)


def _jackknife(without: xr.DataArray, whole: xr.DataArray, transform: str) -> xr.DataArray:
    without = without.transpose("group", *whole.dims)
    return whole.copy(data=from_replicates(whole.values, without.values, transform).error)
