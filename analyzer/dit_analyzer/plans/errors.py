"""What it costs to leave a step out, from sampled tensors: the error of the value that would stand in its place.

Two signals. `outputs`: what attention layers and feed-forward networks return, each relative to its own size,

    mean |y - x[t]| / mean |x[t]|    with y = x[a], or x[a] + (x[a] - x[b]) (u[t] - u[a]) / (u[a] - u[b]),

a being the last computed step, b the one before, u the level (SmoothCache, arXiv 2411.10510, equation 4, at any lag).
`prediction`: what the network as a whole returns, its guidance applied, weighted by how far it moves the latents,

    w[t] mean |y - x[t]| / mean |latents at the end|.

Scaled so that the sum over the steps left out, as a mean over layers, is the error of a plan if all its errors add up.
Those of the prediction also cancel: `tracks` tell by how much.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from dit_formats.arrays import Arrays
from dit_formats.errors import IncompleteError, TraceError
from dit_formats.plan import LINEAR
from dit_formats.reader import Trace
from dit_formats.schema import STACK
from numpy.typing import NDArray
from scipy.interpolate import make_interp_spline

from dit_analyzer.mapping import mapped
from dit_analyzer.plans.course import Course
from dit_analyzer.plans.tracks import Track

OUTPUTS, PREDICTION = "outputs", "prediction"
SIGNALS = (OUTPUTS, PREDICTION)

ENOUGH = 1024
"""Positions of an output that are used where predictions are linear, which asks for every pair of steps before."""

TRACK_SECONDS = 0.005
SPEED = 2e8
"""Differences a core takes in a second, about."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Cell:
    """One activation: where it lies in a trace's arrays, and how its positions count.

    Args:
        stream, kind, layer: Name, and places along the axes.
        positions: Places of the positions that are used.
        weights: Of these positions; they sum to the number of elements.
        runs: Whether it was recorded, (branch, step).
    """

    stream: str
    kind: int
    layer: int
    positions: NDArray[np.intp]
    weights: Floats
    runs: NDArray[np.bool_]


@dataclass(frozen=True)
class Question:
    """What is asked of every prompt.

    Args:
        rows: The activations that make up each row.
        branches: Weight of each guidance branch in the sum that counts; None where each counts apart.
        networks: Which networks are at work, as a number, (step): what one returned does not stand in for another.
        moved: How far an error moves the latents, (step), with `latents` the activation that tells their size; None
            for errors relative to the row itself.
    """

    rows: tuple[tuple[Cell, ...], ...]
    num_branches: int
    branches: Floats | None
    linear: bool
    levels: Floats
    places: Floats
    networks: NDArray[np.intp]
    moved: Floats | None
    latents: Cell | None


@dataclass(frozen=True)
class Errors:
    """Of some prompts, one at a time.

    Args:
        names, types: Of the rows.
    """

    question: Question
    names: tuple[str, ...]
    types: tuple[str, ...]
    trace: Trace

    def tracks(self, prompts: list[int], dask: Any = None) -> list[Track]:
        """The prediction of each prompt, in order; none where the signal is another one, or guidance is not known."""
        if self.question.moved is None or self.question.branches is None:
            return []
        parts = [(shard.path.absolute(), row) for shard, row in (self.trace.rows[prompt] for prompt in prompts)]
        found = mapped(track_of_prompt, self.question, parts, seconds=len(parts) * TRACK_SECONDS, dask=dask)
        return [track for _, track in sorted(found, key=lambda one: one[0])]

    def of_prompts(self, prompts: list[int], dask: Any = None) -> Iterator[tuple[int, Floats]]:
        """Place among these prompts, and errors (row, before, last, step), in any order; `before` has length 1 if it
        makes no difference. Infinite where there is no value to reuse, 0 where there is nothing to compute."""
        rows = [self.trace.rows[prompt] for prompt in prompts]
        parts = [(shard.path.absolute(), row) for shard, row in rows]
        seconds = len(parts) * _work(self.question) / SPEED
        yield from mapped(errors_of_prompt, self.question, parts, seconds=seconds, dask=dask)


def errors_of(trace: Trace, course: Course, signal: str, predictor: str) -> Errors:
    """What leaving steps out costs in a trace.

    Raises:
        IncompleteError: The trace does not hold the signal, or no samples of it.
    """
    make = _prediction if signal == PREDICTION else _outputs
    return make(trace, course, predictor == LINEAR)


def has_prediction(trace: Trace) -> bool:
    """Whether samples of the network's prediction were recorded."""
    return trace.has_stack and "prediction" in trace.sites() and trace.shape(STACK, "token")[-1] > 0


