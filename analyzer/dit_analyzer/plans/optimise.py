"""The best steps to compute, exactly: the least total error, or the least largest one.

Dynamic programming over the last computed steps, as in DPCache (arXiv 2602.22654). Both aims are one algorithm over
two kinds of labels: numbers that add up, and sorted lists of errors that are compared from the largest on (the
lexicographic minimax of LeMiCa, arXiv 2511.00090).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import Any

import numpy as np
from numpy.typing import NDArray

TOTAL, MINIMAX = "total", "minimax"
AIMS = (TOTAL, MINIMAX)

Floats = NDArray[np.float64]
NEVER = (np.inf,)
"""Label of what cannot be, as sorted lists go."""


@dataclass(frozen=True)
class Best:
    """The best way to compute a number of steps.

    Args:
        label: Total of the errors, or the errors from the largest down.
        compute: By step.
    """

    label: Any
    compute: NDArray[np.bool_]

    @property
    def possible(self) -> bool:
        return self.label != NEVER and self.label != np.inf


def best_plans(errors: Floats, forced: Sequence[int] = (), aim: str = TOTAL) -> list[Best | None]:
    """The best plan with 1, 2, ... all steps computed; None where forced steps leave none.

    Args:
        errors: (before, last, step): the error at a step that is left out, when `last` is the last computed step and
            `before` the one before it (equal to `last` where there is none). Of length 1 along the first axis where
            the step before makes no difference.
        forced: Steps that must be computed; the first always is.
        aim: One of `AIMS`.

    >>> errors = np.array([[[0, 1, 4, 9], [0, 0, 1, 4], [0, 0, 0, 1], [0, 0, 0, 0.0]]])
    >>> best_plans(errors)[1].compute.tolist(), float(best_plans(errors)[1].label)
    ([True, False, True, False], 2.0)
    """
    steps = errors.shape[-1]
    segments = _segments(errors, forced, aim)
    labels = _never((len(errors), steps), aim)
    labels[0, 0] = _none(aim)
    came: list[NDArray[np.intp]] = []
    found: list[Best | None] = []
    for _ in range(steps):
        ends = _plus(labels, segments[:, :, steps])
        at = np.unravel_index(_least(ends.ravel()), ends.shape)
        best = Best(ends[at], _traced(came, int(at[0]), int(at[1]), len(errors), steps))
        found.append(best if best.possible else None)
        labels, before = _advanced(labels, segments)
        came.append(before)
    return found


def _advanced(labels: Any, segments: Any) -> tuple[Any, NDArray[np.intp]]:
    """Labels with one more step computed, and for each the state (index of `before`) that it came from."""
    history, steps = labels.shape
    ways = _plus(labels[:, :, None], segments[:, :, :steps])  # before, last, next
    if history == 1:  # the state is the last step alone; where it came from is that step
        chosen = _least(ways[0], 0)
        return np.take_along_axis(ways[0], chosen[None], 0), chosen[None]
    chosen = _least(ways, 0)
    return np.take_along_axis(ways, chosen[None], 0)[0], chosen


def _traced(came: list[NDArray[np.intp]], before: int, last: int, history: int, steps: int) -> NDArray[np.bool_]:
    """The computed steps that lead to a state."""
    compute = np.zeros(steps, bool)
    for table in reversed(came):
        compute[last] = True
        before, last = (0, int(table[0, last])) if history == 1 else (int(table[before, last]), before)
    compute[last] = compute[0] = True
    return compute


def _segments(errors: Floats, forced: Sequence[int], aim: str) -> Any:
    """Label of leaving out all steps between two computed ones, (before, last, next); next may be the end."""
    history, steps = len(errors), errors.shape[-1]
    cost = errors.astype(float).copy()
    cost[:, :, list(forced)] = np.inf
    result = _never((history, steps, steps + 1), aim)
    for before in range(history):
        for last in range(before, steps):
            label = _none(aim)
            for following in range(last + 1, steps + 1):
                result[before, last, following] = label
                if following == steps or cost[before, last, following] == np.inf:
                    break
                label = (
                    label + cost[before, last, following]
                    if aim == TOTAL
                    else _merged(label, (float(cost[before, last, following]),))
                )
    return result


def allotted(rows: Sequence[Sequence[Best | None]], weights: Sequence[int], cells: int, aim: str = TOTAL) -> list[int]:
    """How many steps each row computes, so that rows together compute `cells` cells at the least label.

    Args:
        rows: The best plans of each row, by number of steps computed less one.
        weights: Layers of each row: a step of it is so many cells.

    Raises:
        ValueError: No numbers of steps come to that; the nearest larger number of cells that does is tried by callers.
    """
    return _totals(rows, weights, cells) if aim == TOTAL else _largest(rows, weights, cells)


def least_totals(rows: Sequence[Sequence[Best | None]], weights: Sequence[int], cells: int) -> Floats:
    """The least total with 0, 1, ... `cells` computed cells; infinite where no numbers of steps come to that."""
    return _tables(rows, weights, cells)[0]


def _totals(rows: Sequence[Sequence[Best | None]], weights: Sequence[int], cells: int) -> list[int]:
    best, choices = _tables(rows, weights, cells)
    if best[cells] == np.inf:
        raise ValueError(_impossible(cells))
    found = []
    for chosen, weight in zip(choices[::-1], weights[::-1]):
        found.append(int(chosen[cells]))
        cells -= found[-1] * weight
    return found[::-1]


def _tables(
    rows: Sequence[Sequence[Best | None]], weights: Sequence[int], cells: int
) -> tuple[Floats, list[NDArray[np.intp]]]:
    """Least totals by number of cells, and the steps that each row then computes."""
    best = np.full(cells + 1, np.inf)
    best[0] = 0
    choices = []
    for row, weight in zip(rows, weights):
        following, chosen = np.full(cells + 1, np.inf), np.zeros(cells + 1, int)
        for steps, plan in enumerate(row, 1):
            taken = steps * weight
            if plan is None or taken > cells:
                continue
            ways = best[: cells + 1 - taken] + weight * plan.label
            better = ways < following[taken:]
            following[taken:][better], chosen[taken:][better] = ways[better], steps
        best = following
        choices.append(chosen)
    return best, choices


def _largest(rows: Sequence[Sequence[Best | None]], weights: Sequence[int], cells: int) -> list[int]:
    """The least possible bound on errors says how few steps a row may compute; what is left over is given out by
    comparing sorted lists, all of one length, which is exact."""
    allowed = _bounded(rows, weights, cells)
    least = [numbers[0] for numbers in allowed]
    left = cells - sum(n * w for n, w in zip(least, weights))
    best: list[Any] = [()] + [NEVER] * left
    choices = []
    for row, weight, numbers in zip(rows, weights, allowed):
        following, chosen = [NEVER] * (left + 1), np.zeros(left + 1, int)
        for steps in numbers:
            plan, taken = row[steps - 1], (steps - numbers[0]) * weight
            for total in range(taken, left + 1) if plan is not None else ():
                way = _merged(best[total - taken], tuple(plan.label) * weight)
                if way[:1] != NEVER and (not chosen[total] or way < following[total]):
                    following[total], chosen[total] = way, steps
        best = following
        choices.append(chosen)
    found, total = [], left
    for chosen, weight, few in zip(choices[::-1], weights[::-1], least[::-1]):
        found.append(int(chosen[total]))
        total -= (found[-1] - few) * weight
    return found[::-1]


def _bounded(rows: Sequence[Sequence[Best | None]], weights: Sequence[int], cells: int) -> list[list[int]]:
    """Numbers of steps of each row under the least bound on errors with which rows come to `cells` cells."""
    worst = [[max(plan.label, default=0.0) if plan else np.inf for plan in row] for row in rows]
    bounds = sorted({bound for row in worst for bound in row if bound < np.inf})

    def allowed(bound: float) -> list[list[int]]:
        return [[n for n, most in enumerate(row, 1) if most <= bound] for row in worst]

    at = bisect_left(bounds, True, key=lambda bound: _comes_to(allowed(bound), weights, cells))
    if at == len(bounds):
        raise ValueError(_impossible(cells))
    return allowed(bounds[at])


def _comes_to(allowed: list[list[int]], weights: Sequence[int], cells: int) -> bool:
    """Whether rows with these numbers of steps can come to so many cells; sums stand as bits of a number."""
    sums = 1
    for numbers, weight in zip(allowed, weights):
        sums = reduce(or_, (sums << n * weight for n in numbers), 0) & (2 << cells) - 1
    return bool(sums >> cells & 1)


def _impossible(cells: int) -> str:
    return f"no numbers of steps come to {cells} computed cells"


# Labels ----------------------------------------------------------------------


def _never(shape: tuple[int, ...], aim: str) -> Any:
    """An array of what cannot be."""
    labels = np.full(shape, np.inf, float if aim == TOTAL else object)
    if aim == MINIMAX:
        labels.fill(NEVER)
    return labels


def _none(aim: str) -> Any:
    return 0.0 if aim == TOTAL else ()


def _merged(one: tuple[float, ...], other: tuple[float, ...]) -> tuple[float, ...]:
    """Both lists, from the largest down."""
    if NEVER in (one[:1], other[:1]):
        return NEVER
    return tuple(sorted(one + other, reverse=True))


def _plus(one: Any, other: Any) -> Any:
    return one + other if one.dtype != object else np.frompyfunc(_merged, 2, 1)(one, other)


def _least(labels: Any, axis: int | None = None) -> Any:
    return labels.argmin(axis)
