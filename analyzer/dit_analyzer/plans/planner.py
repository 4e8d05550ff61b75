"""Makes plans from the costs of a trace: as many computed steps as are asked for, or as few as an error allows."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import numpy as np
from dit_formats.errors import TraceError
from dit_formats.plan import GRID, Plan, Request, Row, scheduler_hash, text_hash
from dit_formats.reader import Trace
from numpy.typing import NDArray

from dit_analyzer.plans import magcache
from dit_analyzer.plans.costs import Costs, Expected, error_of, expected
from dit_analyzer.plans.course import OutOfReachError
from dit_analyzer.plans.errors import PREDICTION
from dit_analyzer.plans.optimise import TOTAL, Best, allotted, best_plans, least_totals
from dit_analyzer.plans.times import times_of

SHARES = tuple(np.linspace(1.0, 0.2, 41).round(4).tolist())
"""Computed shares of the plans of a curve."""

WORTH = 0.01
"""A model is not worth caching if leaving out its one cheapest step already moves the final latents by more than this:
with the bundled models, fewer steps are then as good (docs/plans.md)."""

CACHE, DO_NOT, UNKNOWN = "cache", "do not cache", "unknown"
"""Verdicts; of layers' outputs alone it is not known how far they move the latents."""

UNDONE = 0.5
"""Steps are chosen as if an error of the prediction counted by 1 / level ** `UNDONE`: what goes wrong while there is
much noise, the steps that follow partly undo; what goes wrong at the end stays. Tried on the bundled models
(docs/plans.md)."""

Mask = NDArray[np.bool_]
Floats = NDArray[np.float64]


@dataclass
class Planner:
    """All plans that a trace gives at one granularity; what they have in common is worked out once.

    Args:
        aim: One of `optimise.AIMS`.
        forced: Steps that are always computed, and why.
        asked: What the command asked for, to be told in the plan.
        undone: Power of the level by which early errors of the prediction count less; 0 for none.
    """

    trace: Trace
    costs: Costs
    aim: str = TOTAL
    forced: dict[int, str] = field(default_factory=dict)
    asked: dict[str, Any] = field(default_factory=dict)
    undone: float = UNDONE

    def __post_init__(self) -> None:
        counted = self.costs.planning * self._counts
        self._best = [best_plans(errors, sorted(self.forced), self.aim) for errors in counted]
        self._ratios = _ratios(self.trace, self.costs.num_steps)

    @property
    def cells(self) -> int:
        """Computed cells of a plan that leaves nothing out: a cell is one layer in one step."""
        return self.costs.num_steps * sum(self.costs.weights)

    @property
    def fewest(self) -> int:
        """Cells of the plan that computes least."""
        return sum(self._first(row) * weight for row, weight in zip(self._best, self.costs.weights))

    def with_share(self, share: float) -> Plan:
        """The best plan that computes this share of the cells, or the nearest share that can be."""
        return self._nearest(round(share * self.cells, 6))

    def with_steps(self, steps: int) -> Plan:
        """The best plan with as many computed cells as `steps` whole steps have."""
        if not 1 <= steps <= self.costs.num_steps:
            option = "--sigmas" if self.costs.granularity == GRID else "--budget"
            raise OutOfReachError(f"{option} {steps}: the run has {self.costs.num_steps} steps; give 1 to that many")
        return self._nearest(steps * sum(self.costs.weights))

    def with_error(self, error: float) -> Plan:
        """The plan with the fewest computed cells whose predicted error, on prompts it is made from, is no larger."""
        for cells in self._sizes(error):
            mask = self._mask(cells)
            if mask is not None and self.costs.planning_error(mask) <= error:
                return self._plan(mask)
        return self._plan(np.ones((len(self.costs.rows), self.costs.num_steps), bool))

    def curve(self) -> list[Plan]:
        """A plan for every one of `SHARES`."""
        return [self.with_share(share) for share in SHARES]

    def cheapest_step(self) -> float | None:
        """What leaving out the one cheapest step costs, mean over layers; None if none may be left out."""
        rows = [row[-2] if len(row) > 1 else None for row in self._best]
        known = [best.compute for best in rows if best is not None]
        return self.costs.planning_error(np.array(known)) if len(known) == len(rows) else None

    @property
    def _counts(self) -> Floats:
        """How much an error counts where steps are chosen, (step)."""
        levels = np.abs(self.costs.course.levels)
        if self.costs.signal != PREDICTION or self.costs.course.weights is None:
            return np.ones(len(levels))
        return np.maximum(levels / levels.max(), 1e-3) ** -self.undone

    # ------------------------------------------------------------------------

    def _sizes(self, error: float) -> Iterable[int]:
        """Numbers of cells, rising, among which is the fewest that keep to an error."""
        weights = self.costs.weights
        if self.aim != TOTAL or self.costs.tracks:  # errors that cancel are less than their sum
            return range(self.fewest, self.cells + 1, math.gcd(*weights))
        least = least_totals(self._best, weights, self.cells) / sum(weights)
        return np.flatnonzero(least <= error * (1 + 1e-9)).tolist()

    @staticmethod
    def _first(row: list[Best | None]) -> int:
        return next(number for number, best in enumerate(row, 1) if best)

    def _nearest(self, cells: float) -> Plan:
        """The plan whose computed cells are nearest to a number, the larger of two that are as near."""
        for near in sorted(range(self.fewest, self.cells + 1), key=lambda near: (abs(near - cells), -near)):
            mask = self._mask(near)
            if mask is not None:
                return self._plan(mask)
        raise OutOfReachError("no plan is possible with these steps forced")

    def _mask(self, cells: int) -> Mask | None:
        """Whether computed, (row, step); None where no plan has exactly so many cells."""
        try:
            numbers = allotted(self._best, self.costs.weights, cells, self.aim)
        except ValueError:
            return None
        rows = [row[number - 1] for row, number in zip(self._best, numbers)]
        return np.array([best.compute for best in rows if best is not None])

    def _plan(self, mask: Mask) -> Plan:
        costs = self.costs
        rows = tuple(Row(name, layers, tuple(map(bool, one))) for (name, layers), one in zip(costs.rows, mask))
        kept = {layer for row in rows for layer in row.layers}
        types = {layer.name: layer.type for layer in self.trace.layers if layer.name in kept}
        predicted = _told(expected(costs, mask)) | times_of(self.trace, costs, mask)
        predicted["planning_error"] = costs.planning_error(mask)
        predicted["sum_of_errors"] = error_of(costs.planning, mask, costs.weights)
        cheapest = predicted["cheapest_step"] = self.cheapest_step()
        told = CACHE if costs.signal == PREDICTION else UNKNOWN
        predicted["verdict"] = told if cheapest is not None and (told == UNKNOWN or cheapest <= WORTH) else DO_NOT
        levels = tuple(costs.course.levels.tolist())
        made = _made(self) | {"asked": self.asked}
        if found := self._ratios and _mag_cache(self._ratios, 1 - float(mask.mean())):
            made["magcache"] = found
        return Plan(
            request_of(self.trace, costs), costs.granularity, costs.predictor, levels, rows, types, made, predicted
        )


