"""What L2C, T-GATE, PAB and SmoothCache plotted: how much the outputs of layers change between steps.

All take `source`: "exact" for exact statistics wherever they suffice, "sample" for the sampled values alone. Transition
t is from step t to step t + 1, in the order in which the sampler runs. What is from samples has a standard error beside
it, `NAME_se`, of the mean over prompts.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import xarray as xr
from dit_formats.errors import IncompleteError
from dit_formats.reader import Trace
from dit_formats.schema import STEP_STATISTICS

from dit_analyzer.measures.distance import distances
from dit_analyzer.measures.paper import guidance_halves
from dit_analyzer.measures.views.given import (
    LATENT,
    Floats,
    dataset,
    halves,
    has_samples,
    mean_of,
    need_kinds,
    need_steps,
    no_error,
    over_halves,
    sum_of,
)
from dit_analyzer.measures.views.replicates import REPLICATES, Samples, over_prompts, weighted_mean

LAGS = 3
"""Steps apart, at most, that SmoothCache looks at on images."""

LAST = ("cross", "ff")
"""Types that come after the others; PAB and SmoothCache list them so."""

JOINT = ("joint", "single")
LATENT_ONLY = "of joint attention, the latent tokens' output"


def l2c(trace: Trace, source: str = "exact") -> xr.Dataset:
    """Squared change of a layer's output, of attention and of feed-forward networks (L2C, arXiv 2406.01733).

    That paper draws the layers from left to right, and a line for each step; which of its figures that is was not
    checked, and its code draws none.

    Returns:
        square = sum over elements of (f(h)[t + 1] - f(h)[t])^2, mean over guidance halves; (prompt, kind, layer,
        transition), f(h) being the output before gate and residual, of kind `a` or `f`.

    Raises:
        IncompleteError: No attention or no feed-forward output was recorded, or one step only.
    """
    need_kinds(trace, "a", "f")
    ds = _changes(trace, source).sel(stream=LATENT, kind=["a", "f"])
    ds = ds.isel(layer=(ds.layer_type != "cross").values)
    square, error = _with_error(trace, source, ds, _squared_norm)
    notes = ["squared L2 norm over the whole tensor", *over_halves(trace)]
    notes += [LATENT_ONLY] if ds.layer_type.isin(JOINT).any() else []
    notes += ["cross-attention left out: L2C's models have none"] if _has(trace, "cross") else []
    notes += ["single blocks have no feed-forward network of their own"] if _has(trace, "single") else []
    formulas = {"square": ("squared activation", "|| f(h)[t+1] - f(h)[t] ||_2^2")}
    errors = {"square": (error, source == "exact")}
    return dataset(trace, {"square": square}, formulas, source, notes, errors)


def tgate(trace: Trace, source: str = "exact") -> xr.Dataset:
    """Change of cross-attention's output (T-GATE, arXiv 2404.02747), the text stream's where there is none.

    Which of that paper's figures shows it was not checked, and its code draws none.

    Returns:
        distance = sqrt(sum over elements of (c[t + 1] - c[t])^2), mean over layers and guidance halves, (prompt,
        transition); c is softmax(Q K^T / sqrt(d)) V where kind `o` was recorded, else what the module returns.

    Raises:
        IncompleteError: Neither cross-attention nor text tokens; no attention output; one step only.
    """
    need_kinds(trace, "a")
    kind = "o" if "o" in trace.kinds(LATENT) else "a"
    ds = _changes(trace, source)
    cross = _has(trace, "cross")
    if not cross and "text" not in ds.stream:
        raise IncompleteError(f"{trace.path}: has neither cross-attention nor text tokens, so nothing of T-GATE's")
    ds = ds.sel(stream=LATENT if cross else "text", kind=[kind])
    ds = ds.isel(layer=ds.layer_type.isin(("cross",) if cross else JOINT).values)
    distance, error = _with_error(trace, source, ds, _norm)
    what = "cross-attention" if cross else "no cross-attention here: text tokens of joint attention instead"
    where = "heads before the output projection (o)" if kind == "o" else "module's output (a), after its projection"
    shade = "shade: one standard deviation over prompts, where T-GATE shades the variance"
    notes = [what, where, "mean over layers", *over_halves(trace), shade]
    formulas = {"distance": ("activation", "|| c[t+1] - c[t] ||_2")}
    errors = {"distance": (error, source == "exact")}
    return dataset(trace, {"distance": distance}, formulas, source, notes, errors)


def pab(trace: Trace, source: str = "exact") -> xr.Dataset:
    """Mean squared change of attention outputs by type of attention (PAB, arXiv 2408.12588).

    Lines by type over the steps as in the sketch in that project's pages, whose axis has no unit. That it is the mean
    square, and which figure has it, was not checked; its code draws none.

    Returns:
        mse = mean over elements of (a[t + 1] - a[t])^2, mean over layers of a type and guidance halves, (prompt, type,
        transition); cross-attention last.

    Raises:
        IncompleteError: No attention output, or one step only.
    """
    need_kinds(trace, "a")
    ds = _changes(trace, source).sel(stream=LATENT, kind=["a"])
    mse, error = _with_error(trace, source, ds, _mean_square)
    notes = ["mean over the layers of a type", *over_halves(trace)]
    notes += [LATENT_ONLY] if mse.type.isin(JOINT).any() else []
    formulas = {"mse": ("squared activation", "mean (a[t+1] - a[t])^2")}
    return dataset(trace, {"mse": mse}, formulas, source, notes, {"mse": (error, source == "exact")})


def smoothcache(trace: Trace, source: str = "exact") -> xr.Dataset:
    """Relative L1 error of reusing a layer's output of 1, 2 or 3 steps before (SmoothCache, arXiv 2411.10510).

    As its code computes it: both guidance halves as one tensor, relative to the output that would be replaced, mean
    over layers of a type. How the paper draws it was not checked.

    Returns:
        error = sum |L[t] - L[t - lag]| / sum |L[t]| over the elements of both guidance halves, mean over layers of a
        type, (prompt, type, lag, step), NaN at steps before lag; half_width, of the 95 % confidence interval of its
        mean over prompts by Student's t, NaN of one prompt. Lags beyond 1 are from samples; without samples they are
        left out.

    Raises:
        IncompleteError: No attention or no feed-forward output was recorded, or one step only.
    """
    need_kinds(trace, "a", "f")
    need_steps(trace)
    ds = _changes(trace, source).sel(stream=LATENT, kind=["a", "f"])
    parts = [_neighbouring(trace, ds)] if source == "exact" else []
    lags = [lag for lag in range(1 + len(parts), LAGS + 1) if lag < trace.num_steps]
    sampled = has_samples(trace, LATENT)
    parts += [_lagging(trace, ds, lags)] if lags and sampled else []
    error, se = (xr.concat(found, "lag") for found in zip(*parts))
    error = error.transpose("prompt", "type", "lag", "step")
    notes = ["L[t]: output of the step at which the older one is reused; mean over layers of a type"]
    notes += [LATENT_ONLY] if error.type.isin(JOINT).any() else []
    if lags and source == "exact":
        told = " and ".join(map(str, lags))
        notes += [f"k = {told} from samples" if sampled else f"k = {told} not shown: trace without --stats-only"]
    formulas = {
        "error": ("1", "sum |L[t] - L[t-lag]| / sum |L[t]|"),
        "half_width": ("1", "t(0.975, N - 1) s / sqrt(N) over N prompts"),
    }
    errors = {"error": (se.transpose("type", "lag", "step"), (error.lag == 1) & (source == "exact"))}
    return dataset(trace, {"error": error, "half_width": _half_width(error)}, formulas, source, notes, errors)


def _changes(trace: Trace, source: str) -> xr.Dataset:
    """The distances of the guidance halves."""
    ds = distances(trace, source=source)
    return ds.isel(branch=guidance_halves(ds))


def _has(trace: Trace, name: str) -> bool:
    return any(layer.type == name for layer in trace.layers)


def _squared_norm(square: xr.DataArray, count: xr.DataArray) -> xr.DataArray:
    """L2C's, from the mean square of a change and the number of elements."""
    return mean_of(square * count, count.notnull(), ["branch"])


