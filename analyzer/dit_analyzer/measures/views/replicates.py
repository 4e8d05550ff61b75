"""Sampled activations, and how far a view from them may be off: its standard error.

The same positions are sampled at every step and prompt, so their error does not average out over prompts. Every view is
made of weighted means over positions, so it is computed with several rows of weights at once: replicate 0 is the whole
sample, and how far the others stray from it gives the error, SE^2 = 4 mean_r (T_r - T_0)^2, whatever is made of the
means (successive difference replication: Fay and Train, ASA Proceedings, Section on Government Statistics, 1995).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from dit_formats.reader import Trace
from numpy.typing import NDArray
from scipy.linalg import hadamard

from dit_analyzer.measures.errors import strata_of
from dit_analyzer.measures.views.given import Floats, halves

ROWS = 32
HADAMARD = hadamard(ROWS).astype(np.float64)
REPLICATES = 1 + ROWS


class Samples:
    """The sampled values of a stream or the stack in the guidance halves; where they lie is read once."""

    def __init__(self, trace: Trace, stream: str) -> None:
        self._trace, self._stream, self._branches = trace, stream, halves(trace, stream)
        self._weight, self._channel, self._tokens, self._channels = (
            trace.geometry(stream, name) for name in ("weight", "channel", "num_tokens", "num_channels")
        )

    def values(self, prompt: int, kind: int, layer: int) -> Floats:
        """One kind and layer, (branch, position, step). Of the stack, `layer` is a site and its kind is 0."""
        shard, row = self._trace.rows[prompt]
        with shard:
            cells = [shard.cell(self._stream, row, branch, kind, layer) for branch in self._branches]
        return np.stack(cells)[:, self._channel[kind, layer] >= 0].astype(np.float64)

    def of(self, prompt: int, kind: int, layer: int) -> tuple[Floats, Floats]:
        """The same, and weights (replicate, position), each replicate's summing to 1."""
        kept = self._channel[kind, layer] >= 0
        weight, channel = self._weight[kind, layer][kept], self._channel[kind, layer][kept]
        shape = int(self._tokens[kind, layer]), int(self._channels[kind, layer])
        return self.values(prompt, kind, layer), replicated_weights(weight, channel, *shape)


def replicated_weights(weight: Floats, channel: NDArray[np.int64], num_tokens: int, num_channels: int) -> Floats:
    """Weights (replicate, position) of positions in a tensor with so many tokens and channels; each row sums to 1.

    In a stratum, position i before position j weighs 1 + (h[i, r] - h[j, r]) sqrt(m / 8) times as much in replicate
    r > 0, the last one being before the first: h is a Hadamard matrix, so that all replicates together know the
    difference of each two neighbours; m is the share of elements that are missing from the sample.
    """
    if not len(weight):
        return np.empty((REPLICATES, 0))
    after = _after(_strata(weight, channel, num_channels))
    rows = 1 + np.arange(len(weight)) % (ROWS - 1)  # row 0 is of ones, and would say nothing
    missing = max(1 - len(weight) / (num_tokens * num_channels), 0)
    factor = np.sqrt(missing / 8) * (HADAMARD[rows] - HADAMARD[rows[after]]).T
    weights = weight * np.vstack([np.ones(len(weight)), 1 + factor])
    return weights / weights.sum(1, keepdims=True)


def _strata(weight: Floats, channel: NDArray[np.int64], num_channels: int) -> NDArray[np.int64]:
    """The stratum of each position, as for the error of one activation (`positions.Strata`)."""
    if np.ptp(weight) > 1e-9 * weight.max():
        return strata_of(channel, weight)
    return channel // -(-4 * num_channels // len(channel))


def _after(stratum: NDArray[np.int64]) -> NDArray[np.intp]:
    """The place of the next position of the same stratum, of its first after its last."""
    order = np.argsort(stratum, kind="stable")
    starts = np.flatnonzero(np.diff(stratum[order], prepend=stratum[order[0]] - 1))
    following = np.arange(1, len(order) + 1)
    following[np.append(starts[1:], len(order)) - 1] = starts
    after = np.empty(len(order), np.intp)
    after[order] = order[following]
    return after


def weighted_mean(weights: Floats, values: Floats) -> Floats:
    """Means over positions of values (branch, position, step), (replicate, branch, step); NaN where there is none.

    Values that are not finite are left out.
    """
    finite = np.isfinite(values)
    if finite.all() and values.shape[1]:
        return np.moveaxis(weights @ values, 0, 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = (weights @ np.where(finite, values, 0)) / (weights @ finite.astype(np.float64))
    return np.moveaxis(means, 0, 1)


def over_prompts(
    of_prompt: Callable[[int], Floats], prompts: int, drawn: Callable[[Floats], Floats] = lambda mean: mean
) -> tuple[Floats, Floats]:
    """What each prompt gives, (prompt, ...); and the standard error, from positions, of the mean over prompts (...).

    Args:
        of_prompt: From the place of a prompt to what it gives, (replicate, ...).
        drawn: What is made of that mean, (replicate, ...), before its error is taken.
    """
    first = of_prompt(0)
    values, total = np.empty((prompts, *first.shape[1:])), np.zeros(first.shape)
    for place in range(prompts):
        found = first if place == 0 else of_prompt(place)
        values[place], total = found[0], total + found
    mean = drawn(total / prompts)
    return values, np.sqrt(4 * ((mean[1:] - mean[0]) ** 2).mean(0))
