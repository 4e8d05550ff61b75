"""What MagCache and TeaCache plotted, and what Delta-DiT reuses: changes of the states between the blocks."""

from __future__ import annotations

import numpy as np
import xarray as xr
from dit_formats.errors import IncompleteError
from dit_formats.reader import Trace
from dit_formats.schema import STACK
from numpy.typing import NDArray

from dit_analyzer.measures.signals import signals
from dit_analyzer.measures.views.given import (
    Floats,
    coordinates,
    dataset,
    halves,
    need_samples,
    need_sites,
    no_error,
)
from dit_analyzer.measures.views.replicates import Samples, over_prompts, replicated_weights, weighted_mean

TEACACHE = {"model_input": "noisy input", "modulated": "modulated input", "prediction": "model output"}
"""Sites, and TeaCache's names for them."""

DEGREE = 4
"""Of the polynomial by which TeaCache predicts the change of the output from that of the modulated input."""

GROUPS = {"front": ("input", "middle"), "rear": ("middle", "last")}
"""Where each group of blocks begins and ends."""

FEW = 256
"""Positions common to two sites, below which nothing is estimated from them."""


def magcache(trace: Trace, source: str = "exact") -> xr.Dataset:
    """How the residual of all blocks changes (MagCache, arXiv 2506.09045).

    Formulas as in its code, three panels over the steps as on its project page (there a line for each prompt, and steps
    in percent). Which figure of the paper that is was not checked.

    Returns:
        ratio = mean over tokens of |r[t + 1]| / |r[t]|; ratio_std, its standard deviation over tokens; distance =
        1 - cosine of r[t] and r[t + 1] as wholes; (prompt, branch, transition), r being the last block's output less
        the first one's input, |.| the L2 norm over channels. From samples the ratio is of whole tensors, for the norm
        of a token takes all of its channels, and ratio_std is absent.

    Raises:
        IncompleteError: No stack, or one step only; no samples where they are asked for.
    """
    need_sites(trace, "residual")
    notes = ["r: output of the last block less input of the first, latent tokens", "cosine distance of whole tensors, "
             "where MagCache takes its mean over tokens"]  # fmt: skip
    formulas = {
        "ratio": ("1", "mean over tokens of |r[t+1]| / |r[t]|"),
        "ratio_std": ("1", "standard deviation over tokens of |r[t+1]| / |r[t]|"),
        "distance": ("1", "1 - cos(r[t], r[t+1])"),
    }
    if source == "sample":
        found, error = _changes(trace, {"all": (None, "residual")}, ("ratio", "cosine"))
        found, error = (ds.isel(group=0, drop=True) for ds in (found, error))
        variables = {"ratio": found["ratio"], "distance": 1 - found["cosine"]}
        errors = {"ratio": (error["ratio"], False), "distance": (error["cosine"], False)}
        notes += ["ratio of norms of whole tensors: norms of tokens take all channels, so samples do not have them"]
        formulas = {"ratio": ("1", "|r[t+1]| / |r[t]|"), "distance": formulas["distance"]}
        return dataset(trace, variables, formulas, source, notes, errors)
    ds = signals(trace).sel(site="residual", drop=True).isel(branch=halves(trace, STACK))
    variables = {"ratio": ds["ratio_mean"], "ratio_std": ds["ratio_std"], "distance": 1 - ds["cosine"]}
    errors = {name: (no_error(values), True) for name, values in variables.items()}
    return dataset(trace, variables, formulas, source, notes, errors)


def teacache(trace: Trace, source: str = "exact") -> xr.Dataset:
    """Relative L1 change of inputs and output of the network, and a polynomial between (TeaCache, arXiv 2411.19108).

    Relative to the step before, and of degree 4, as in its code, which draws nothing; which figures of the paper these
    are was not checked.

    Returns:
        rel_l1 = mean |x[t + 1] - x[t]| / mean |x[t]|, (prompt, branch, site, transition), of the sites model_input,
        modulated and prediction, with an error of its mean over prompts and branches; coefficient (power), of the
        polynomial of degree 4 that gives the prediction's rel_l1 from the modulated input's by least squares over all
        prompts, guidance halves and transitions; r_squared of that fit. Both are NaN where there are no more different
        points than coefficients.

    Raises:
        IncompleteError: No stack or not these sites; no samples where they are asked for; one step only.
    """
    need_sites(trace, *TEACACHE)
    sites = list(TEACACHE)
    if source == "sample":
        found, error = _changes(trace, {site: (None, site) for site in sites}, ("rel_l1",), over_branches=True)
        rel_l1, error = (ds["rel_l1"].rename(group="site") for ds in (found, error))
        rel_l1 = rel_l1.transpose("prompt", "branch", "site", "transition")
    else:
        rel_l1 = signals(trace)["rel_l1"].sel(site=sites).isel(branch=halves(trace, STACK))
        error = no_error(rel_l1, "branch")
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
    return dataset(trace, variables, formulas, source, notes, {"rel_l1": (error, source == "exact")})


