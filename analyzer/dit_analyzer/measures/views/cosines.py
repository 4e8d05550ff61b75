"""What DiTFastAttn plotted: how alike attention outputs are between steps and between guidance halves."""

from __future__ import annotations

import numpy as np
import xarray as xr
from dit_formats.errors import IncompleteError
from dit_formats.reader import Trace
from dit_formats.schema import STEP_STATISTICS

from dit_analyzer.measures.paper import HALVES, LEFT_OUT
from dit_analyzer.measures.views.given import (
    LATENT,
    Floats,
    Samples,
    coordinates,
    dataset,
    halves,
    has_samples,
    need_kinds,
)
from dit_analyzer.measures.views.layers import JOINT, LATENT_ONLY


def ditfastattn(trace: Trace, source: str = "exact") -> xr.Dataset:
    """Cosines of attention outputs (DiTFastAttn, Figure 4), cross-attention left out as it is not compressed there.

    Exact where all pairs of steps, or the guidance halves, were recorded (`--step-pairs all`, `--halves`) and `source`
    is "exact"; else from samples.

    Returns:
        step_cosine (prompt, layer, step, other_step), of the outputs of two steps, both guidance halves as one tensor
        (4a); half_cosine (prompt, layer, step), of the conditional and the unconditional output (4b), absent where
        there are no two halves.

    Raises:
        IncompleteError: No attention output; or neither samples nor products of all steps.
    """
    need_kinds(trace, "a")
    layers = _layers(trace)
    if not layers:
        raise IncompleteError(f"{trace.path}: has no self-attention, which is what DiTFastAttn shows")
    pairs = [(a, b) for a in range(trace.num_steps) for b in range(a + 1, trace.num_steps)]
    exact_steps = source == "exact" and set(trace.step_pairs(LATENT)) >= {f"{a}:{b}" for a, b in pairs}
    guided = set(HALVES) <= set(trace.branches(LATENT))
    exact_halves = source == "exact" and bool(trace.branch_pairs(LATENT))
    _need(trace, exact_steps, exact_halves or not guided)
    sampled = None if exact_steps and (exact_halves or not guided) else _sampled(trace, layers)
    names = coordinates(trace) | {"layer": layers, "other_step": range(trace.num_steps)}
    types = ("layer", [trace.layers[layer].type for layer in layers])
    names = {axis: names[axis] for axis in ("prompt", "layer", "step", "other_step")} | {"layer_type": types}
    steps = _exact_steps(trace, layers) if exact_steps else sampled[0]
    variables = {"step_cosine": xr.DataArray(steps, names, ("prompt", "layer", "step", "other_step"))}
    formulas = {"step_cosine": ("1", "cos(A[s], A[t])")}
    if guided:
        of_halves = _exact_halves(trace, layers) if exact_halves else sampled[1]
        names.pop("other_step")
        variables["half_cosine"] = xr.DataArray(of_halves, names, ("prompt", "layer", "step"))
        formulas["half_cosine"] = ("1", "cos(A_cond[t], A_uncond[t])")
    return dataset(trace, variables, formulas, source, _notes(trace, layers, exact_steps, exact_halves, guided))


def _layers(trace: Trace) -> list[int]:
    """Layers of self-attention that have an output of latent tokens."""
    seen = trace.geometry(LATENT, "recorded")[:, trace.kinds(LATENT).index("a")].any((0, 2))
    return [i for i, layer in enumerate(trace.layers) if layer.type not in LEFT_OUT and seen[i]]


def _need(trace: Trace, steps: bool, of_halves: bool) -> None:
    """IncompleteError where something is neither exact nor sampled."""
    if has_samples(trace, LATENT) or (steps and of_halves):
        return
    lacking = " ".join(option for option, there in (("--step-pairs all", steps), ("--halves", of_halves)) if not there)
    raise IncompleteError(f"{trace.path}: holds statistics only, and not these products; trace with {lacking}")


def _exact_steps(trace: Trace, layers: list[int]) -> Floats:
    kind = trace.kinds(LATENT).index("a")
    places = halves(trace, LATENT)
    square = trace.step_sums(LATENT)[..., STEP_STATISTICS.index("sum_square"), :][:, places, kind].sum(1)[:, layers]
    products = trace.pair_products(LATENT)[:, places, kind].sum(1)[:, layers]
    gram = np.full((*square.shape, square.shape[-1]), np.nan)
    for place, pair in enumerate(trace.step_pairs(LATENT)):
        one, other = map(int, pair.split(":"))
        gram[..., one, other] = gram[..., other, one] = products[..., place]
    every = np.arange(square.shape[-1])
    gram[..., every, every] = square
    return _normed(gram)


def _exact_halves(trace: Trace, layers: list[int]) -> Floats:
    kind = trace.kinds(LATENT).index("a")
    square = trace.step_sums(LATENT)[:, :, kind, :, STEP_STATISTICS.index("sum_square")][:, :, layers]
    one, other = (square[:, trace.branches(LATENT).index(name)] for name in HALVES)
    products = trace.branch_products(LATENT)[:, trace.branch_pairs(LATENT).index("|".join(HALVES)), kind][:, layers]
    with np.errstate(invalid="ignore", divide="ignore"):
        return products / np.sqrt(one * other)


def _sampled(trace: Trace, layers: list[int]) -> tuple[Floats, Floats]:
    """Cosines of steps and of halves, (prompt, layer, step, step) and (prompt, layer, step)."""
    kind, steps = trace.kinds(LATENT).index("a"), trace.num_steps
    of_steps = np.empty((len(trace.prompts), len(layers), steps, steps))
    of_halves = np.full(of_steps.shape[:-1], np.nan)
    names = [trace.branches(LATENT)[place] for place in halves(trace, LATENT)]
    samples = Samples(trace, LATENT)
    for prompt, place in np.ndindex(of_steps.shape[:2]):
        x, weight = samples.of(prompt, kind, layers[place])
        weighted = x * np.sqrt(weight)[:, None]
        of_steps[prompt, place] = _normed(np.einsum("bps,bpt->st", weighted, weighted, optimize=True))
        if set(HALVES) <= set(names):
            one, other = (weighted[names.index(name)] for name in HALVES)
            with np.errstate(invalid="ignore", divide="ignore"):
                of_halves[prompt, place] = (one * other).sum(0) / np.sqrt((one**2).sum(0) * (other**2).sum(0))
    return of_steps, of_halves


def _normed(gram: Floats) -> Floats:
    """Cosines from products of every step with every step, (..., step, step)."""
    square = np.diagonal(gram, axis1=-2, axis2=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return gram / np.sqrt(square[..., :, None] * square[..., None, :])


def _notes(trace: Trace, layers: list[int], steps: bool, of_halves: bool, guided: bool) -> list[str]:
    notes = ["both guidance halves as one tensor between steps" if guided else "no guidance halves, so no Figure 4b"]
    told = {"between steps": steps} | ({"between halves": of_halves} if guided else {})
    notes += [f"{what}: {'exact' if exact else 'from samples'}" for what, exact in told.items()]
    notes += [LATENT_ONLY] if any(trace.layers[layer].type in JOINT for layer in layers) else []
    return [*notes, "window attention's residual (Figure 3a) takes whole Q and K, which no trace holds"]
