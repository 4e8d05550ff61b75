"""What L2C, T-GATE, PAB and SmoothCache plotted: how much the outputs of layers change between steps.

All take `source`: "exact" for exact statistics wherever they suffice, "sample" for the sampled values alone. Transition
t is from step t to step t + 1, in the order in which the sampler runs.
"""

from __future__ import annotations

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
    Samples,
    coordinates,
    dataset,
    halves,
    has_samples,
    mean_of,
    need_kinds,
    need_steps,
    over_halves,
    sum_of,
)

LAGS = 3
"""Steps apart, at most, that SmoothCache looks at on images."""

LAST = ("cross", "ff")
"""Types that come after the others; PAB and SmoothCache list them so."""

JOINT = ("joint", "single")
LATENT_ONLY = "of joint attention, the latent tokens' output"


def l2c(trace: Trace, source: str = "exact") -> xr.Dataset:
    """Squared change of a layer's output, of attention and of feed-forward networks (L2C, Figure 3).

    Returns:
        square = sum over elements of (f(h)[t + 1] - f(h)[t])^2, mean over guidance halves; (prompt, kind, layer,
        transition), f(h) being the output before gate and residual, of kind `a` or `f`.

    Raises:
        IncompleteError: No attention or no feed-forward output was recorded, or one step only.
    """
    need_kinds(trace, "a", "f")
    ds = _changes(trace, source).sel(stream=LATENT, kind=["a", "f"])
    ds = ds.isel(layer=(ds.layer_type != "cross").values)
    square = mean_of(ds["rms"] ** 2 * ds["count"], ds["count"].notnull(), ["branch"])
    notes = ["squared L2 norm over the whole tensor", *over_halves(trace)]
    notes += [LATENT_ONLY] if ds.layer_type.isin(JOINT).any() else []
    notes += ["cross-attention left out: L2C's models have none"] if _has(trace, "cross") else []
    notes += ["single blocks have no feed-forward network of their own"] if _has(trace, "single") else []
    formulas = {"square": ("squared activation", "|| f(h)[t+1] - f(h)[t] ||_2^2")}
    return dataset(trace, {"square": square}, formulas, source, notes)


def tgate(trace: Trace, source: str = "exact") -> xr.Dataset:
    """Change of cross-attention's output (T-GATE, Figure 2), the text stream's where there is no cross-attention.

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
    ds = ds.sel(stream=LATENT if cross else "text", kind=kind)
    ds = ds.isel(layer=ds.layer_type.isin(("cross",) if cross else JOINT).values)
    distance = mean_of(np.sqrt(ds["rms"] ** 2 * ds["count"]), ds["count"].notnull(), ["branch", "layer"])
    what = "cross-attention" if cross else "no cross-attention here: text tokens of joint attention instead"
    where = "heads before the output projection (o)" if kind == "o" else "module's output (a), after its projection"
    shade = "shade: one standard deviation over prompts, where T-GATE shades the variance"
    notes = [what, where, "mean over layers", *over_halves(trace), shade]
    formulas = {"distance": ("activation", "|| c[t+1] - c[t] ||_2")}
    return dataset(trace, {"distance": distance}, formulas, source, notes)


def pab(trace: Trace, source: str = "exact") -> xr.Dataset:
    """Mean squared change of attention outputs by type of attention (PAB, arXiv 2408.12588).

    Returns:
        mse = mean over elements of (a[t + 1] - a[t])^2, mean over layers of a type and guidance halves, (prompt, type,
        transition); cross-attention last.

    Raises:
        IncompleteError: No attention output, or one step only.
    """
    need_kinds(trace, "a")
    ds = _changes(trace, source).sel(stream=LATENT, kind="a", drop=True)
    mse = _by_type(ds["rms"] ** 2, ds["count"].notnull(), ["branch"])
    notes = ["mean over the layers of a type", *over_halves(trace)]
    notes += [LATENT_ONLY] if mse.type.isin(JOINT).any() else []
    formulas = {"mse": ("squared activation", "mean (a[t+1] - a[t])^2")}
    return dataset(trace, {"mse": mse}, formulas, source, notes)


def smoothcache(trace: Trace, source: str = "exact") -> xr.Dataset:
    """Relative L1 error of reusing a layer's output of 1, 2 or 3 steps before (SmoothCache, arXiv 2411.10510).

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
    sampled = has_samples(trace, LATENT)
    lags = range(1, min(LAGS, trace.num_steps - 1 if sampled else 1) + 1)
    sizes = _sizes(trace, source)
    error = xr.concat([_errors(trace, source, lag, sizes) for lag in lags], "lag").assign_coords(lag=list(lags))
    error = error.transpose("prompt", "type", "lag", "step")
    notes = ["L[t]: output of the step at which the older one is reused; mean over layers of a type"]
    notes += [LATENT_ONLY] if error.type.isin(JOINT).any() else []
    notes += ["lags 2 and 3 from samples" if sampled else "lags 2 and 3 need samples: trace without --stats-only"]
    formulas = {
        "error": ("1", "sum |L[t] - L[t-lag]| / sum |L[t]|"),
        "half_width": ("1", "t(0.975, N - 1) s / sqrt(N) over N prompts"),
    }
    return dataset(trace, {"error": error, "half_width": _half_width(error)}, formulas, source, notes)