def _outputs(trace: Trace, course: Course, linear: bool) -> Errors:
    rows = []
    for place, layer in enumerate(trace.layers):
        kind = "f" if layer.type == "ff" else "a"
        cells = [
            _cell(trace, s, trace.kinds(s).index(kind), place, linear) for s in trace.streams if kind in trace.kinds(s)
        ]
        rows.append((layer, tuple(cell for cell in cells if cell is not None)))
    kept = [(layer, cells) for layer, cells in rows if cells]
    if not kept:
        raise IncompleteError(
            f"{trace.path}: holds no samples of outputs, which are what a plan reuses; trace with --kinds k,v,a,f and "
            "without --stats-only"
        )
    streams = trace.streams
    question = Question(
        tuple(cells for _, cells in kept), len(trace.branches(streams[0])), None, linear, course.levels, course.places,
        _networks(trace, course.places), None, None,
    )  # fmt: skip
    return Errors(question, tuple(layer.name for layer, _ in kept), tuple(layer.type for layer, _ in kept), trace)


def _prediction(trace: Trace, course: Course, linear: bool) -> Errors:
    if not has_prediction(trace):
        raise IncompleteError(f"{trace.path}: holds no samples of the prediction; trace without --no-stack")
    site = trace.sites().index("prediction")
    latents = _cell(trace, STACK, 0, trace.sites().index("model_input"), False)
    channels = int(trace.geometry(STACK, "num_channels")[0, trace.sites().index("model_input")])
    cell = _cell(trace, STACK, 0, site, linear, channels)  # further channels tell a variance, which moves nothing
    if cell is None or latents is None:
        raise IncompleteError(f"{trace.path}: holds no samples of the prediction; trace without --stats-only")
    question = Question(
        ((cell,),), len(trace.branches(STACK)), _guidance(trace), linear, course.levels, course.places,
        _networks(trace, course.places), course.weights, latents,
    )  # fmt: skip
    return Errors(question, ("all",), ("all",), trace)