def delta_dit(trace: Trace, source: str = "exact") -> xr.Dataset:
    """How the offsets of the front and the rear half of the blocks change, which Delta-DiT (arXiv 2406.01125) reuses.

    That paper has no published code, and shows images with blocks skipped, no such curve. Halves of the blocks are from
    samples whatever `source` says: exact statistics are of states, not of differences.

    Returns:
        rel_l1 = mean |D[t + 1] - D[t]| / mean |D[t]|, and cosine of D[t] and D[t + 1], (prompt, branch, group,
        transition), with errors of their means over prompts and branches; D is what a group of blocks (front, rear,
        all) gives out less what goes in.

    Raises:
        IncompleteError: No stack or not these sites; no samples, or at different places; one step only.
    """
    need_sites(trace, "input", "middle", "last", "residual")
    exact, names = source == "exact", ("rel_l1", "cosine")
    groups = GROUPS if exact else GROUPS | {"all": (None, "residual")}
    ds, errors = _changes(trace, groups, names, over_branches=True)
    if exact:
        whole = signals(trace)[["rel_l1", "cosine"]].sel(site=["residual"]).isel(branch=halves(trace, STACK))
        whole = whole.rename(site="group").assign_coords(group=["all"])
        ds, errors = (
            xr.concat([ds, whole], "group"),
            xr.concat([errors, whole.map(no_error, args=("branch",))], "group"),
        )
    ds = ds.transpose("prompt", "branch", "group", "transition")
    notes = [
        "D: output less input of a group of blocks; front and rear: before and after half of the blocks, latent tokens",
        "Delta-DiT showed images with blocks skipped, not this curve",
        *(["front and rear from samples"] if exact else []),
    ]
    formulas = {
        "rel_l1": ("1", "mean |D[t+1] - D[t]| / mean |D[t]|"),
        "cosine": ("1", "cos(D[t], D[t+1])"),
    }
    known = (ds.group == "all") & exact
    return dataset(
        trace,
        {name: ds[name] for name in names},
        formulas,
        source,
        notes,
        {name: (errors[name].transpose("group", "transition"), known) for name in names},
    )


def _changes(
    trace: Trace, groups: dict[str, tuple[str | None, str]], names: tuple[str, ...], over_branches: bool = False
) -> tuple[xr.Dataset, xr.Dataset]:
    """Changes of the offset between two sites, or of one site, from samples; and errors of their means over prompts.

    Args:
        groups: The sites before and after by the name of the group.
        names: Which of rel_l1, cosine and ratio.
        over_branches: Whether the error is of the mean over guidance halves too.

    Returns:
        Of dimensions (group, prompt, branch, transition), and (group, branch, transition) or (group, transition).
    """
    found = [_change(trace, ends, names, over_branches) for ends in groups.values()]
    at = {"group": list(groups)}
    return tuple(xr.concat(parts, "group").assign_coords(at) for parts in zip(*found))


def _change(
    trace: Trace, ends: tuple[str | None, str], names: tuple[str, ...], over_branches: bool
) -> tuple[xr.Dataset, xr.Dataset]:
    need_samples(trace, STACK, "offsets of blocks" if ends[0] else ends[1])
    places = [trace.sites().index(site) for site in ends if site]
    rows, weights = _common(trace, places)
    samples = Samples(trace, STACK)

    def of_prompt(prompt: int) -> Floats:
        states = [samples.values(prompt, 0, place)[:, row] for place, row in zip(places, rows)]
        return _measures(states[-1] - states[0] if len(states) > 1 else states[0], weights, names)

    drawn = (lambda mean: mean.mean(2)) if over_branches else (lambda mean: mean)
    values, errors = over_prompts(of_prompt, len(trace.prompts), drawn)
    at = coordinates(trace, STACK)
    kept = {axis: at[axis] for axis in ("prompt", "branch")} | {"transition": range(trace.num_steps - 1)}
    axes = ("prompt", "branch", "transition")
    of_mean = ("transition",) if over_branches else axes[1:]
    found = xr.Dataset({name: (axes, values[:, place]) for place, name in enumerate(names)}, kept)
    kept = {axis: kept[axis] for axis in of_mean}
    return found, xr.Dataset({name: (of_mean, errors[place]) for place, name in enumerate(names)}, kept)


def _measures(x: Floats, weights: Floats, names: tuple[str, ...]) -> Floats:
    """Changes of x (branch, position, step), (replicate, name, branch, transition)."""
    with np.errstate(invalid="ignore", divide="ignore"):
        square = weighted_mean(weights, x**2)
        found = {
            "rel_l1": lambda: weighted_mean(weights, abs(np.diff(x))) / weighted_mean(weights, abs(x[..., :-1])),
            "cosine": lambda: (
                weighted_mean(weights, x[..., 1:] * x[..., :-1]) / np.sqrt(square[..., 1:] * square[..., :-1])
            ),
            "ratio": lambda: np.sqrt(square[..., 1:] / square[..., :-1]),
        }
        return np.stack([found[name]() for name in names], 1)


def _common(trace: Trace, places: list[int]) -> tuple[NDArray[np.int64], Floats]:
    """Positions at which all of some sites were sampled: their rows (site, position), weights (replicate, position).

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
    shape = (int(trace.geometry(STACK, name)[0, places[0]]) for name in ("num_tokens", "num_channels"))
    return rows, replicated_weights(joint, channel[0][kept[0]][rows[0]], *shape)


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
