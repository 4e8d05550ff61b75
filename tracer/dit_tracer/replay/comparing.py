"""Runs schedules side by side, prompt by prompt, against the uncached generation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from dit_formats.errors import ConflictError
from dit_formats.plan import Plan, scheduler_hash
from numpy.typing import NDArray

from dit_tracer.recording.settings import Sample, describe
from dit_tracer.recording.sites import find_networks
from dit_tracer.replay.quality import Mean, compared, mean_of, ratio_of
from dit_tracer.replay.running import evaluations, made
from dit_tracer.replay.schedules import UNCACHED, Schedule
from dit_tracer.work import Task

KEPT = 4
"""Prompts of which pictures are kept, for the grid."""

SHARE = "share"
"""Name of the measure that says how much was computed, where it varies by prompt."""

NEAR = 1e-3
"""By how much, relative to the largest, timesteps may differ from those of the plan."""


@dataclass
class Outcome:
    """What came of one schedule.

    Args:
        share: Evaluations of layers that were computed, as a share of those of the uncached generation; of a policy,
            the mean over prompts of the steps that were.
        measures: By name, a value for each prompt; of a policy, its share too.
        pictures: Of the first prompts.
    """

    schedule: Schedule
    share: float
    measures: dict[str, list[float]] = field(default_factory=dict)
    pictures: list[NDArray[np.float64]] = field(default_factory=list)
    uncached_seconds: list[float] = field(default_factory=list)

    def mean(self, name: str) -> Mean:
        return mean_of(self.measures[name], name)

    @property
    def speed(self) -> Mean:
        """How many times as fast as uncached, prompt by prompt."""
        return ratio_of(self.uncached_seconds, self.measures["seconds"])

    def against(self, other: Outcome) -> Mean:
        """Its error as a multiple of another's, prompt by prompt."""
        return ratio_of(self.measures["error"], other.measures["error"])


def compare(
    pipeline: Any,
    tasks: Sequence[Task],
    call: dict[str, Any],
    schedules: Sequence[Schedule],
    *,
    similarity: Callable[..., float] | None = None,
    done: Callable[[], object] = lambda: None,
) -> list[Outcome]:
    """Every schedule on every prompt; the first outcome is the uncached generation itself, run a second time.

    For each prompt the schedules follow one another, so that what else the machine does hits all of them alike.

    Args:
        call: Arguments of the pipeline.
        done: Called after each prompt.
    """
    every = [Schedule(UNCACHED), *schedules]
    whole = evaluations(pipeline, tasks[0], call)
    outcomes = [Outcome(one, _share(pipeline, one, tasks[0], call, whole)) for one in every]
    for task in tasks:
        reference = made(pipeline, task, call)
        for outcome in outcomes:
            with outcome.schedule.work(pipeline) as running:
                found = made(pipeline, task, call | outcome.schedule.call)
            if outcome.schedule.policy is not None:
                outcome.measures.setdefault(SHARE, []).append(running.computed_share)
                outcome.share = float(np.mean(outcome.measures[SHARE]))
            for name, value in compared(found, reference, similarity).items():
                outcome.measures.setdefault(name, []).append(value)
            if len(outcome.pictures) < KEPT:
                outcome.pictures.append(found.pictures)
            outcome.uncached_seconds.append(reference.seconds)
        done()
    return outcomes


def _share(pipeline: Any, schedule: Schedule, task: Task, call: dict[str, Any], whole: int) -> float:
    if schedule.policy is not None:
        return float("nan")  # it varies by prompt, and is told by each
    with schedule.work(pipeline):
        return evaluations(pipeline, task, call | schedule.call) / max(whole, 1)


def refuse_another(plan: Plan, pipeline: Any, model: str, steps: Sequence[float]) -> None:
    """Refuse a pipeline that a plan was not made for.

    Args:
        steps: Timesteps of a generation with the plan's arguments.

    Raises:
        ConflictError: It names what differs.
    """
    _refuse(list(_differences(plan, pipeline, model, steps)))


def refuse_other_arguments(plan: Plan, call: dict[str, Any]) -> None:
    """Refuse arguments of the pipeline, which come with the prompts, that are not the plan's."""
    planned = plan.request.call
    _refuse([f"{name}: {planned.get(name)} in the plan, {value} with the prompts" for name, value in call.items()
             if planned.get(name) != value])  # fmt: skip


def _refuse(told: list[str]) -> None:
    if told:
        raise ConflictError(
            f"the plan is for another run ({'; '.join(told)}); make one from a trace of this, or run it all the same "
            "with --transfer"
        )


def _differences(plan: Plan, pipeline: Any, model: str, steps: Sequence[float]) -> Iterator[str]:
    request = plan.request
    now = describe(pipeline, find_networks(pipeline), model, Sample(0, 0))
    weights = {name: told["weights"] for name, told in now["transformers"].items()}
    pairs = {
        "pipeline": (request.pipeline, now["pipeline"]),
        "dtype": (request.dtype, now["dtype"]),
        "scheduler": (request.scheduler, now["scheduler"]["class"]),
        "weights": (request.weights, weights),
    }
    for name, (planned, found) in pairs.items():
        if planned != found:
            yield f"{name}: {planned} in the plan, {found} now"
    if request.scheduler == now["scheduler"]["class"]:
        if request.scheduler_sha256 != scheduler_hash(now["scheduler"]["config"]):
            yield "scheduler: configured in another way"
    planned_steps = np.array(request.timesteps)
    transferred = plan.made.get("recorded_steps") not in (None, request.num_steps)
    near = 0.05 if transferred else NEAR
    if len(steps) != len(planned_steps):
        yield f"steps: {len(planned_steps)} in the plan, {len(steps)} now"
    elif np.abs(planned_steps - steps).max() > near * np.abs(planned_steps).max():
        yield "timesteps: others than in the plan"