def _norm(square: xr.DataArray, count: xr.DataArray) -> xr.DataArray:
    """T-GATE's."""
    return mean_of(np.sqrt(square * count), count.notnull(), ["branch", "layer"]).isel(kind=0, drop=True)


def _mean_square(square: xr.DataArray, count: xr.DataArray) -> xr.DataArray:
    """PAB's."""
    return _by_type(square, count.notnull(), ["branch"]).isel(kind=0, drop=True)


def _with_error(
    trace: Trace, source: str, ds: xr.Dataset, statistic: Callable[[xr.DataArray, xr.DataArray], xr.DataArray]
) -> tuple[xr.DataArray, xr.DataArray]:
    """A statistic of mean squares and counts; and the error of its mean over prompts, 0 if exact."""
    values = statistic(ds["rms"] ** 2, ds["count"])
    error = no_error(values)
    if source == "exact":
        return values, error
    samples = Samples(trace, ds.stream.item())

    def of_prompt(place: int) -> Floats:
        count = ds["count"].isel(prompt=[place])
        found = statistic(_squares(trace, samples, count, place), count)
        return found.isel(prompt=0).transpose("replicate", *error.dims).values

    _, found = over_prompts(of_prompt, ds.sizes["prompt"])
    return values, error.copy(data=found)


