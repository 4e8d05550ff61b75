"""What leaving steps out costs, by row of a plan: of the prompts to plan with, and of others that are held out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from dit_formats.plan import GRID, LAYERS, LINEAR, STEPS
from dit_formats.reader import Trace
from numpy.typing import NDArray
from scipy.special import stdtrit

from dit_analyzer.plans.course import Course, OutOfReachError, course_of
from dit_analyzer.plans.errors import OUTPUTS, PREDICTION, Errors, errors_of, has_prediction
from dit_analyzer.plans.tracks import Track

EACH = 5
"""One prompt of so many is held out."""

MOST_TRACKS = 64
"""Prompts whose prediction is kept, to see where errors cancel."""

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Costs:
    """Errors of what stands in for a step that is left out.

    Args:
        rows: Name of every row, and the layers that it holds.
        planning: Mean over the prompts to plan with, (row, before, last, step), as `plans.errors` scales it.
        held_out: Of the other prompts, (prompt, row, before, last, step).
        planned_with, held: Their places in the trace.
        tracks, held_tracks: The prediction of prompts to plan with, `MOST_TRACKS` at most, and of those held out; empty
            where errors are of outputs.
    """

    course: Course
    signal: str
    predictor: str
    granularity: str
    rows: tuple[tuple[str, tuple[str, ...]], ...]
    planning: Floats
    held_out: NDArray[np.float32]
    planned_with: tuple[int, ...]
    held: tuple[int, ...]
    tracks: tuple[Track, ...] = ()
    held_tracks: tuple[Track, ...] = ()

    def planning_error(self, mask: Mask) -> float:
        """The error of a plan on prompts that it is made from."""
        if not self.tracks:
            return error_of(self.planning, mask, self.weights)
        return geometric(np.array([self._along(track, mask) for track in self.tracks])).error

    def planned_error(self, place: int, mask: Mask) -> float:
        """The error of a plan on one of the prompts to plan with that have a track; by mean costs where none has."""
        if not self.tracks:
            return error_of(self.planning, mask, self.weights)
        return self._along(self.tracks[place], mask)

    def held_error(self, prompt: int, mask: Mask) -> float:
        """The error of a plan, (row, step), on one of the prompts held out."""
        if not self.held_tracks:
            return error_of(self.held_out[prompt], mask, self.weights)
        return self._along(self.held_tracks[prompt], mask)

    def _along(self, track: Track, mask: Mask) -> float:
        return track.error(mask[0], self.course.levels, self.predictor == LINEAR)

    @property
    def num_steps(self) -> int:
        return self.course.num_steps

    @property
    def weights(self) -> list[int]:
        """Layers of each row."""
        return [len(layers) for _, layers in self.rows]


@dataclass(frozen=True)
class Expected:
    """A predicted error: geometric mean over prompts, with its 95 % interval (Student's t of logarithms).

    Args:
        low, high: NaN with fewer than two prompts.
    """

    error: float
    low: float
    high: float
    prompts: int


def costs_of(
    trace: Trace,
    granularity: str = STEPS,
    predictor: str = "reuse",
    signal: str | None = None,
    steps: int | None = None,
    dask: Any = None,
) -> Costs:
    """The costs of a trace at one granularity.

    Args:
        signal: One of `plans.errors.SIGNALS`; by default the prediction for whole steps, where it was recorded.
        steps: Another number of steps than the trace has.

    Raises:
        OutOfReachError: The trace does not support so many steps.
        IncompleteError: It lacks the samples.
    """
    whole = granularity in (STEPS, GRID)
    signal = signal or (PREDICTION if whole and has_prediction(trace) else OUTPUTS)
    if signal == PREDICTION and not whole:
        raise ValueError("the prediction is of whole steps; plan layers and types by their outputs")
    course = course_of(trace, steps)
    errors = errors_of(trace, course, signal, predictor)
    if not whole and len(set(errors.question.networks)) > 1:
        raise OutOfReachError("several networks take turns, and their layers run in some steps alone; plan whole steps")
    rows = _rows(errors, trace, granularity)
    planned, held = split(len(trace.prompts))
    planning = sum(_grouped(found, rows) for _, found in errors.of_prompts(planned, dask)) / len(planned)
    others = np.empty((len(held), *planning.shape), "f4")
    for place, found in errors.of_prompts(held, dask):
        others[place] = _grouped(found, rows)
    names = tuple((name, layers) for name, _, layers in rows)
    tracks = (tuple(errors.tracks(some, dask)) for some in (planned[:MOST_TRACKS], held))
    where = tuple(planned), tuple(held)
    return Costs(course, signal, predictor, granularity, names, planning, others, *where, *tracks)


def split(prompts: int) -> tuple[list[int], list[int]]:
    """Prompts to plan with and prompts held out: every fifth, and at least one where there are two.

    >>> split(6)
    ([0, 1, 2, 3, 5], [4])
    """
    held = list(range(EACH - 1, prompts, EACH)) or ([prompts - 1] if prompts > 1 else [])
    return [place for place in range(prompts) if place not in held], held


def error_of(errors: Floats, mask: Mask, weights: list[int]) -> float:
    """The error of a plan: sum over the steps left out of what stands in for them, mean over layers.

    Args:
        errors: (row, before, last, step).
        mask: Whether computed, (row, step).
    """
    total = 0.0
    for row, compute, weight in zip(errors, mask, weights):
        before = last = 0
        for step, computed in enumerate(compute):
            if computed:
                before, last = (last, step) if step else (0, 0)
            else:
                total += weight * row[before if len(row) > 1 else 0, last, step]
    return total / sum(weights)


def expected(costs: Costs, mask: Mask) -> Expected:
    """The predicted error of a plan on the prompts that it was not made from; with none, on those it was."""
    found = np.array([costs.held_error(place, mask) for place in range(len(costs.held))])
    if not len(found):
        return Expected(costs.planning_error(mask), np.nan, np.nan, 0)
    return geometric(found)


def geometric(found: Floats) -> Expected:
    """The mean over prompts of what each of them gives, (prompt); NaN ends unless all are positive and finite."""
    if not (found > 0).all() or not np.isfinite(found).all():
        return Expected(float(found.mean()), np.nan, np.nan, len(found))
    logs = np.log(found)
    half = float(stdtrit(len(found) - 1, 0.975) * logs.std(ddof=1) / len(found) ** 0.5) if len(found) > 1 else np.nan
    middle = float(logs.mean())
    return Expected(float(np.exp(middle)), float(np.exp(middle - half)), float(np.exp(middle + half)), len(found))


def _rows(errors: Errors, trace: Trace, granularity: str) -> list[tuple[str, list[int], tuple[str, ...]]]:
    """The rows of a plan: name, which of the errors' rows they are the mean of, and names of their layers."""
    every = list(range(len(errors.names)))
    if granularity in (STEPS, GRID):
        return [("all", every, tuple(layer.name for layer in trace.layers))]
    if granularity == LAYERS:
        return [(name, [place], (name,)) for place, name in enumerate(errors.names)]
    groups = {one: [place for place in every if errors.types[place] == one] for one in errors.types}
    return [(one, places, tuple(errors.names[place] for place in places)) for one, places in groups.items()]


def _grouped(errors: Floats, rows: list[tuple[str, list[int], tuple[str, ...]]]) -> Floats:
    return np.array([errors[places].mean(0, dtype=float) for _, places, _ in rows])
