"""What DiTFastAttn plotted: how alike attention outputs are between steps and between guidance halves."""

from __future__ import annotations

from functools import partial

import numpy as np
import xarray as xr
from dit_formats.errors import IncompleteError
from dit_formats.reader import Trace
from dit_formats.schema import STEP_STATISTICS
from numpy.typing import NDArray

from dit_analyzer.measures.paper import HALVES, LEFT_OUT
from dit_analyzer.measures.views.given import (
    LATENT,
    Floats,
    coordinates,
    dataset,
    halves,
    has_samples,
    need_kinds,
    need_steps,
)
from dit_analyzer.measures.views.layers import JOINT, LATENT_ONLY
from dit_analyzer.measures.views.replicates import Samples, over_prompts

FORMULAS = {"step_cosine": ("1", "cos(A[s], A[t])"), "half_cosine": ("1", "cos(A_cond[t], A_uncond[t])")}


def ditfastattn(trace: Trace, source: str = "exact") -> xr.Dataset:
    """Cosines of attention outputs (DiTFastAttn, arXiv 2406.08552), of all but cross-attention.

    As the notebook in its code computes and lays it out: whole tensors after the output projection; steps by steps in
    blocks 5, 15 and 25 of 28, both guidance halves as one tensor; and blocks by steps between the halves. Which figures
    of the paper these are was not checked. With source "exact" they are exact where statistics allow, of neighbouring
    steps, of all pairs of steps (`--step-pairs all`), of guidance halves (`--halves`); else from samples.

    Returns:
        step_cosine (prompt, layer, step, other_step), of the outputs of two steps; half_cosine (prompt, layer, step),
        of the conditional and the unconditional output, absent where there are no two halves.

    Raises:
        IncompleteError: No attention output; or statistics alone, and not of all steps or of the halves.
    """
    need_kinds(trace, "a")
    layers = _layers(trace)
    if not layers:
        raise IncompleteError(f"{trace.path}: has no self-attention, which is what DiTFastAttn shows")
    guided = set(HALVES) <= set(trace.branches(LATENT))
    if not guided:
        need_steps(trace)
    steps, halved = _known_steps(trace, source), source == "exact" and bool(trace.branch_pairs(LATENT))
    whole = bool(steps.all()) and (halved or not guided)
    _need(trace, bool(steps.all()), halved or not guided)
    found = _exact(trace, layers, steps, halved)
    found = found if whole else _filled(found, _sampled(trace, layers), steps, halved)
    names = list(FORMULAS)[: 1 + guided]
    variables = {name: _labelled(trace, layers, found[name]) for name in names}
    known = {"step_cosine": xr.DataArray(steps, dims=("step", "other_step")), "half_cosine": halved}
    errors = {name: (xr.DataArray(found[f"{name}_se"], dims=variables[name].dims[1:]), known[name]) for name in names}
    formulas = {name: FORMULAS[name] for name in names}
    return dataset(trace, variables, formulas, source, _notes(trace, layers, steps, halved, guided), errors)


def _labelled(trace: Trace, layers: list[int], values: Floats) -> xr.DataArray:
    """With names of axes: (prompt, layer, step) or (prompt, layer, step, other_step)."""
    axes = ("prompt", "layer", "step", "other_step")[: values.ndim]
    names = coordinates(trace) | {"layer": layers, "other_step": range(trace.num_steps)}
    types = ("layer", [trace.layers[layer].type for layer in layers])
    return xr.DataArray(values, {axis: names[axis] for axis in axes} | {"layer_type": types}, axes)


def _layers(trace: Trace) -> list[int]:
    """Layers of self-attention that have an output of latent tokens."""
    seen = trace.geometry(LATENT, "recorded")[:, trace.kinds(LATENT).index("a")].any((0, 2))
    return [i for i, layer in enumerate(trace.layers) if layer.type not in LEFT_OUT and seen[i]]


def _known_steps(trace: Trace, source: str) -> NDArray[np.bool_]:
    """Whether exact statistics tell the product of two steps, (step, step)."""
    known = np.zeros((trace.num_steps, trace.num_steps), bool)
    if source == "exact":
        places = np.arange(trace.num_steps)
        apart = 1 if trace.transitions == "exact" else 0
        known = abs(places[:, None] - places) <= apart
        for one, other in _pairs(trace):
            known[one, other] = known[other, one] = True
    return known


def _pairs(trace: Trace) -> list[tuple[int, int]]:
    pairs = [pair.split(":") for pair in trace.step_pairs(LATENT)]
    return [(int(one), int(other)) for one, other in pairs]


def _need(trace: Trace, steps: bool, of_halves: bool) -> None:
    """IncompleteError where something is neither exact nor sampled."""
    if has_samples(trace, LATENT) or (steps and of_halves):
        return
    lacking = " ".join(option for option, there in (("--step-pairs all", steps), ("--halves", of_halves)) if not there)
    told = f"holds statistics only, no archive, and not these products; trace with {lacking}"
    raise IncompleteError(f"{trace.path}: {told}")


