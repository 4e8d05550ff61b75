"""What `dit-trace replay` does: loads the model of a plan, chooses prompts that planning never saw, runs and tells."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from dit_formats.console import plural
from dit_formats.errors import ConflictError
from dit_formats.plan import Plan, PlanError, text_hash
from dit_formats.policy import Policy, read_either
from dit_formats.publish import published

from dit_tracer.calls import parameters
from dit_tracer.models import loading, schedulers
from dit_tracer.models.catalog import Model
from dit_tracer.replay import report
from dit_tracer.replay.comparing import Outcome, compare, refuse_another, refuse_other_arguments
from dit_tracer.replay.quality import learned_similarity
from dit_tracer.replay.schedules import Schedule, baselines, of_plan, of_policy
from dit_tracer.work import Task, Work, requests_of
from dit_tracer.work import plan as planned_work

PROMPTS = 8
FILES = ("replay.json", "quality.png", "samples.png")


@dataclass(frozen=True)
class Ask:
    """The options of `dit-trace replay`, as values.

    Args:
        engine: Of `engines.ENGINES`; empty for our own hook.
        alone: Whether baselines are left out.
        transfer: Whether a plan may run where it was not made for.
    """

    plans: Sequence[Path]
    model: Model
    prompts: str | None = None
    limit: int | None = None
    seed: int = 42
    scheduler: str | None = None
    engine: str = ""
    alone: bool = False
    transfer: bool = False
    lpips: bool = False
    dtype: str | None = None
    device: str | None = None
    revision: str | None = None
    output: Path | None = None
    force: bool = False
    quiet: bool = False
    as_json: bool = False


def replay(ask: Ask) -> int:
    """Run plans for real and print what came of it."""
    given = [read_either(path) for path in ask.plans]
    plans = [one.static if isinstance(one, Policy) else one for one in given]
    _refuse_existing(ask)
    _refuse_other_steps(ask, plans)
    _refuse_engine(ask, given)
    first = plans[0]
    similarity = learned_similarity() if ask.lpips else None
    work = _work(ask, plans)
    tasks = work.tasks
    revision = ask.revision or (first.request.revision if ask.model.repo == ask.model.source else None)
    pipeline = loading.load(ask.model, ask.dtype, ask.device, revision=revision)
    if ask.scheduler:
        schedulers.replace(pipeline, ask.scheduler, first.request.num_steps)
    call = _call(pipeline, ask.model, first) | work.shared
    if not ask.transfer:
        refuse_other_arguments(first, work.shared)
        for plan in plans:
            refuse_another(plan, pipeline, ask.model.name, _timesteps(pipeline, call, plan))
    _refuse_steps_made(first, len(_timesteps(pipeline, call, first)))
    schedules, reasons = _schedules(ask, given, pipeline)
    with _progress(len(tasks), ask.quiet) as bar:
        outcomes = compare(pipeline, tasks, call, schedules, similarity=similarity, done=bar)
    _tell(ask, first, tasks, outcomes, reasons)
    return 0


def _schedules(ask: Ask, given: list[Plan | Policy], pipeline: Any) -> tuple[list[Schedule], dict[str, str]]:
    """What was given, each policy with its static plan, and other methods that compute as much as the first."""
    alone, found = len(given) == 1, []
    for path, one in zip(ask.plans, given):
        if isinstance(one, Policy):
            names = ("policy", "static plan") if alone else (path.stem, f"{path.stem}, static plan")
            found += of_policy(*names, one)
        else:
            found.append(of_plan("plan" if alone else path.stem, one, ask.engine))
    if ask.alone:
        return found, {}
    first = given[0].static if isinstance(given[0], Policy) else given[0]
    others, reasons = baselines(first, pipeline)
    return found + others, reasons


def _work(ask: Ask, plans: list[Plan]) -> Work:
    """The prompts: those given, or built-in ones that no plan was made from."""
    seen = {one for plan in plans for one in plan.made.get("seen", ())}
    if ask.prompts is not None:
        work = planned_work(requests_of(ask.model, ask.prompts, ask.limit), [ask.seed], ask.limit)
        known = sum(text_hash(task.text) in seen for task in work.tasks)
        if known:
            click.echo(
                f"{plural(known, 'prompt')} of {len(work.tasks)} planning has seen: no independent test", err=True
            )
        return work
    limit = ask.limit or PROMPTS
    fresh = [r for r in requests_of(ask.model, None, limit + len(seen)) if text_hash(r.text) not in seen][:limit]
    if not fresh:
        raise LookupError(f"planning has seen all of {ask.model.name}'s built-in prompts; give others with -p")
    if len(fresh) < limit:
        click.echo(f"{plural(len(fresh), 'prompt')}, for planning has seen the other built-in ones", err=True)
    return planned_work(fresh, [ask.seed])


def _call(pipeline: Any, model: Model, plan: Plan) -> dict[str, Any]:
    """Arguments of the pipeline: the plan's, as far as it knows them."""
    known = parameters(pipeline)
    return {name: value for name, value in (model.call | plan.request.call).items() if name in known}