def _squares(trace: Trace, samples: Samples, count: xr.DataArray, place: int) -> xr.DataArray:
    """Mean square of the change of one prompt, as its count, with an axis of replicates before."""
    stream = count.stream.item()
    kinds = [trace.kinds(stream).index(kind) for kind in count.kind.values]
    branches = [trace.branches(stream)[at] for at in halves(trace, stream)]
    square = np.full(
        (REPLICATES, len(branches), *(count.sizes[axis] for axis in ("kind", "layer", "transition"))), np.nan
    )
    for kind, layer in np.ndindex(square.shape[2:4]):
        x, weights = samples.of(place, kinds[kind], int(count.layer[layer]))
        square[:, :, kind, layer] = weighted_mean(weights, np.diff(x) ** 2)
    names = {axis: count[axis].values for axis in ("kind", "layer", "transition")} | {"branch": branches}
    found = xr.DataArray(square, names, ("replicate", "branch", "kind", "layer", "transition"))
    return found.reindex(branch=count.branch).expand_dims(prompt=count.prompt)


def _by_type(values: xr.DataArray, recorded: xr.DataArray, axes: list[str]) -> xr.DataArray:
    """Means over the layers of each type there is, and over further axes, along a new axis `type`."""
    types = _types(recorded)
    which = [recorded.layer_type.values == name for name in types]
    means = [mean_of(values.isel(layer=one), recorded.isel(layer=one), ["layer", *axes]) for one in which]
    return xr.concat(means, "type").assign_coords(type=types).transpose("prompt", "type", ...)


def _types(recorded: xr.DataArray) -> list[str]:
    """Types of the layers of which something was recorded, in the order in which they are shown."""
    seen = recorded.any([axis for axis in recorded.dims if axis != "layer"])
    there = dict.fromkeys(recorded.layer_type.values[seen.values].tolist())
    return sorted(there, key=lambda name: LAST.index(name) if name in LAST else -1)