def _cell(trace: Trace, stream: str, kind: int, layer: int, linear: bool, channels: int | None = None) -> Cell | None:
    """The activation; None where it has no positions."""
    channel, weight = (trace.geometry(stream, name)[kind, layer] for name in ("channel", "weight"))
    there = np.flatnonzero((channel >= 0) & (channel < (channels or np.inf)))
    if not len(there):
        return None
    if linear and len(there) > ENOUGH:
        there = there[:: -(-len(there) // ENOUGH)]
    size = float(
        trace.geometry(stream, "num_tokens")[kind, layer] * trace.geometry(stream, "num_channels")[kind, layer]
    )
    runs = trace.geometry(stream, "recorded")[:, kind, layer].astype(bool)
    return Cell(stream, kind, layer, there, weight[there] * size / weight[there].sum(), runs)


def _networks(trace: Trace, places: Floats) -> NDArray[np.intp]:
    """Which networks are at work, as a number, (step)."""
    at_work = sum(trace.geometry(stream, "recorded").sum((0, 1), dtype=int) for stream in trace.streams) > 0
    names = [layer.name.split(".")[0] for layer in trace.layers]
    of_network = np.array([at_work[[one == name for one in names]].any(0) for name in dict.fromkeys(names)])
    return np.unique(of_network[:, _nearest(places, trace.num_steps)], axis=1, return_inverse=True)[1].reshape(-1)


def _guidance(trace: Trace) -> Floats | None:
    """Weights of the branches in the guided prediction, cond + (scale - 1) (cond - uncond); None if not known."""
    branches, call = trace.branches(STACK), trace.run.settings.get("call")
    if len(branches) == 1:
        return np.ones(1)
    call = call if isinstance(call, dict) else {}
    scales = [call[name] for name in ("true_cfg_scale", "guidance_scale") if isinstance(call.get(name), (int, float))]
    if set(branches) != {"cond", "uncond"} or not scales:
        return None
    return np.array([scales[0] if branch == "cond" else 1.0 - scales[0] for branch in branches])


def _work(question: Question) -> float:
    """Differences to take for one prompt."""
    steps = len(question.levels)
    pairs = steps**3 / 6 if question.linear else steps**2 / 2
    sizes = sum(len(cell.positions) for cells in question.rows for cell in cells)
    return pairs * sizes * question.num_branches


# One prompt --------------------------------------------------------------------


def errors_of_prompt(question: Question, part: tuple[Path, int]) -> Floats:
    """Errors of one prompt, (row, before, last, step)."""
    path, row = part
    steps = len(question.levels)
    result = np.zeros((len(question.rows), steps if question.linear else 1, steps, steps), "f4")
    with Arrays(path) as arrays:
        for place, cells in enumerate(question.rows):
            scale = _moved(question, arrays, row, cells)
            for tracks, runs in _tracks(question, arrays, row, cells):
                try:
                    result[place] += _of_tracks(tracks, runs, question, scale)
                except NotFiniteError as error:
                    raise TraceError(f"{path}: {error}; dit-analyze check tells more") from None
    return result


def track_of_prompt(question: Question, part: tuple[Path, int]) -> Track:
    """The prediction of one prompt."""
    path, row = part
    assert question.branches is not None and question.moved is not None
    with Arrays(path) as arrays:
        (cell,) = question.rows[0]
        size = _size(question, arrays, row, question.rows[0])
        values = _values(question, arrays, row, cell, question.branches)
    used = np.isfinite(values).all(1)
    return Track((cell.weights[used] / size).astype("f4"), values[used].astype("f4"), question.moved)


class NotFiniteError(ValueError):
    """Samples that should be numbers are not."""


def _tracks(
    question: Question, arrays: Arrays, row: int, cells: tuple[Cell, ...]
) -> Iterator[tuple[list[tuple[Floats, Floats]], NDArray[np.bool_]]]:
    """What counts together: weights and values (position, step) of each activation, and the steps that have any."""
    alone = list(np.eye(question.num_branches))
    for branches in alone if question.branches is None else [question.branches]:
        values = [(cell.weights, _values(question, arrays, row, cell, branches)) for cell in cells]
        runs = np.any([cell.runs[branches != 0].any(0) for cell in cells], axis=0)
        yield values, runs[_nearest(question.places, len(runs))]


def _values(question: Question, arrays: Arrays, row: int, cell: Cell, branches: Floats) -> Floats:
    """Sum over branches of weight times value, at the steps of the course, (position, step)."""
    values = sum(
        weight * arrays.cell(cell.stream, row, branch, cell.kind, cell.layer)[cell.positions].astype(float)
        for branch, weight in enumerate(branches)
        if weight
    )
    return _resampled(np.asarray(values), question.places)


def _nearest(places: Floats, recorded: int) -> NDArray[np.intp]:
    """The recorded step next to each place."""
    return np.minimum((places + 0.5).astype(int), recorded - 1)


def _resampled(values: Floats, places: Floats) -> Floats:
    """Values at places between the recorded steps, on cubic splines.

    On straight lines a linear prediction between two recorded steps would seem to cost nothing.
    """
    nearest = _nearest(places, values.shape[1])
    if not (places % 1).any():
        return values[:, nearest]
    result, steps = values[:, nearest].copy(), np.flatnonzero(np.isfinite(values).any(0))
    known, runs = np.isfinite(values[:, steps]).all(1), np.isin(nearest, steps)
    if len(steps) > 1 and known.any():
        spline = make_interp_spline(steps, values[known][:, steps], k=min(len(steps) - 1, 3), axis=1)
        result[np.ix_(known, runs)] = spline(places[runs])
    return result


def _moved(question: Question, arrays: Arrays, row: int, cells: tuple[Cell, ...]) -> Floats | None:
    """What errors are multiplied with, (step); None where they are relative to the row itself."""
    if question.moved is None or question.latents is None:
        return None
    apart = 1 if question.branches is not None else question.num_branches
    return question.moved / _size(question, arrays, row, cells) / apart


def _size(question: Question, arrays: Arrays, row: int, cells: tuple[Cell, ...]) -> float:
    """Mean size of the final latents, times the number of elements of the row."""
    latents = question.latents
    assert latents is not None
    end = np.abs(_values(question, arrays, row, latents, np.eye(question.num_branches)[0])[:, -1])
    there = np.isfinite(end)
    if not there.any():
        raise TraceError(f"{arrays.path}: no sampled latent is finite at the end; dit-analyze check tells more")
    size = np.average(end[there], weights=latents.weights[there]) * sum(cell.weights.sum() for cell in cells)
    return max(float(size), 1e-30)


def _of_tracks(
    tracks: list[tuple[Floats, Floats]], runs: NDArray[np.bool_], question: Question, scale: Floats | None
) -> Floats:
    """Errors (before, last, step) of what counts together, over the positions that have a value in every step."""
    weights = np.concatenate([weight for weight, _ in tracks])
    values = np.concatenate([value for _, value in tracks])
    used = np.isfinite(values[:, runs]).all(1)
    if not used.any():
        raise NotFiniteError("no sampled position is finite in all steps, and nothing can be planned from it")
    weights, values = weights[used], np.where(runs, values[used], 0.0)
    if scale is None:
        size = weights @ np.abs(values)
        with np.errstate(divide="ignore"):
            scale = np.where(size > 0, 1 / size, 0.0) / len(question.levels) / question.num_branches
    found = _differences(values, weights, question, runs) * np.where(runs, scale, 0.0)
    alike = runs[:, None] & (question.networks[:, None] == question.networks)
    found[:, ~alike & runs] = np.inf
    return found


def _differences(values: Floats, weights: Floats, question: Question, runs: NDArray[np.bool_]) -> Floats:
    """Weighted sum of |y - x[t]|, (before, last, step); y is reused where no step before has a value to continue."""
    steps, levels, networks = values.shape[1], question.levels, question.networks
    result = np.zeros((steps if question.linear else 1, steps, steps))
    for last in range(steps - 1):
        rest = values[:, last + 1 :] - values[:, last : last + 1]
        result[: last + 1, last, last + 1 :] = weights @ np.abs(rest)
        continued = runs[:last] & (networks[:last] == networks[last])
        for before in np.flatnonzero(continued) if question.linear else ():
            ahead = (levels[last + 1 :] - levels[last]) / (levels[last] - levels[before])
            change = values[:, last : last + 1] - values[:, before : before + 1]
            result[before, last, last + 1 :] = weights @ np.abs(rest - change * ahead)
    return result
