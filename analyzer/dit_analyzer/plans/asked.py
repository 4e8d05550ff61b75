"""What `dit-analyze plan` was asked for, and the plans that come of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dit_formats.plan import GRID, LINEAR, REUSE, STEPS, Plan, PlanError
from dit_formats.reader import Trace

from dit_analyzer.plans.costs import Costs, costs_of
from dit_analyzer.plans.optimise import TOTAL
from dit_analyzer.plans.planner import UNDONE, Planner

SHARE = 0.5
"""Of the layers' evaluations that a plan computes, unless told otherwise."""

ONLY_REUSE = ("diffusers", "diffusers-pab", "smoothcache")
"""Targets that predict nothing."""


@dataclass(frozen=True)
class Asked:
    """The options of `dit-analyze plan`, as values.

    Args:
        budget, reuse, error: At most one of them: computed steps, share that is left out, predicted error.
        change_points: Whether the steps after changes of all layers together are always computed.
        compute: Further steps that are.
        steps: Another number of steps than the trace has.
        undone: As `Planner` has it.
        targets: What the plan will be exported to; decides between reuse and prediction where that is left open.
    """

    budget: int | None = None
    reuse: float | None = None
    error: float | None = None
    granularity: str = STEPS
    predictor: str | None = None
    signal: str | None = None
    aim: str = TOTAL
    change_points: bool = False
    compute: tuple[int, ...] = ()
    steps: int | None = None
    targets: tuple[str, ...] = ()
    undone: float = UNDONE

    def predicts(self, trace: Trace) -> str:
        """How values that are left out are made up."""
        if self.granularity == GRID:
            return grid_predictor(trace)
        if self.predictor:
            return self.predictor
        return REUSE if self.granularity != STEPS or set(self.targets) & set(ONLY_REUSE) else LINEAR

    def share(self, steps: int) -> float:
        """The computed share that was asked for, unless it is by error."""
        if self.budget is not None:
            return self.budget / steps
        return 1 - self.reuse if self.reuse is not None else SHARE

    def told(self) -> dict[str, Any]:
        """The options that were given, for the plan to tell."""
        return {name: value for name, value in vars(self).items() if value not in (None, (), False)}


def planner_of(trace: Trace, asked: Asked, dask: Any = None) -> Planner:
    """All plans of a trace at the granularity that was asked for.

    Raises:
        IncompleteError, OutOfReachError: The trace does not support it.
        PlanError: A step that shall be computed does not exist.
    """
    costs = costs_of(trace, asked.granularity, asked.predicts(trace), asked.signal, asked.steps, dask)
    return Planner(trace, costs, asked.aim, _forced(trace, costs, asked, dask), asked.told(), asked.undone)


def plan_of(planner: Planner, asked: Asked) -> Plan:
    """The one plan that was asked for."""
    if asked.budget is not None:
        return planner.with_steps(asked.budget)
    if asked.error is not None:
        return planner.with_error(asked.error)
    return planner.with_share(asked.share(planner.costs.num_steps))


def grid_predictor(trace: Trace) -> str:
    """What a solver does between two steps of a coarser grid: of first order it keeps the prediction, of second order
    it prolongs it."""
    scheduler = trace.run.settings.get("scheduler") or {}
    config = scheduler.get("config") or {}
    return LINEAR if int(config.get("solver_order") or 1) > 1 else REUSE


def _forced(trace: Trace, costs: Costs, asked: Asked, dask: Any) -> dict[int, str]:
    wrong = [step for step in asked.compute if not 0 <= step < costs.num_steps]
    if wrong:
        raise PlanError(f"--compute {wrong[0]}: the run has steps 0 to {costs.num_steps - 1}")
    forced = dict.fromkeys(asked.compute, "asked for")
    if asked.change_points:
        for step in change_steps(trace, dask):
            near = int(abs(costs.course.places - step).argmin())
            forced.setdefault(near, f"change point, from step {step - 1} to {step} of the trace")
    return forced


def change_steps(trace: Trace, dask: Any = None) -> list[int]:
    """The steps that begin a new segment of all layers together, of any kind."""
    from dit_analyzer.measures.changes import ALL, changes, points
    from dit_analyzer.measures.distance import distances
    from dit_analyzer.measures.paper import paper_view

    found = points(changes(paper_view(distances(trace, dask=dask))))
    return sorted({point["to_step"] for point in found if point["layer"] == ALL})