def _neighbouring(trace: Trace, ds: xr.Dataset) -> tuple[xr.DataArray, xr.DataArray]:
    """SmoothCache's error at lag 1 from exact statistics, (prompt, type, step, lag), and that this has no error."""
    recorded = ds["count"].notnull()
    later = _sizes(trace).isel(step=slice(1, None)).rename(step="transition").assign_coords(transition=ds.transition)
    change = sum_of(ds["l1"] * ds["count"], recorded, ["branch"])
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = change / sum_of(later * ds["count"], recorded, ["branch"])
    error = _by_type(ratio, recorded.any("branch"), ["kind"]).drop_vars(
        ("timestep", "sigma", "sigma_after"), errors="ignore"
    )
    error = error.rename(transition="step").assign_coords(step=ds.transition.values + 1)
    error = error.reindex(step=range(trace.num_steps)).expand_dims(lag=[1])
    return error, no_error(error)


def _lagging(trace: Trace, ds: xr.Dataset, lags: list[int]) -> tuple[xr.DataArray, xr.DataArray]:
    """The same at some lags from samples, (prompt, type, lag, step), and the error of the mean over prompts."""
    recorded = ds["count"].notnull().any(("branch", "transition"))
    samples = Samples(trace, LATENT)

    def of_prompt(place: int) -> Floats:
        there = recorded.isel(prompt=[place])
        names = {"kind": there.kind.values, "layer": there.layer.values}
        ratio = xr.DataArray(_ratios(trace, samples, place, lags), names, ("replicate", "lag", "kind", "layer", "step"))
        found = _by_type(ratio.expand_dims(prompt=there.prompt), there, ["kind"])
        return found.isel(prompt=0).transpose("replicate", "type", "lag", "step").values

    values, error = over_prompts(of_prompt, ds.sizes["prompt"])
    names = {"type": _types(recorded), "lag": lags, "step": range(trace.num_steps)}
    found = xr.DataArray(error, names, ("type", "lag", "step"))
    return xr.DataArray(values, {"prompt": ds.prompt.values} | names, ("prompt", "type", "lag", "step")), found


def _ratios(trace: Trace, samples: Samples, place: int, lags: list[int]) -> Floats:
    """SmoothCache's error of each layer in one prompt, (replicate, lag, kind, layer, step), NaN at steps before lag."""
    kinds, layers = [trace.kinds(LATENT).index(kind) for kind in ("a", "f")], range(len(trace.layers))
    ratio = np.full((REPLICATES, len(lags), len(kinds), len(layers), trace.num_steps), np.nan)
    for kind, layer in np.ndindex(len(kinds), len(layers)):
        x, weights = samples.of(place, kinds[kind], layer)
        size = weighted_mean(weights, abs(x)).sum(1)
        for at, lag in enumerate(lags):
            change = weighted_mean(weights, abs(x[..., lag:] - x[..., :-lag])).sum(1)
            with np.errstate(invalid="ignore", divide="ignore"):
                ratio[:, at, kind, layer, lag:] = change / size[:, lag:]
    return ratio


def _sizes(trace: Trace) -> xr.DataArray:
    """mean |L[t]| at every step, (prompt, branch, kind, layer, step)."""
    kinds = [trace.kinds(LATENT).index(kind) for kind in ("a", "f")]
    places = halves(trace, LATENT)
    steps = dict(zip(STEP_STATISTICS, np.moveaxis(trace.step_sums(LATENT)[:, places][:, :, kinds], -2, 0)))
    with np.errstate(invalid="ignore", divide="ignore"):
        sizes = steps["sum_abs"] / steps["count"]
    names = {"prompt": [prompt.index for prompt in trace.prompts], "kind": ["a", "f"]}
    names["branch"] = [trace.branches(LATENT)[place] for place in places]
    return xr.DataArray(sizes, names, ("prompt", "branch", "kind", "layer", "step"))


def _half_width(values: xr.DataArray) -> xr.DataArray:
    """Half of the 95 % confidence interval of the mean over prompts, NaN of one prompt."""
    from scipy.special import stdtrit

    n = values.sizes["prompt"]
    quantile = stdtrit(n - 1, 0.975) if n > 1 else np.nan
    return quantile * values.std("prompt", ddof=min(n - 1, 1), skipna=False) / np.sqrt(n)
