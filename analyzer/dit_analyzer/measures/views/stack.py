"""What MagCache and TeaCache plotted, and what Delta-DiT reuses: changes of the states between the blocks."""

from __future__ import annotations

import numpy as np
import xarray as xr
from dit_formats.errors import IncompleteError
from dit_formats.reader import Trace
from dit_formats.schema import STACK
from numpy.typing import NDArray

from dit_analyzer.measures.signals import signals
from dit_analyzer.measures.views.given import Floats, Samples, coordinates, dataset, halves, need_samples, need_steps

TEACACHE = {"model_input": "noisy input", "modulated": "modulated input", "prediction": "model output"}
"""Sites, and TeaCache's names for them."""

DEGREE = 4
"""Of the polynomial by which TeaCache predicts the change of the output from that of the modulated input."""

GROUPS = {"front": ("input", "middle"), "rear": ("middle", "last")}
"""Where each group of blocks begins and ends."""

FEW = 256
"""Positions common to two sites, below which nothing is estimated from them."""


def magcache(trace: Trace, source: str = "exact") -> xr.Dataset:
    """How the residual of all blocks changes (MagCache, Figure 1).

    Returns:
        ratio = mean over tokens of |r[t + 1]| / |r[t]|; ratio_std, its standard deviation over tokens; distance =
        1 - cosine of r[t] and r[t + 1] as wholes; (prompt, branch, transition), r being the last block's output less
        the first one's input, |.| the L2 norm over channels.

    Raises:
        IncompleteError: No stack, one step only, or source "sample": the norm of a token takes all of its channels.
    """
    _need_sites(trace, "residual")
    if source == "sample":
        raise IncompleteError(f"{trace.path}: norms of whole tokens are not in samples; leave out --source sample")
    ds = signals(trace).sel(site="residual", drop=True).isel(branch=halves(trace, STACK))
    variables = {"ratio": ds["ratio_mean"], "ratio_std": ds["ratio_std"], "distance": 1 - ds["cosine"]}
    notes = ["r: output of the last block less input of the first, latent tokens", "cosine distance of whole tensors, "
             "where MagCache takes its mean over tokens"]  # fmt: skip
    formulas = {
        "ratio": ("1", "mean over tokens of |r[t+1]| / |r[t]|"),
        "ratio_std": ("1", "standard deviation over tokens of |r[t+1]| / |r[t]|"),
        "distance": ("1", "1 - cos(r[t], r[t+1])"),
    }
    return dataset(trace, variables, formulas, source, notes)


def teacache(trace: Trace, source: str = "exact") -> xr.Dataset:
    """Relative L1 change of the network's inputs and output, and the polynomial between them (TeaCache, section 3).

    Returns:
        rel_l1 = mean |x[t + 1] - x[t]| / mean |x[t]| (equation 4), (prompt, branch, site, transition), of the sites
        model_input, modulated and prediction; coefficient (power), of the polynomial of degree 4 that gives the
        prediction's rel_l1 from the modulated input's by least squares over all prompts, guidance halves and
        transitions; r_squared of that fit. Both are NaN where there are no more different points than coefficients.

    Raises:
        IncompleteError: No stack or not these sites; no samples where they are asked for; one step only.
    """
    _need_sites(trace, *TEACACHE)
    sites = list(TEACACHE)
    if source == "sample":
        rel_l1 = xr.concat([_offset(trace, None, site)["rel_l1"] for site in sites], "site").assign_coords(site=sites)
        rel_l1 = rel_l1.transpose("prompt", "branch", "site", "transition")
    else:
        rel_l1 = signals(trace)["rel_l1"].sel(site=sites).isel(branch=halves(trace, STACK))
    coefficients, r_squared = _fit(*(rel_l1.sel(site=site).values.ravel() for site in ("modulated", "prediction")))
    variables = {
        "rel_l1": rel_l1,
        "coefficient": xr.DataArray(coefficients, {"power": range(DEGREE + 1)}, ("power",)),
        "r_squared": xr.DataArray(r_squared),
    }
    notes = ["latent tokens", "the timestep embedding alone, which TeaCache drew too, is not recorded", "least squares "
             "over all points, not TeaCache's published coefficients"]  # fmt: skip
    formulas = {
        "rel_l1": ("1", "mean |x[t+1] - x[t]| / mean |x[t]|"),
        "coefficient": ("1", "y = sum over power of coefficient x^power"),
        "r_squared": ("1", "1 - residual / total sum of squares"),
    }
    return dataset(trace, variables, formulas, source, notes)