def _changes(trace: Trace, source: str, lag: int = 1) -> xr.Dataset:
    """The distances of the guidance halves."""
    ds = distances(trace, source=source, lag=lag)
    return ds.isel(branch=guidance_halves(ds))


def _has(trace: Trace, name: str) -> bool:
    return any(layer.type == name for layer in trace.layers)


def _by_type(values: xr.DataArray, recorded: xr.DataArray, axes: list[str]) -> xr.DataArray:
    """Means over the layers of each type there is, and over further axes, along a new axis `type`."""
    seen = recorded.any([axis for axis in recorded.dims if axis != "layer"])
    there = dict.fromkeys(values.layer_type.values[seen.values].tolist())
    types = sorted(there, key=lambda name: LAST.index(name) if name in LAST else -1)
    which = [values.layer_type.values == name for name in types]
    means = [mean_of(values.isel(layer=one), recorded.isel(layer=one), ["layer", *axes]) for one in which]
    return xr.concat(means, "type").assign_coords(type=types).transpose("prompt", "type", ...)


def _errors(trace: Trace, source: str, lag: int, sizes: xr.DataArray) -> xr.DataArray:
    """SmoothCache's error at one lag, (prompt, type, step)."""
    ds = _changes(trace, source if lag == 1 else "sample", lag).sel(stream=LATENT, kind=["a", "f"])
    recorded = ds["count"].notnull()
    later = sizes.isel(step=slice(lag, None)).rename(step="transition").assign_coords(transition=ds.transition)
    change = sum_of(ds["l1"] * ds["count"], recorded, ["branch"])
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = change / sum_of(later * ds["count"], recorded, ["branch"])
    error = _by_type(ratio, recorded.any("branch"), ["kind"]).drop_vars(("timestep", "sigma"))
    error = error.rename(transition="step").assign_coords(step=ds.transition.values + lag)
    return error.reindex(step=range(trace.num_steps))


def _sizes(trace: Trace, source: str) -> xr.DataArray:
    """mean |L[t]| at every step, (prompt, branch, kind, layer, step)."""
    kinds = [trace.kinds(LATENT).index(kind) for kind in ("a", "f")]
    if source == "sample":
        sizes = _sampled_sizes(trace, kinds)
    else:
        sums = trace.step_sums(LATENT)[:, halves(trace, LATENT)][:, :, kinds]
        steps = dict(zip(STEP_STATISTICS, np.moveaxis(sums, -2, 0)))
        with np.errstate(invalid="ignore", divide="ignore"):
            sizes = steps["sum_abs"] / steps["count"]
    axes = ("prompt", "branch", "kind", "layer", "step")
    names = coordinates(trace)
    names = {axis: names[axis] for axis in ("prompt", "branch")} | {"kind": ["a", "f"]}
    return xr.DataArray(sizes, names, axes)


def _sampled_sizes(trace: Trace, kinds: list[int]) -> Floats:
    sizes = np.empty((len(trace.prompts), len(halves(trace, LATENT)), len(kinds), len(trace.layers), trace.num_steps))
    samples = Samples(trace, LATENT)
    for prompt, kind, layer in np.ndindex(len(trace.prompts), len(kinds), len(trace.layers)):
        x, weight = samples.of(prompt, kinds[kind], layer)
        sizes[prompt, :, kind, layer] = np.einsum("p,bps->bs", weight, abs(x))
    return sizes


def _half_width(values: xr.DataArray) -> xr.DataArray:
    """Half of the 95 % confidence interval of the mean over prompts, NaN of one prompt."""
    from scipy.special import stdtrit

    n = values.sizes["prompt"]
    quantile = stdtrit(n - 1, 0.975) if n > 1 else np.nan
    return quantile * values.std("prompt", ddof=min(n - 1, 1), skipna=False) / np.sqrt(n)