def _exact(trace: Trace, layers: list[int], steps: NDArray[np.bool_], halved: bool) -> dict[str, Floats]:
    """Cosines and their errors by name, NaN where they are not known."""
    of_steps = np.where(steps, _exact_steps(trace, layers), np.nan)
    of_halves = _exact_halves(trace, layers) if halved else np.full(of_steps.shape[:-1], np.nan)
    found = {"step_cosine": of_steps, "half_cosine": of_halves}
    return found | {f"{name}_se": values.mean(0) * 0 for name, values in found.items()}


def _exact_steps(trace: Trace, layers: list[int]) -> Floats:
    """(prompt, layer, step, step), NaN where no product is there."""
    kind, places = trace.kinds(LATENT).index("a"), halves(trace, LATENT)
    of_step = trace.step_sums(LATENT)[..., STEP_STATISTICS.index("sum_square"), :]
    of_pairs = trace.transition_sums(LATENT)[..., trace.transition_statistics(LATENT).index("sum_product"), :]
    pairs = _pairs(trace)
    of_further = trace.pair_products(LATENT) if pairs else of_pairs[..., :0]
    square, neighbour, products = (sums[:, places, kind].sum(1)[:, layers] for sums in (of_step, of_pairs, of_further))
    every = np.arange(trace.num_steps)
    gram = np.full((*square.shape, trace.num_steps), np.nan)
    gram[..., every[:-1], every[1:]] = gram[..., every[1:], every[:-1]] = neighbour
    for place, (one, other) in enumerate(pairs):
        gram[..., one, other] = gram[..., other, one] = products[..., place]
    gram[..., every, every] = square
    return _normed(gram)


def _exact_halves(trace: Trace, layers: list[int]) -> Floats:
    kind = trace.kinds(LATENT).index("a")
    square = trace.step_sums(LATENT)[:, :, kind, :, STEP_STATISTICS.index("sum_square")][:, :, layers]
    one, other = (square[:, trace.branches(LATENT).index(name)] for name in HALVES)
    products = trace.branch_products(LATENT)[:, trace.branch_pairs(LATENT).index("|".join(HALVES)), kind][:, layers]
    with np.errstate(invalid="ignore", divide="ignore"):
        return products / np.sqrt(one * other)


def _sampled(trace: Trace, layers: list[int]) -> dict[str, Floats]:
    """All cosines from samples, and the errors of their means over prompts, by name."""
    kind, samples = trace.kinds(LATENT).index("a"), Samples(trace, LATENT)
    names = [trace.branches(LATENT)[place] for place in halves(trace, LATENT)]
    pair = [names.index(name) for name in HALVES] if set(HALVES) <= set(names) else []
    parts = [over_prompts(partial(_of_layer, samples, kind, layer, pair), len(trace.prompts)) for layer in layers]
    values, errors = (np.stack(arrays, axis) for axis, arrays in zip((1, 0), zip(*parts)))
    found = {"step_cosine": values[..., :-1], "half_cosine": values[..., -1]}
    return found | {"step_cosine_se": errors[..., :-1], "half_cosine_se": errors[..., -1]}


def _of_layer(samples: Samples, kind: int, layer: int, pair: list[int], prompt: int) -> Floats:
    """Cosines of steps, and after them those of the halves, of one prompt: (replicate, step, step + 1)."""
    x, weights = samples.of(prompt, kind, layer)
    flat = x.reshape(-1, x.shape[-1])
    gram = np.stack([(flat * np.tile(weight, len(x))[:, None]).T @ flat for weight in weights])
    of_halves = np.full(gram.shape[:-1], np.nan)
    if pair:
        one, other = x[pair]
        square, next_square, product = (weights @ values for values in (one**2, other**2, one * other))
        with np.errstate(invalid="ignore", divide="ignore"):
            of_halves = product / np.sqrt(square * next_square)
    return np.concatenate([_normed(gram), of_halves[..., None]], -1)


def _filled(
    exact: dict[str, Floats], sampled: dict[str, Floats], steps: NDArray[np.bool_], halved: bool
) -> dict[str, Floats]:
    """The exact values and errors, and the sampled ones wherever nothing exact is known."""
    known = {"step_cosine": steps, "half_cosine": np.array(halved)}
    return {name: np.where(known[name.removesuffix("_se")], exact[name], sampled[name]) for name in exact}


def _normed(gram: Floats) -> Floats:
    """Cosines from products of every step with every step, (..., step, step)."""
    square = np.diagonal(gram, axis1=-2, axis2=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return gram / np.sqrt(square[..., :, None] * square[..., None, :])


def _notes(trace: Trace, layers: list[int], steps: NDArray[np.bool_], of_halves: bool, guided: bool) -> list[str]:
    notes = ["both guidance halves as one tensor between steps" if guided else "no guidance halves to compare"]
    known = (
        "exact" if steps.all() else "neighbours exact, others from samples" if steps[0].sum() > 1 else "from samples"
    )
    notes += [f"between steps: {known}"]
    notes += [f"between halves: {'exact' if of_halves else 'from samples'}"] if guided else []
    notes += [LATENT_ONLY] if any(trace.layers[layer].type in JOINT for layer in layers) else []
    return [*notes, "not shown: DiTFastAttn's window attention, which takes whole Q and K, and no trace holds them"]
