"""The distances of a few prompts, read from their shards: what one worker does.

Loads neither xarray nor the records of a shard, so that a worker starts at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
from dit_formats.arrays import Arrays
from dit_formats.errors import TraceError
from dit_formats.schema import STEP_STATISTICS
from numpy.typing import NDArray

from dit_analyzer.measures.positions import MEANS, Positions, by_transition, not_told_apart

VARIABLES = ("l1", "l1_se", "rel_l1", "rms", "cosine", "speed", "size", "count")

Floats = NDArray[np.float64]
Means = dict[str, Floats]
"""By the names of `MEANS`, and `count` of elements, each (prompt, branch, kind, layer, transition)."""

Part = tuple[tuple[Path, range], ...]
"""Some files, and which of their prompts."""


@dataclass(frozen=True)
class Stream:
    """One stream of a trace, as its first shard has it.

    Args:
        branches, kinds: Where its branches and kinds stand among those of the trace.
        shape: Of its step sums for one prompt, (branch, kind, layer, step_statistic, step).
        transition_statistics: Names of the sums over transitions.
        geometry: Where the sample lies, by name; empty where only exact statistics are asked for.
    """

    branches: tuple[int, ...]
    kinds: tuple[int, ...]
    shape: tuple[int, ...]
    transition_statistics: tuple[str, ...]
    geometry: dict[str, NDArray[Any]]

    @cached_property
    def positions(self) -> dict[tuple[int, int], Positions]:
        """By kind and layer, made once."""
        weight, channel, *numbers = (self.geometry[n] for n in ("weight", "channel", "num_tokens", "num_channels"))
        cells = np.ndindex(*channel.shape[:2])
        return {at: Positions(weight[at], channel[at], *(int(number[at]) for number in numbers)) for at in cells}


@dataclass(frozen=True)
class Question:
    """What is asked of every prompt; `shape` is of the answer for one, (branch, stream, kind, layer, transition)."""

    source: str
    lag: int
    streams: dict[str, Stream]
    shape: tuple[int, ...]
    sigma_steps: Floats
    subset: bool
    """Whether exact changes were taken over a part of the elements."""


def answer(question: Question, part: Part) -> Floats:
    """The distances of a part's prompts, (variable, prompt, branch, stream, kind, layer, transition)."""
    _keep_memory()
    result = np.full((len(VARIABLES), sum(len(rows) for _, rows in part), *question.shape), np.nan)
    first = 0
    for path, rows in part:
        with Arrays(path) as arrays:
            for place, (name, stream) in enumerate(question.streams.items()):
                means = _means(question, stream, arrays, name, rows)
                for variable, values in zip(result, _measures(means, question.sigma_steps)):
                    at = np.array(stream.branches)[:, None], place, np.array(stream.kinds)
                    variable[first : first + len(rows), *at] = values
        first += len(rows)
    return result


@cache
def _keep_memory() -> None:
    """Have the C library keep blocks of up to this size for the next chunk; to give them back to the system and take
    them again costs half as much as inflating. It does so once a block of that size was freed."""
    np.empty(16 << 20, np.uint8)


def _measures(means: Means, sigma_steps: Floats) -> Iterator[Floats]:
    """The `VARIABLES` that these means give."""
    l1 = means["abs_diff"]
    with np.errstate(divide="ignore", invalid="ignore"):
        yield l1
        yield means["se"]
        yield l1 / means["abs"]
        yield np.sqrt(means["square_diff"])
        yield means["product"] / np.sqrt(means["square"] * means["next_square"])
        yield l1 / np.where((sigma_steps > 0) & np.isfinite(sigma_steps), sigma_steps, np.nan)
        yield means["abs"]
        yield means["count"]


def _means(question: Question, stream: Stream, arrays: Arrays, name: str, rows: range) -> Means:
    steps = step_statistics(stream, arrays, name, rows)
    if question.source == "exact":
        changes = np.moveaxis(arrays.stream(name, "transition_sums", rows), -2, 0)
        return _exact_means(steps, dict(zip(stream.transition_statistics, changes)), question.subset)
    return _sampled_means(question.lag, stream, arrays, name, rows, steps)


def step_statistics(stream: Stream, arrays: Arrays, name: str, rows: range) -> Means:
    """The sums of each step by name, (prompt, branch, kind, layer, step)."""
    sums = arrays.stream(name, "step_sums", rows)
    if sums.shape != (len(rows), *stream.shape):
        raise TraceError(f"{arrays.path}: {name}: not of the shape that the first shard has; keep them in two folders")
    return dict(zip(STEP_STATISTICS, np.moveaxis(sums, -2, 0)))


