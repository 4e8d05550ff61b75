"""The time that a plan is expected to take, where the trace holds how long its layers and steps take."""

from __future__ import annotations

from typing import Any

import numpy as np
from dit_formats.plan import GRID, STEPS
from dit_formats.reader import Trace
from numpy.typing import NDArray

from dit_analyzer.plans.costs import Costs


def times_of(trace: Trace, costs: Costs, mask: NDArray[np.bool_]) -> dict[str, Any]:
    """Seconds of a generation with and without the plan, by name; empty where none were recorded.

    At best: what is left out takes no time at all, and the scheduler's part of a step goes with it.
    """
    timing = trace.timing
    if timing is None:
        return {}
    scale = costs.num_steps / trace.num_steps
    whole = float(timing.steps.sum()) * scale
    if costs.granularity in (STEPS, GRID):
        seconds = np.interp(costs.course.places, np.arange(trace.num_steps), timing.steps)
        saved = float(seconds[~mask[0]].sum())
    else:
        of_layer = {layer.name: _seconds(timing.layers, place) for place, layer in enumerate(trace.layers)}
        left_out = (~mask).sum(1)
        saved = sum(n * sum(of_layer[name] for name in names) for n, (_, names) in zip(left_out, costs.rows))
    return {"seconds": whole - float(saved), "seconds_uncached": whole}


def _seconds(layers: dict[str, NDArray[np.float64]], place: int) -> float:
    """Of a layer's own output; a feed-forward network timed with its attention is not left out with it."""
    known = (layers[kind][place] for kind in ("a", "f") if kind in layers)
    return next((float(seconds) for seconds in known if np.isfinite(seconds)), 0.0)