def request_of(trace: Trace, costs: Costs) -> Request:
    """The generation that a plan is for: the trace's, or the same with another number of steps."""
    settings, course = trace.run.settings, costs.course
    scheduler = settings.get("scheduler") or {}
    networks = settings.get("transformers") or {}
    call = {name: value for name, value in (settings.get("call") or {}).items() if value is not None}
    return Request(
        str(settings.get("model", "")),
        {name: str(told.get("weights", "")) for name, told in networks.items()},
        settings.get("revision"),
        str(settings.get("pipeline", "")),
        "+".join(dict.fromkeys(str(told.get("class", "")) for told in networks.values())),
        str(scheduler.get("class", "")),
        scheduler_hash(scheduler.get("config") or {}),
        costs.num_steps,
        tuple(course.timesteps.tolist()),
        tuple(course.sigmas.tolist()),
        str(settings.get("dtype", "")),
        call | {"num_inference_steps": _asked_steps(trace, costs, call)},
    )


def _ratios(trace: Trace, steps: int) -> list[float] | None:
    """MagCache's ratio at each step, mean over branches; None where the trace does not tell."""
    try:
        found = magcache.ratios(trace).ratios.mean(0)
    except TraceError:
        return None
    return found.tolist() if len(found) == steps and np.isfinite(found).all() else None


def _mag_cache(ratios: list[float], share: float) -> dict[str, Any] | None:
    """Arguments of diffusers' MagCacheConfig that skip this share of the steps, for comparison; None if none do."""
    skips = {"max_skip_steps": magcache.MAX_SKIP, "retention_ratio": magcache.RETENTION}
    try:
        threshold = magcache.threshold_for(ratios, share)
    except ValueError:
        return None
    return {"mag_ratios": ratios, "threshold": threshold, "num_inference_steps": len(ratios)} | skips


def _asked_steps(trace: Trace, costs: Costs, call: dict[str, Any]) -> int:
    """A scheduler may make more steps than the pipeline is asked for."""
    asked = call.get("num_inference_steps", trace.num_steps)
    return costs.num_steps + (int(asked) - trace.num_steps)


def _told(found: Expected) -> dict[str, Any]:
    interval = {
        name: value if np.isfinite(value) else None for name, value in (("low", found.low), ("high", found.high))
    }
    return {"error": found.error, **interval, "held_out_prompts": found.prompts}


def _made(planner: Planner) -> dict[str, Any]:
    costs, prompts = planner.costs, planner.trace.prompts
    recorded = planner.trace.num_steps
    return {
        "ditscope": version("ditscope"),
        "trace": planner.trace.path.name,
        "trace_signature": planner.trace.run.signature,
        "signal": costs.signal,
        "aim": planner.aim,
        "undone": planner.undone,
        "forced": {str(step): why for step, why in sorted(planner.forced.items())},
        "prompts": {"planned": len(costs.planned_with), "held_out": len(costs.held)},
        "seen": [text_hash(prompts[place].text) for place in (*costs.planned_with, *costs.held)],
        "recorded_steps": recorded,
        "extrapolated_steps": _beyond(costs.num_steps, recorded),
    }


def _beyond(steps: int, recorded: int) -> float:
    """How far the last step lies beyond the last recorded one, in steps of the trace."""
    return max(0.0, (steps - 1) * recorded / steps - (recorded - 1))
