"""Walks over the runs of a study: says what they would make, or makes them, one after the other."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import torch
from dit_formats.console import message
from dit_formats.errors import ConflictError
from dit_formats.prompts import Request
from dit_formats.reader import shard_paths
from dit_formats.study import Study

from dit_tracer.claims import Claims
from dit_tracer.forecast import Forecast
from dit_tracer.models import schedulers
from dit_tracer.orders import Order, values_kept
from dit_tracer.ranks import Rank, one_voice
from dit_tracer.rates import Rates
from dit_tracer.sharing import Outcome, give_memory_back
from dit_tracer.stopping import Stopped, Stopping
from dit_tracer.study import STUDIES, Definition, Planned, StudyError, as_settings
from dit_tracer.work import requests_of


@dataclass(frozen=True)
class Stop:
    """A run of a study, ready to be made."""

    planned: Planned
    order: Order


@dataclass(frozen=True)
class Visit:
    """What became of a run.

    Args:
        outcome: None if it failed as a whole.
        skipped: Whether everything was there before.
        error: Why it failed; empty where another process says it.
    """

    stop: Stop
    outcome: Outcome | None = None
    skipped: bool = False
    error: str = ""

    @property
    def failed(self) -> bool:
        return self.outcome is None or bool(self.outcome.failures)

    @property
    def complete(self) -> bool:
        """Whether all of it is there by now, whoever traced it."""
        return not self.failed and not self.outcome.stopped and not self.stop.order.missing()


@dataclass(frozen=True)
class Foretold:
    """What a run would make.

    Args:
        forecast: None where it cannot be told; `error` says why.
        seconds: For what is missing; None where nothing was measured.
        where: What the seconds rest on.
    """

    stop: Stop
    forecast: Forecast | None = None
    seconds: float | None = None
    where: str = ""
    error: str = ""

    @property
    def bytes_to_write(self) -> int:
        return self.forecast.missing * self.forecast.size.file if self.forecast else 0


def stops(
    study: Definition,
    runs: list[Planned],
    folder: Path,
    prompts: list[Request] | None,
    weights: dict[str, str] | None = None,
    **machine: Any,
) -> list[Stop]:
    """The runs as orders; what could not run is refused now, as far as it can be told without loading anything.

    Args:
        prompts: None for those built in.
        weights: Where to load them from, by model.
        machine: Options that decide no numbers: device, cpu_offload, ignore_disk.

    Raises:
        LookupError: A model has no prompts of its own.
        StudyError: There is no such scheduler.
    """
    found = []
    for planned in runs:
        order = _order(planned, folder, prompts, weights or {}, machine)
        count = -(-len(order.work.tasks) // len(order.seeds))
        found.append(Stop(replace(planned, run=replace(planned.run, prompts=count)), order))
    for scheduler in dict.fromkeys(planned.scheduler for planned in runs if planned.scheduler):
        try:
            schedulers.find(scheduler)
        except LookupError as error:
            raise StudyError(f"{study.path}: schedulers: {error.args[0]}") from None
    return found


def plan(study: Definition, found: list[Stop], prompts: list[Request] | None) -> Study:
    """What `study.json` will say."""
    return Study(study.name, study.title, tuple(stop.planned.run for stop in found), as_settings(study, prompts))


def refuse_trace(folder: Path) -> None:
    """Raises:
    ConflictError: The folder is a trace itself.
    """
    if folder.is_dir() and shard_paths(folder):
        raise ConflictError(f"{folder}: is a trace, and a study is a folder of several; give another folder with -o")


def visits(found: list[Stop], rank: Rank, stopping: Stopping, quiet: bool) -> Iterator[Visit]:
    """Make the runs; ends early when the process is to stop."""
    for number, stop in enumerate(found, 1):
        if stopping.reason:
            return
        stopping.resume()
        title = "" if quiet or not rank.leads else f"run {number} of {len(found)}: {stop.planned.told}"
        yield _visit(stop, title, rank, stopping, quiet)
        give_memory_back()


def foretold(study: Definition, found: list[Stop], folder: Path) -> Iterator[Foretold]:
    """What each run would make; nothing is written."""
    rates = Rates(folder, [stop.planned.run for stop in found])
    for stop in found:
        try:
            made = stop.order.forecast()
        except Exception as error:
            yield Foretold(stop, error=_told(error))
            continue
        run = stop.planned.run
        rate = rates.of(run.model, study.path.parent == STUDIES and made.device == "cpu")
        seconds = rate.a_step * run.steps * made.missing if rate else None
        yield Foretold(stop, made, seconds, rate.where if rate else "")
        give_memory_back()


@contextmanager
def together(folder: Path, rank: Rank, stopping: Stopping, code: Callable[[], int]) -> Iterator[None]:
    """Around the visits of one of several processes that a launcher ends together as soon as one ends with an error.

    Such a process waits in the end until the others, which may be at later runs, are done; so does the one that speaks.
    """
    if not rank.tied:
        yield
        return
    with Claims(folder) as claims:
        yield
        if (code() or rank.leads) and not stopping.signalled:
            claims.wait_for_others(lambda: stopping.signalled)


def _order(
    planned: Planned, folder: Path, prompts: list[Request] | None, weights: dict[str, str], machine: dict[str, Any]
) -> Order:
    settings, model = planned.settings, planned.model
    source = weights.get(model.name, settings.weights)
    guidance = {} if settings.guidance_scale is None else {model.guidance: settings.guidance_scale}
    return Order(
        replace(model, source=source) if source else model,
        requests_of(model, None, settings.prompts) if prompts is None else prompts,
        folder / planned.run.folder,
        seeds=list(settings.seeds),
        limit=settings.prompts,
        steps=None if planned.run.steps == model.steps else planned.run.steps,
        scheduler=planned.scheduler,
        arguments=guidance | settings.pipeline_kwargs,
        revision=settings.revision,
        dtype=settings.dtype,
        kinds=settings.kinds,
        attention=settings.attention,
        stack=settings.stack,
        boundaries=settings.boundary,
        halves=settings.halves,
        step_pairs=settings.step_pairs,
        values=values_kept(settings.sample, settings.stats_only, settings.pilot),
        pilot=settings.pilot,
        time=settings.time,
        **machine,
    )


def _visit(stop: Stop, title: str, rank: Rank, stopping: Stopping, quiet: bool) -> Visit:
    try:
        with one_voice(rank):
            if not stop.order.missing():
                return Visit(stop, Outcome(present=len(stop.order.work.tasks)), skipped=True)
            if title:
                click.echo(title, err=True)
            with _threads(stop.planned.settings.threads):
                return Visit(stop, stop.order.run(rank, stopping, quiet))
    except Stopped as stopped:
        return Visit(stop, Outcome(stopped=str(stopped)))
    except SystemExit:
        return Visit(stop)
    except Exception as error:
        return Visit(stop, error=_told(error))


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _told(error: Exception) -> str:
    """The error in one line. What is a bug shows its traceback too; in either case nothing of the run is kept alive."""
    ours = isinstance(error, (OSError, LookupError, click.ClickException)) or hasattr(error, "exit_code")
    if not ours or isinstance(error, (KeyError, IndexError)):
        traceback.print_exception(error)
    told = error.format_message() if isinstance(error, click.ClickException) else message(error)
    error.__traceback__ = None
    return " ".join(told.split()) if ours else f"{type(error).__name__}: {' '.join(told.split())[:200]}"
