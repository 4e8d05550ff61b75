"""What `dit-analyze plan` writes and prints."""

from __future__ import annotations

import csv
import io
import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from dit_formats.console import harmless
from dit_formats.errors import ConflictError
from dit_formats.plan import Plan, write_plan
from dit_formats.publish import published
from dit_formats.reader import Trace
from dit_formats.targets import TARGETS, export

from dit_analyzer.plans.asked import Asked, plan_of, planner_of
from dit_analyzer.plans.coefficients import COEFFICIENT_TARGETS, FILE, PYTHON
from dit_analyzer.show import plans as show

CURVE, TABLE = "curve", "curve.csv"


def one(trace: Trace, asked: Asked, output: Path, *, monotone: bool, force: bool, as_json: bool, dask: Any) -> None:
    """Write one plan and its exports, and print what they are worth."""
    files = {name: _beside(output, name) for name in asked.targets}
    for path in (output, *files.values()):
        refuse_existing(path, force)
    plan = plan_of(planner_of(trace, asked, dask), asked)
    schedules = {name: export(plan, name) for name in asked.targets if name in TARGETS}
    fitted = {
        name: _fitted(trace, plan, name, force=force, monotone=monotone)
        for name in asked.targets
        if name in COEFFICIENT_TARGETS
    }
    write_plan(output, plan, force=force)
    told: dict[str, Any] = {"plan": str(output), "computed_share": plan.computed_share, **plan.predicted}
    told["compute"] = {row.name: "".join(str(int(c)) for c in row.compute) for row in plan.rows}
    lines = [*show.lines_of(plan)]
    for name, made in schedules.items():
        _write(files[name], made.text, force)
        told.setdefault("exports", {})[name] = _exported(files[name], made.computed_share, made.lost, made.ran_here)
        lines += [f"{files[name]}: {name} computes {made.computed_share:.1%}", *_lost(made.lost)]
        lines += _snippet(made.loading(str(files[name])))
    for name, found in fitted.items():
        _write(files[name], found.text, force)
        told.setdefault("exports", {})[name] = _exported(files[name], None, found.lost, found.ran_here)
        lines += [f"{files[name]}: {name}, {'run' if found.ran_here else 'not run'} here", *found.lines_of_quality]
        lines += [*_lost(found.lost), *_snippet(found.snippet.replace(FILE, str(files[name])))]
    _print(lines, told, as_json)
    click.echo(f"next: dit-trace replay {shlex.quote(str(output))}", err=True)


def policy(trace: Trace, asked: Asked, signal: str, output: Path, *, force: bool, as_json: bool, dask: Any) -> None:
    """Write a rule that decides while it runs, and print what it is worth beside the static plan."""
    from dit_formats.policy import write_policy

    from dit_analyzer.plans import policy as rules

    refuse_existing(output, force)
    planner = planner_of(trace, asked, dask)
    share = asked.share(planner.costs.num_steps)
    settings = rules.best_settings(trace, planner.costs, share, signal)
    size = {"error": asked.error} if asked.error is not None else {"share": share}
    found = rules.policy_of(trace, planner.costs, planner, settings=settings, **size)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_policy(output, found, force=force)
    told = {"policy": str(output), "signal": found.signal, "threshold": found.threshold, **found.predicted}
    _print(rules.lines_of(found), told, as_json)
    click.echo(f"next: dit-trace replay {shlex.quote(str(output))}", err=True)


def curve(trace: Trace, asked: Asked, output: Path | None, *, force: bool, as_json: bool, dask: Any) -> None:
    """Print the plans of a curve, and write them, their table and their figure into a folder."""
    from dit_analyzer.show import figures

    names = [f"plan-{number:02d}.json" for number in range(1, 42)]
    if output is not None:
        figures.refuse_existing(output / CURVE, force=force)
        for name in (TABLE, *names):
            refuse_existing(output / name, force)
    plans = planner_of(trace, asked, dask).curve()
    rows = show.curve_rows(plans)
    _print(list(show.curve_lines(plans)), {"curve": rows}, as_json)
    if output is None:
        click.echo(f"next: dit-analyze plan {shlex.quote(str(trace.path))} --curve -o curve", err=True)
        return
    output.mkdir(parents=True, exist_ok=True)
    for name, plan in zip(names, plans):
        write_plan(output / name, plan, force=force)
    _write(output / TABLE, _csv(rows), force)
    for path in figures.save(show.draw_curve(plans), output / CURVE, force=force):
        click.echo(path, err=as_json)
    click.echo(f"next: dit-trace replay {shlex.quote(str(output))}/plan-*.json --alone", err=True)


def refuse_existing(path: Path, force: bool) -> None:
    if path.exists() and not force:
        raise ConflictError(f"{path}: exists already; add --force to replace it")


def _beside(output: Path, target: str) -> Path:
    """Name of an export: the plan's, and the target's ending."""
    stem = output.name.removesuffix(".json")
    ending = TARGETS[target].ending if target in TARGETS else f"{target}.{'py' if target in PYTHON else 'json'}"
    return output.with_name(f"{stem}.{ending}")


def _fitted(trace: Trace, plan: Plan, target: str, **options: bool) -> Any:
    """Coefficients with a threshold that skips as much as the plan."""
    share = {"share": 1 - plan.computed_share} if plan.computed_share < 1 else {}
    return COEFFICIENT_TARGETS[target](trace, **share, **options)


def _exported(path: Path, share: float | None, lost: tuple[str, ...], ran_here: bool) -> dict[str, Any]:
    return {"file": str(path), "computed_share": share, "lost": list(lost), "ran_here": ran_here}


def _lost(lost: tuple[str, ...]) -> Iterator[str]:
    return (f"  lost: {line}" for line in lost)


def _snippet(text: str) -> Iterator[str]:
    yield ""
    yield from (f"    {line}".rstrip() for line in text.strip().splitlines())
    yield ""


def _print(lines: list[str], told: dict[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(told))
        return
    for line in lines:
        click.echo("".join(c if c == "\n" else harmless(c) for c in line))


def _write(path: Path, text: str, force: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with published(path, replace=force) as file:
        file.write(text.encode())


def _csv(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(row | {"compute": " ".join(row["compute"])} for row in rows)
    return text.getvalue()
