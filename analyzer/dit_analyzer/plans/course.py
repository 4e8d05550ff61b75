"""The sampler's course: where its steps stand, and how far an error in a prediction moves the latents.

A step of a deterministic sampler moves the latents along the network's prediction. At a fixed state an error e in the
prediction moves them by w e, to first order: of a flow (x = (1 - sigma) x0 + sigma noise) w = |d sigma|; of a
variance-preserving schedule, with sigma = tan(angle), w = |sin(d angle)| for v-prediction, divided by cos(angle) for
noise and by sin(angle) for x0 prediction (DDIM, arXiv 2010.02502, equation 12, differentiated).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from dit_formats.reader import Trace
from numpy.typing import NDArray

MOST_STRETCH = 2.0
"""A trace says something about up to so many times its own steps, and down to one part in so many."""

Floats = NDArray[np.float64]


class OutOfReachError(ValueError):
    """Asked for something that the trace does not support."""

    exit_code = 1


@dataclass(frozen=True)
class Course:
    """The steps of a run.

    Args:
        levels: Coordinate of each step in which predictions are taken to be linear, (step): sigma of a flow, the angle
            of a variance-preserving schedule, the number of the step where sigma is not known.
        weights: How far an error of the prediction moves the latents, (step); None where that is not known.
        timesteps, sigmas: Before each step.
        places: Where each step lies among the recorded ones, (step): 3.5 is halfway from step 3 to step 4. With
            more steps than recorded, the last lies up to half a step beyond the last recorded one.
    """

    levels: Floats
    weights: Floats | None
    timesteps: Floats
    sigmas: Floats
    places: Floats

    @property
    def num_steps(self) -> int:
        return len(self.levels)


def course_of(trace: Trace, steps: int | None = None) -> Course:
    """The course of a trace, or what it would be with another number of steps: the same levels over relative time.

    Raises:
        OutOfReachError: So many steps, or so few, are beyond what the trace supports.
    """
    flow, parametrisation = _schedule(trace)
    recorded = np.arange(trace.num_steps + 1.0)  # the end of the last step closes the course, for steps beyond the last
    places = _places(trace.num_steps, steps or trace.num_steps)
    angle = trace.sigmas if flow else np.arctan(trace.sigmas)
    known = np.isfinite(angle).all() and (np.diff(angle) < 0).all() and angle[-1] > 0
    levels = np.interp(places, recorded, np.append(angle, 0.0)) if known else places.copy()
    weights = _weights(levels, flow, parametrisation) if known else None
    sigmas = levels if flow else np.tan(levels)
    if not known or steps in (None, trace.num_steps):
        sigmas = np.interp(places, recorded[:-1], trace.sigmas)
    timesteps = np.interp(places, recorded, np.append(trace.timesteps, 0.0))
    return Course(levels, weights, timesteps, sigmas, places)


def _places(recorded: int, steps: int) -> Floats:
    """Where each step lies among the recorded ones, up to the end of the last."""
    if recorded < 2:
        raise OutOfReachError("the trace has one step, and nothing before it to reuse; do not cache this run")
    if not recorded / MOST_STRETCH <= steps <= recorded * MOST_STRETCH or steps < 2:
        raise OutOfReachError(
            f"{steps} steps from a trace of {recorded}: it supports {max(2, -(-recorded // 2))} to {2 * recorded}; "
            f"trace the model with --steps {steps}"
        )
    return np.arange(steps) * recorded / steps


def _schedule(trace: Trace) -> tuple[bool, str]:
    """Whether the schedule is a flow's, and what the network predicts."""
    told = trace.run.settings.get("scheduler")
    scheduler: dict[str, Any] = told if isinstance(told, dict) else {}
    config = scheduler.get("config") if isinstance(scheduler.get("config"), dict) else {}
    parametrisation = str(config.get("prediction_type", "epsilon"))
    flow = "Flow" in str(scheduler.get("class")) or config.get("use_flow_sigmas") or "flow" in parametrisation
    return bool(flow), parametrisation


def _weights(levels: Floats, flow: bool, parametrisation: str) -> Floats | None:
    following = np.append(levels[1:], 0.0)
    if flow:
        return np.abs(following - levels)
    moved = np.abs(np.sin(following - levels))
    scale = {"v_prediction": np.ones_like(levels), "epsilon": np.cos(levels), "sample": np.sin(levels)}
    if parametrisation not in scale:
        return None
    return moved / np.maximum(scale[parametrisation], 1e-6)
