"""Tells people and programs about runs: what those of a study would be, and what became of them. Knows no torch."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from dit_formats.console import harmless, plural

if TYPE_CHECKING:
    from dit_formats.study import Study

    from dit_tracer.ranks import Rank
    from dit_tracer.sharing import Outcome
    from dit_tracer.tour import Foretold, Visit

KEPT = "every finished prompt is kept, and the same command goes on from there"


def in_words(output: Path, outcome: Outcome, rank: Rank) -> str:
    """`out.trace: 2 prompts traced, 1 were there already`."""
    present = f", {outcome.present} were there already" if outcome.present else ""
    elsewhere = f", {outcome.elsewhere} are with other processes" if outcome.elsewhere else ""
    process = f" by process {rank.rank} of {rank.count}" if rank.count > 1 else ""
    return f"{output}: {plural(outcome.traced, 'prompt')} traced{process}{present}{elsewhere}"


def as_json(output: Path, outcome: Outcome) -> dict[str, Any]:
    always = ("traced", "present", "failures")
    return {"trace": str(output), **{key: value for key, value in vars(outcome).items() if value or key in always}}


class Telling:
    """Says what became of each run as soon as it is known, and in the end of all.

    Args:
        count: How many runs there are.
    """

    def __init__(self, folder: Path, rank: Rank, as_json: bool, count: int) -> None:
        self._folder, self._rank, self._as_json, self._count = folder, rank, as_json, count
        self._visits: list[Visit] = []
        self._stopped: str | None = None

    def tell(self, visit: Visit) -> None:
        self._visits.append(visit)
        output, outcome = visit.stop.order.output, visit.outcome
        if not self._as_json and outcome and not (outcome.stopped and not outcome.traced):
            skipped = f"{output}: complete, {plural(outcome.present, 'prompt')}"
            click.echo(harmless(skipped if visit.skipped else in_words(output, outcome, self._rank)))
        where = "" if str(output) in visit.error else f"{output}: "
        for failure in outcome.failures if outcome else [f"{where}{visit.error}"] if visit.error else []:
            click.echo(harmless(f"dit-trace: {failure}"), err=True)
        self._stopped = (outcome and outcome.stopped) or self._stopped

    @property
    def code(self) -> int:
        """75 if there was no time for all of it; 1 if something failed."""
        if self._stopped or len(self._visits) < self._count:
            return 75
        return 1 if any(visit.failed for visit in self._visits) else 0

    def sum_up(self, stopped: str | None) -> None:
        """To be called in the end, once.

        Args:
            stopped: Why the process has to end, if it has to.
        """
        self._stopped = self._stopped or (stopped if self.code == 75 else None)
        failed = [visit for visit in self._visits if visit.failed]
        complete = sum(visit.complete for visit in self._visits)
        if self._as_json:
            click.echo(json.dumps(self._summary(complete, len(failed))))
        elif self._rank.leads:
            further = f", {len(failed)} with failures" if failed else ""
            click.echo(f"{self._folder}: {complete} of {plural(self._count, 'run')} complete{further}")
        if self._rank.leads:
            self._advise(failed, complete)

    def _advise(self, failed: list[Visit], complete: int) -> None:
        if failed:
            names = ", ".join(visit.stop.planned.run.folder for visit in failed)
            click.echo(harmless(f"dit-trace: failed: {names}; the same command tries again"), err=True)
        if self.code == 75:
            by = f" by {self._stopped}" if self._stopped else ""
            click.echo(f"dit-trace: stopped{by}; {KEPT}", err=True)
        elif complete and not self._as_json:
            out = f"{str(self._folder).removesuffix('.study')}-results"
            click.echo(f"next: dit-analyze study {shlex.quote(str(self._folder))} -o {shlex.quote(out)}", err=True)

    def _summary(self, complete: int, failed: int) -> dict[str, Any]:
        runs = []
        for visit in self._visits:
            output, outcome = visit.stop.order.output, visit.outcome
            told = as_json(output, outcome) if outcome else {"trace": str(output), "error": visit.error}
            runs.append(told | {"complete": visit.complete})
        process = {"process": self._rank.rank} if self._rank.count > 1 else {}
        stopped = {"stopped": self._stopped} if self._stopped else {}
        counts = {"planned": self._count, "complete": complete, "failed": failed}
        return {"study": str(self._folder), **counts, "runs": runs, **stopped, **process}


def foretell(folder: Path, study: Study, found: list[Foretold], command: str, as_json: bool) -> int:
    """Print a table of runs with prompts, bytes and time, or the same as JSON; 1 if something of it cannot be told."""
    if as_json:
        seconds = None if any(one.seconds is None for one in found) else sum(one.seconds for one in found)
        write = sum(one.bytes_to_write for one in found)
        told = {"study": str(folder), "name": study.name, "title": study.title}
        totals = {"bytes_to_write": write, "seconds": seconds, "command": command}
        click.echo(json.dumps(told | {"runs": [_as_json(one) for one in found]} | totals))
        return 1 if any(one.error for one in found) else 0
    click.echo(harmless(f"{folder}: {study.title}"))
    for line in [*_table(found), *_notes(found)]:
        click.echo(harmless(line))
    click.echo(f"\n{command}")
    for one in found:
        if one.error:
            click.echo(harmless(f"dit-trace: {one.stop.order.output}: {one.error}"), err=True)
    return 1 if any(one.error for one in found) else 0


def _as_json(one: Foretold) -> dict[str, Any]:
    run = asdict(one.stop.planned.run)
    if one.forecast is None:
        return run | {"trace": str(one.stop.order.output), "error": one.error, "seconds": None}
    return run | one.forecast.as_json() | {"bytes_to_write": one.bytes_to_write, "seconds": one.seconds}


def _table(found: list[Foretold]) -> list[str]:
    from dit_tracer.progress import size

    rows = [("run", "steps", "prompts", "there", "to write", "time"), *map(_row, found)]
    rows.append(("all", "", "", "", size(sum(one.bytes_to_write for one in found)), _time(found)))
    widths = [max(map(len, column)) for column in zip(*rows)]
    return [
        f"{name:{widths[0]}}  " + "  ".join(f"{n:>{w}}" for n, w in zip(numbers, widths[1:])) + f"  {time}"
        for name, *numbers, time in rows
    ]


def _row(one: Foretold) -> tuple[str, ...]:
    from dit_tracer.progress import size

    run, made = one.stop.planned.run, one.forecast
    if made is None:
        return run.folder, str(run.steps), str(run.prompts), "", "not known", "not known"
    return run.folder, str(run.steps), str(made.prompts), str(made.present), size(one.bytes_to_write), _time([one])


def _time(found: list[Foretold]) -> str:
    """`about 12m`, `not known`, or how much of it is known."""
    from dit_tracer.progress import span

    missing = [one for one in found if one.forecast is None or one.forecast.missing]
    known = [one.seconds for one in missing if one.seconds is not None]
    unknown = len(missing) - len(known)
    if not missing:
        return "none"
    if not known:
        return "not known"
    return f"about {span(sum(known))}" + (f", and {plural(unknown, 'run')} not known" if unknown else "")


def _notes(found: list[Foretold]) -> list[str]:
    from dit_tracer.progress import size

    wheres = sorted({one.where for one in found if one.where and one.forecast.missing})
    notes = [f"time: {'; '.join(wheres)}"] if wheres else []
    free = [one.forecast.free_disk for one in found if one.forecast]
    less = ", less than would be written" if free and free[0] < sum(one.bytes_to_write for one in found) else ""
    return notes + [f"disk: {size(count)} free{less}" for count in free[:1]]
