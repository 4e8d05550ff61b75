"""What sampled positions cost the mean over prompts: what one worker does, of one layer.

Positions are common to all prompts, so the mean over prompts is a mean over positions of each one's mean over prompts,
and has the error of that: `Positions.error`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from dit_formats.arrays import Arrays

from dit_analyzer.measures.parts import Floats, Part, Question
from dit_analyzer.measures.positions import Positions


def answer_of_layer(parts: Sequence[Part], question: Question, layer: int) -> Floats:
    """Standard errors of the mean over prompts, and of its ratio to the transition before relative to that ratio, from
    sampled positions alone: (2, branch, stream, kind, transition)."""
    branches, streams, kinds, _, transitions = question.shape
    prompts = sum(len(rows) for part in parts for _, rows in part)
    result = np.full((2, branches, streams, kinds, transitions), np.nan)
    for place, (name, stream) in enumerate(question.streams.items()):
        for (branch, kind), total in _totals(parts, question, name, layer).items():
            positions = stream.positions[kind, layer]
            result[:, stream.branches[branch], place, stream.kinds[kind]] = errors_of(total / prompts, positions)
    return result


def _totals(parts: Sequence[Part], question: Question, name: str, layer: int) -> dict[tuple[int, int], Floats]:
    """Sum of |d| over prompts, (position, transition), by branch and kind."""
    stream, lag = question.streams[name], question.lag
    totals: dict[tuple[int, int], Floats] = {}
    for path, rows in (run for part in parts for run in part):
        with Arrays(path) as arrays:
            for row in rows:
                for at in np.ndindex(*stream.shape[:2]):
                    x = arrays.cell(name, row, *at, layer).astype(np.float64)
                    with np.errstate(invalid="ignore"):
                        change = np.abs(x[:, lag:] - x[:, :-lag])
                    totals[at] = totals[at] + change if at in totals else change
    return totals


def errors_of(changes: Floats, positions: Positions) -> Floats:
    """The two errors, (2, transition), of each position's mean |d| over prompts, (position, transition).

    The ratio's is that of |d[t]| / mean |d[t]| - |d[t - 1]| / mean |d[t - 1]|, where what positions do to both cancels.
    """
    mean = positions.mean(changes)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = changes / np.where(mean > 0, mean, np.nan)
        ratio = positions.error(share[:, 1:] - share[:, :-1])
    return np.stack([positions.error(changes), np.append(np.nan, ratio)])