def delta_dit(trace: Trace, source: str = "exact") -> xr.Dataset:
    """How the offsets of the front and the rear half of the blocks change, which Delta-DiT reuses (section 4).

    Halves of the blocks are from samples whatever `source` says: exact statistics are of states, not of differences.

    Returns:
        rel_l1 = mean |D[t + 1] - D[t]| / mean |D[t]|, and cosine of D[t] and D[t + 1], (prompt, branch, group,
        transition); D is what a group of blocks (front, rear, all) gives out less what goes in.

    Raises:
        IncompleteError: No stack or not these sites; no samples, or at different places; one step only.
    """
    _need_sites(trace, "input", "middle", "last", "residual")
    found = [_offset(trace, *ends) for ends in GROUPS.values()]
    exact = source == "exact"
    whole = signals(trace).sel(site="residual", drop=True).isel(branch=halves(trace, STACK)) if exact else None
    found.append(whole[["rel_l1", "cosine"]] if exact else _offset(trace, None, "residual"))
    ds = xr.concat(found, "group").assign_coords(group=[*GROUPS, "all"])
    ds = ds.transpose("prompt", "branch", "group", "transition")
    notes = [
        "D: output less input of a group of blocks; front and rear: before and after half of the blocks, latent tokens",
        "Delta-DiT showed images with blocks skipped, not this curve",
        "front and rear from samples",
    ]
    formulas = {
        "rel_l1": ("1", "mean |D[t+1] - D[t]| / mean |D[t]|"),
        "cosine": ("1", "cos(D[t], D[t+1])"),
    }
    return dataset(trace, {"rel_l1": ds["rel_l1"], "cosine": ds["cosine"]}, formulas, source, notes)


def _need_sites(trace: Trace, *sites: str) -> None:
    need_steps(trace)
    if not trace.has_stack:
        raise IncompleteError(f"{trace.path}: holds no stack; trace without --no-stack")
    lacking = [site for site in sites if site not in trace.sites()]
    if lacking:
        raise IncompleteError(f"{trace.path}: has no {', '.join(lacking)}: a network without one stack of blocks")


def _offset(trace: Trace, before: str | None, after: str) -> xr.Dataset:
    """rel_l1 and cosine over transitions of `after` less `before`, from samples: (prompt, branch, transition)."""
    need_samples(trace, STACK)
    places = [trace.sites().index(site) for site in (before, after) if site]
    rows, weight = _common(trace, places)
    samples, prompts = Samples(trace, STACK), range(len(trace.prompts))
    values = np.stack([_of_prompt(samples, prompt, places, rows, weight) for prompt in prompts], axis=1)
    names = coordinates(trace, STACK)
    axes = ("prompt", "branch", "transition")
    kept = {axis: names[axis] for axis in ("prompt", "branch")} | {"transition": range(trace.num_steps - 1)}
    return xr.Dataset({name: (axes, array) for name, array in zip(("rel_l1", "cosine"), values)}, kept)


def _of_prompt(samples: Samples, prompt: int, places: list[int], rows: NDArray[np.int64], weight: Floats) -> Floats:
    """rel_l1 and cosine, (2, branch, transition)."""
    states = [samples.of(prompt, 0, place)[0][:, row] for place, row in zip(places, rows)]
    x = states[-1] - states[0] if len(states) > 1 else states[0]
    square = np.einsum("p,bps->bs", weight, x**2)
    with np.errstate(invalid="ignore", divide="ignore"):
        rel_l1 = np.einsum("p,bps->bs", weight, abs(np.diff(x))) / np.einsum("p,bps->bs", weight, abs(x[..., :-1]))
        product = np.einsum("p,bps->bs", weight, x[..., 1:] * x[..., :-1])
        return np.stack([rel_l1, product / np.sqrt(square[:, 1:] * square[:, :-1])])


def _common(trace: Trace, places: list[int]) -> tuple[NDArray[np.int64], Floats]:
    """The positions at which all of some sites were sampled: their rows (site, position) and weights (position).

    Where the sites were sampled apart, a position is common with the product of its probabilities, so it weighs the
    product of its weights.

    Raises:
        IncompleteError: Too few for an estimate.
    """
    token, channel, weight = (trace.geometry(STACK, name)[0, places] for name in ("token", "channel", "weight"))
    kept = [np.flatnonzero(row >= 0) for row in channel]
    flat = [t[k] * (channel.max() + 1) + c[k] for t, c, k in zip(token, channel, kept)]
    common = flat[0]
    for other in flat[1:]:
        common = np.intersect1d(common, other)
    apart = any(len(common) < len(one) for one in flat)
    if apart and len(common) < FEW:
        told = " and ".join(trace.sites()[place] for place in places)
        what = f"{trace.path}: {told} were sampled at different places, {len(common)} in common"
        raise IncompleteError(f"{what}; trace again with a larger --sample")
    rows = np.stack([np.argsort(one)[np.searchsorted(np.sort(one), common)] for one in flat])
    weights = np.stack([w[k][row] for w, k, row in zip(weight, kept, rows)])
    joint = weights.prod(0) if apart else weights[0]
    return rows, joint / joint.sum()


def _fit(x: Floats, y: Floats) -> tuple[Floats, float]:
    """Coefficients of the polynomial from power 0 up, and R^2."""
    finite = np.isfinite(x) & np.isfinite(y)
    x, y = x[finite], y[finite]
    spread = ((y - y.mean()) ** 2).sum() if len(y) else 0.0
    if len(np.unique(x)) <= DEGREE + 1 or spread == 0:
        return np.full(DEGREE + 1, np.nan), np.nan
    polynomial = np.polynomial.Polynomial.fit(x, y, DEGREE)
    coefficients = np.zeros(DEGREE + 1)
    found = polynomial.convert().coef
    coefficients[: len(found)] = found
    return coefficients, float(1 - ((y - polynomial(x)) ** 2).sum() / spread)