def _exact_means(steps: Means, pairs: Means, subset: bool) -> Means:
    with np.errstate(invalid="ignore", divide="ignore"):
        of_step = {name: steps[f"sum_{name}"] / steps["count"] for name in ("abs", "square")}
        means = {
            "abs_diff": pairs["sum_abs"] / pairs["count"],
            "square_diff": pairs["sum_square"] / pairs["count"],
            "product": pairs["sum_product"] / pairs["count"],
            "abs": of_step["abs"][..., :-1],
            "square": of_step["square"][..., :-1],
            "next_square": of_step["square"][..., 1:],
            "count": pairs["count"],
        }
    means["se"] = np.where(np.isnan(means["abs_diff"]), np.nan, 0.0)
    if subset:
        means |= _of_subset(means, steps["count"])
    empty = _both(steps, 1) == 0  # as of a text without tokens; of what is not finite, there is something
    return means | {"count": np.where(empty, np.nan, means["count"])}


def _of_subset(means: Means, whole: Floats) -> Means:
    """Standard error, count of elements and product where changes were taken over n of N.

    SE^2 = (1 - n / N) s^2 / n, as of elements drawn one by one: a bound for a part that spreads evenly.
    """
    n, size = means["count"], np.minimum(whole[..., :-1], whole[..., 1:])
    with np.errstate(invalid="ignore", divide="ignore"):
        variance = np.maximum(means["square_diff"] - means["abs_diff"] ** 2, 0)
        error = np.sqrt(np.maximum(1 - n / size, 0) * variance / n)
    squares = (means[name] for name in ("square", "next_square", "square_diff"))
    return {"se": error, "count": size, "product": product_of_part(*squares)}


def product_of_part(before: Floats, after: Floats, change: Floats) -> Floats:
    """Mean of x[t] x[t + 1] where d^2 is known of a part of the elements only: (x[t]^2 + x[t + 1]^2 - d^2) / 2.

    It goes with norms over all elements; the part's own product does not, and gives cosines above 1.

    Args:
        before, after, change: Means of x[t]^2, x[t + 1]^2 and d^2.
    """
    return np.minimum((before + after - change) / 2, np.sqrt(before * after))


def _sampled_means(lag: int, stream: Stream, arrays: Arrays, name: str, rows: range, steps: Means) -> Means:
    branches, kinds, layers, _, num_steps = stream.shape
    found = np.empty((len(rows), branches, kinds, layers, len(MEANS), num_steps - lag))
    for prompt, row in enumerate(rows):
        found[prompt] = _of_prompt(lag, stream, arrays, name, row)
    return dict(zip(MEANS, np.moveaxis(found, -2, 0))) | {"count": sampled_counts(lag, stream, steps)}


def sampled_counts(lag: int, stream: Stream, steps: Means) -> Floats:
    """How many elements there are, (prompt, branch, kind, layer, transition)."""
    numbers = stream.geometry["num_tokens"] * stream.geometry["num_channels"]
    whole = np.where(stream.geometry["recorded"], numbers[..., None], np.nan)
    there = _both(steps, lag)  # of a text shorter than the longest, that text's elements; of an empty one, none
    whole = np.minimum(whole[..., lag:], whole[..., :-lag])
    return np.where(there == 0, np.nan, np.where(there > 0, there, whole))


def _both(steps: Means, lag: int) -> Floats:
    """Elements that exist in both steps of a transition, (prompt, branch, kind, layer, transition)."""
    there = steps["count"] + steps["nonfinite"]
    return np.minimum(there[..., lag:], there[..., :-lag])


def _of_prompt(lag: int, stream: Stream, arrays: Arrays, name: str, row: int) -> Floats:
    """The `MEANS` of one prompt, (branch, kind, layer, mean, transition).

    The few small sums of each activation are made into means together; one by one that costs a tenth of all.
    """
    *cells, _, num_steps = stream.shape
    by_step = np.empty((*cells, 5, num_steps))
    with np.errstate(invalid="ignore"):
        odd: dict[tuple[int, ...], Floats] = {}
        for at in np.ndindex(*cells):
            samples = arrays.cell(name, row, *at)
            positions = stream.positions[at[1:]]
            by_step[at] = positions.by_step(samples, lag)
            if not math.isfinite(by_step[at][:4].sum()):
                odd[at] = positions.means_of_finite(samples, by_step[at][4], lag)
        means = by_transition(by_step, lag)
        for at, values in odd.items():
            means[at] = values
        for at in set(zip(*np.nonzero(not_told_apart(means).any(-1)))) - set(odd):
            means[*at, 2] = stream.positions[at[1:]].product(arrays.cell(name, row, *at), lag)
    return means