def _timesteps(pipeline: Any, call: dict[str, Any], plan: Plan) -> Sequence[float]:
    """Timesteps of a generation with these arguments; the plan's own where they cannot be told without one."""
    steps = schedulers.num_steps(pipeline, call.get("num_inference_steps", plan.request.num_steps))
    if steps is None or steps == plan.request.num_steps:
        return plan.request.timesteps
    return [float("nan")] * steps


@contextmanager
def _progress(length: int, quiet: bool) -> Iterator[Callable[[], object]]:
    """A bar on a terminal, nothing elsewhere; what comes out is called after each prompt."""
    if quiet or not sys.stderr.isatty():
        yield lambda: None
        return
    with click.progressbar(length=length, label="replaying", file=sys.stderr) as bar:
        yield lambda: bar.update(1)


def _refuse_engine(ask: Ask, given: list[Plan | Policy]) -> None:
    for path, one in zip(ask.plans, given):
        if ask.engine and isinstance(one, Policy):
            raise PlanError(f"{path}: {ask.engine} runs no online rule of ours; replay it without --engine")


def _refuse_other_steps(ask: Ask, plans: list[Plan]) -> None:
    """All run the first one's steps: a longer plan would be cut off, unsaid, and a shorter one would end too soon."""
    first = plans[0].request.num_steps
    for path, plan in zip(ask.plans, plans):
        if plan.request.num_steps != first:
            steps = plural(plan.request.num_steps, "step")
            raise ConflictError(f"{path}: of {steps}, and {ask.plans[0]} of {first}; replay them apart")


def _refuse_steps_made(plan: Plan, steps: int) -> None:
    if steps != plan.request.num_steps:
        planned = plural(plan.request.num_steps, "step")
        raise ConflictError(f"the plan is of {planned}, and this scheduler makes {steps}; its steps mean nothing there")


def _refuse_existing(ask: Ask) -> None:
    if ask.output is not None and ask.output.exists() and not ask.output.is_dir():
        raise ConflictError(f"{ask.output}: a file; -o names a folder")
    if ask.output is None or ask.force:
        return
    for name in FILES:
        if (ask.output / name).exists():
            raise ConflictError(f"{ask.output / name}: exists already; give another folder, or --force to replace it")


def _tell(ask: Ask, plan: Plan, tasks: list[Task], outcomes: list[Outcome], reasons: dict[str, str]) -> None:
    told = {
        "model": ask.model.name,
        "plans": [str(path) for path in ask.plans],
        "engine": ask.engine or "dit-trace",
        "steps": plan.request.num_steps,
        "prompts": [task.text for task in tasks],
    }
    data = report.as_json(outcomes, reasons, told)
    if ask.as_json:
        click.echo(json.dumps(data))
    else:
        click.echo(f"{ask.model.name}, {plural(plan.request.num_steps, 'step')}, {plural(len(tasks), 'prompt')}")
        for line in report.lines_of(outcomes, reasons):
            click.echo(line)
    if ask.output is not None:
        ask.output.mkdir(parents=True, exist_ok=True)
        with published(ask.output / FILES[0], replace=ask.force) as file:
            file.write(json.dumps(data, indent=1).encode())
        told_above = f"{ask.model.name}, {plural(plan.request.num_steps, 'step')}: {plural(len(tasks), 'prompt')}"
        report.draw_quality(outcomes, ask.output / FILES[1], told_above + (", 95 % intervals" if tasks[1:] else ""))
        report.draw_samples(outcomes, [task.text for task in tasks], ask.output / FILES[2])
    where = f"look at {ask.output}" if ask.output else f"dit-trace replay {ask.plans[0]} -n 32 -o replay"
    click.echo(f"next: {where}", err=True)
