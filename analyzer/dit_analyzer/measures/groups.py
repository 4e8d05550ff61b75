"""Means over sampled positions with one group of positions left out: what one worker does.

The positions of an activation, in order of their channels, are dealt to groups in turn, so that each group spreads over
the tensor as the whole sample does, and two groups differ as two such samples would.
"""

from __future__ import annotations

import numpy as np
from dit_formats.arrays import Arrays
from numpy.typing import NDArray

from dit_analyzer.measures.parts import Floats, Part, Question, Stream, sampled_counts, step_statistics

GROUPS = 20

LEFT_OUT_VARIABLES = ("l1", "rms", "size")


def answer_by_group(groups: int, question: Question, part: Part) -> tuple[Floats, Floats]:
    """Of a part's prompts, `without_each` as (variable, group, prompt, branch, stream, kind, layer, transition), and
    the number of elements, (prompt, ..., transition)."""
    shape = sum(len(rows) for _, rows in part), *question.shape
    result, counts = np.full((len(LEFT_OUT_VARIABLES), groups, *shape), np.nan), np.full(shape, np.nan)
    first = 0
    for path, rows in part:
        with Arrays(path) as arrays:
            for place, (name, stream) in enumerate(question.streams.items()):
                at = np.array(stream.branches)[:, None], place, np.array(stream.kinds)
                counted = sampled_counts(question.lag, stream, step_statistics(stream, arrays, name, rows))
                counts[first : first + len(rows), *at] = counted
                for prompt, row in enumerate(rows, first):
                    _fill(result[:, :, prompt, :, place], question.lag, arrays, name, stream, row)
        first += len(rows)
    return result, counts


def _fill(result: Floats, lag: int, arrays: Arrays, name: str, stream: Stream, row: int) -> None:
    """Put the answer for a prompt and stream into (variable, group, branch, kind, layer, transition)."""
    branches, *cells = stream.shape[:3]
    for kind, layer in np.ndindex(*cells):
        weight, channel = (stream.geometry[array][kind, layer] for array in ("weight", "channel"))
        members = member_weights(weight, channel, result.shape[1])
        size = int(stream.geometry["num_tokens"][kind, layer]) * int(stream.geometry["num_channels"][kind, layer])
        missing = max(1 - (channel >= 0).sum() / max(size, 1), 0)
        for branch in range(branches):
            samples = arrays.cell(name, row, branch, kind, layer)
            if np.isfinite(samples).any():
                at = stream.branches[branch], stream.kinds[kind], layer
                result[:, :, *at] = without_each(samples, members, missing, lag)


def member_weights(weight: Floats, channel: NDArray[np.int64], groups: int) -> Floats:
    """The weight of each position in its group, (group, position); positions of channel -1 are in none."""
    kept = np.flatnonzero(channel >= 0)
    order = kept[np.argsort(channel[kept], kind="stable")]
    members = np.zeros((groups, len(channel)))
    members[np.arange(len(order)) % groups, order] = weight[order]
    return members


def without_each(samples: NDArray[np.float32], members: Floats, missing: float, lag: int) -> Floats:
    """Mean of |d|, root of the mean of d^2, and mean of |x[t]| without each group: (variable, group, transition).

    Each is moved towards the whole's by the root of the share of elements that are missing from the sample, so that a
    jackknife finds no error where nothing is missing. Values that are not finite are left out.
    """
    finite = np.isfinite(samples)
    x = np.where(finite, samples, 0).astype(np.float64)
    both = finite[:, :-lag] & finite[:, lag:]
    change = np.where(both, np.abs(x[:, lag:] - x[:, :-lag]), 0.0)
    before = finite[:, :-lag]
    means = []
    for values, there in ((change, both), (change**2, both), (np.abs(x[:, :-lag]), before)):
        sums, share = members @ values, members @ there
        with np.errstate(invalid="ignore", divide="ignore"):
            whole = sums.sum(0) / share.sum(0)
            rest = (sums.sum(0) - sums) / (share.sum(0) - share)
        means.append(whole + np.sqrt(missing) * (rest - whole) if missing else np.broadcast_to(whole, rest.shape))
    return np.stack([means[0], np.sqrt(np.maximum(means[1], 0)), means[2]])
