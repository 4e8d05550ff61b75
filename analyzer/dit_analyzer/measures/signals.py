"""What changes in a network as a whole, and how alike its guidance halves and distant steps are.

The states of the stack are what other caching methods calibrate on: TeaCache, FBCache, MagCache, EasyCache, Delta-DiT.
"""

from __future__ import annotations

import numpy as np
import xarray as xr
from dit_formats.errors import IncompleteError
from dit_formats.reader import Trace
from dit_formats.schema import STACK, STEP_STATISTICS
from numpy.typing import NDArray

from dit_analyzer.measures.parts import product_of_part


def signals(trace: Trace) -> xr.Dataset:
    """How much the states between the blocks change from step t to step t + 1.

    Returns:
        Variables of dimensions (prompt, branch, site, transition), NaN where nothing was recorded: l1 = mean |d|,
        rel_l1 = l1 / mean |x[t]| (TeaCache, arXiv 2411.19108, equation 4), rms, cosine; and ratio_mean and ratio_std,
        mean and standard deviation over tokens of |x[t + 1]| / |x[t]| (MagCache, arXiv 2506.09045).

    Raises:
        IncompleteError: The stack was not recorded, or there is one step only.
    """
    if not trace.has_stack:
        raise IncompleteError(f"{trace.path}: holds no stack; trace without --no-stack")
    if trace.num_steps < 2:
        raise IncompleteError(f"{trace.path}: has one step, so nothing to compare; trace with --steps 2 or more")
    steps = dict(zip(STEP_STATISTICS, np.moveaxis(trace.step_sums(STACK)[:, :, 0], -2, 0)))
    pairs = dict(zip(trace.transition_statistics(STACK), np.moveaxis(trace.transition_sums(STACK)[:, :, 0], -2, 0)))
    with np.errstate(invalid="ignore", divide="ignore"):
        size, square = (steps[f"sum_{name}"] / steps["count"] for name in ("abs", "square"))
        l1, product = (pairs[f"sum_{name}"] / pairs["count"] for name in ("abs", "product"))
        if trace.transitions != "exact":
            product = product_of_part(square[..., :-1], square[..., 1:], pairs["sum_square"] / pairs["count"])
        values = {
            "l1": l1,
            "rel_l1": l1 / size[..., :-1],
            "rms": np.sqrt(pairs["sum_square"] / pairs["count"]),
            "cosine": product / np.sqrt(square[..., :-1] * square[..., 1:]),
            "ratio_mean": pairs["ratio_mean"],
            "ratio_std": pairs["ratio_std"],
        }
    axes = ("prompt", "branch", "site", "transition")
    coordinates = _coordinates(trace, STACK) | {"site": list(trace.sites()), "transition": range(trace.num_steps - 1)}
    return xr.Dataset({name: (axes, array) for name, array in values.items()}, coordinates)


def branch_cosines(trace: Trace, stream: str = "latent") -> xr.DataArray:
    """Cosine of the conditional and the unconditional activation at each step (DiTFastAttn, arXiv 2406.08552,
    Figure 4b), (prompt, kind, layer, step).

    Raises:
        IncompleteError: The products were not recorded.
    """
    pairs = trace.branch_pairs(stream)
    if not pairs:
        raise IncompleteError(f"{trace.path}: holds no products of guidance halves; trace a guided model with --halves")
    one, other = (trace.branches(stream).index(name) for name in pairs[0].split("|"))
    square = trace.step_sums(stream)[..., STEP_STATISTICS.index("sum_square"), :]
    cosine = _cosine(trace.branch_products(stream)[:, 0], square[:, one], square[:, other])
    coordinates = _coordinates(trace, stream) | {"step": range(trace.num_steps)}
    coordinates.pop("branch")
    return xr.DataArray(cosine, coordinates, ("prompt", "kind", "layer", "step"))


def step_cosines(trace: Trace, stream: str = "latent") -> xr.DataArray:
    """Cosine of the activations of two steps (DiTFastAttn, arXiv 2406.08552, Figure 4a), (prompt, branch, kind, layer,
    step_pair), the pairs being named as in `3:10`.

    Raises:
        IncompleteError: The products were not recorded.
    """
    pairs = trace.step_pairs(stream)
    if not pairs:
        raise IncompleteError(f"{trace.path}: holds no products of steps; trace with --step-pairs 0:10,5:25")
    square = trace.step_sums(stream)[..., STEP_STATISTICS.index("sum_square"), :]
    first, second = (np.array([int(pair.split(":")[i]) for pair in pairs]) for i in (0, 1))
    cosine = _cosine(trace.pair_products(stream), square[..., first], square[..., second])
    coordinates = _coordinates(trace, stream) | {"step_pair": list(pairs)}
    return xr.DataArray(cosine, coordinates, ("prompt", "branch", "kind", "layer", "step_pair"))


def _cosine(product: NDArray[np.float64], one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore", divide="ignore"):
        return product / np.sqrt(one * other)


def _coordinates(trace: Trace, stream: str) -> dict[str, object]:
    rows: dict[str, object] = {
        "prompt": [prompt.index for prompt in trace.prompts],
        "branch": list(trace.branches(stream)),
    }
    if stream != STACK:
        rows |= {"kind": list(trace.kinds(stream)), "layer": range(len(trace.layers))}
    return rows
