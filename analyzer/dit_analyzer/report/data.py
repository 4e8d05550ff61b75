"""What a report shows of traces, as plain values: numbers from `measures` and `plans` in words and few digits."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import xarray as xr
from dit_formats.console import harmless, plural
from dit_formats.errors import TraceError
from dit_formats.reader import Trace, open_trace

from dit_analyzer.measures.changes import changes
from dit_analyzer.measures.components import components
from dit_analyzer.measures.levels import prompt_levels
from dit_analyzer.measures.regions import least_changing
from dit_analyzer.measures.words import words
from dit_analyzer.members import Member
from dit_analyzer.pages.paper import deviations
from dit_analyzer.report import answers
from dit_analyzer.report.comparison import compared
from dit_analyzer.report.pictures import kinds_of, maps, numbers, panels, relative_means
from dit_analyzer.report.plans import plans_of
from dit_analyzer.show.breaks import Breaks, _words
from dit_analyzer.show.tables import headline
from dit_analyzer.show.variation import Varied, _left_out, _rows
from dit_analyzer.study import Study

Result = TypeVar("Result")

STEP_COLUMNS = ["step", "the paper's", "timestep", "sigma"]

MOST_PROMPTS = 5
"""Prompts that are named on either side."""


def report_of(study: Study) -> dict[str, Any]:
    """All that the page shows.

    Raises:
        IncompleteError: A trace has no layer that the paper looks at, or no sample where it is the source.
    """
    traces = [_trace(study, one, f"t{place}") for place, one in enumerate(study.members)]
    return {
        "title": " and ".join(trace["name"] for trace in traces[:3]) + (" and more" if len(traces) > 3 else ""),
        "traces": traces,
        "comparison": compared(study) if len(traces) > 1 else None,
        "sampled": _sampled(study) if study.source == "sample" else None,
    }


def _sampled(study: Study) -> list[list[str]]:
    """How far values from samples are from the exact ones, a row each."""
    return [
        [harmless(row["trace"]), row["kind"].upper(), row["quantity"], f"{row['median']:.2%}", f"{row['largest']:.2%}"]
        for row in deviations(study)
        if row["cells"]
    ]


def _trace(study: Study, one: Member, anchor: str) -> dict[str, Any]:
    view = study.view(one)
    found = study.measured(changes, one)
    varied = _known(lambda: study.variation(one))
    parts = _known(lambda: study.measured(components, one))
    with open_trace(one.path) as trace:
        planned = _known(lambda: plans_of(trace, str(one.path), study.dask))
        status, provenance = _status(one, trace), _provenance(one, trace)
    region = least_changing(view)
    return {
        "anchor": anchor,
        "name": harmless(one.name),
        **status,
        "answers": [
            answers.change(found),
            answers.effect(varied, parts),
            answers.region(region, view),
            answers.plan(planned),
        ],
        "kinds": kinds_of(view),
        "layers": _layers(view),
        "steps": _steps(view),
        "maps": maps(view, found),
        "panels": panels(view),
        "variation": _variation(one, varied, parts),
        "prompts": _prompts(view),
        "shapes": [row[1:] for row in _words(Breaks(one, found, study.measured(words, one)))],
        "ranking": _ranking(view),
        "plans": planned,
        "provenance": provenance,
        "numbers": numbers(view, varied),
    }


def _known(measure: Callable[[], Result]) -> Result | str:
    """What a measure says, or why it cannot."""
    try:
        return measure()
    except (TraceError, ValueError) as error:
        return harmless(str(error))


def _status(one: Member, trace: Trace) -> dict[str, Any]:
    """The line of the head, and what is wrong with the trace."""
    silent = [harmless(layer.name) for place, layer in enumerate(trace.layers) if not _recorded(trace, place)]
    wrong = []
    if one.has_random_weights:
        wrong.append("Random weights: shapes are real, numbers mean nothing.")
    if one.incomplete:
        wrong.append(f"Incomplete: {one.incomplete} traced. Run the same dit-trace command again for the rest.")
    if trace.failures:
        wrong.append(f"{plural(len(trace.failures), 'prompt')} failed; dit-analyze check says why.")
    if silent:
        more = f" and {len(silent) - 3} more" if len(silent) > 3 else ""
        wrong.append(f"{plural(len(silent), 'layer')} never recorded anything: {', '.join(silent[:3])}{more}.")
    if one.transitions != "exact":
        wrong.append(f"Changes were taken over a {harmless(one.transitions)} elements of each activation; estimates.")
    told = "" if one.has_samples else " · statistics only, no archive of samples"
    return {"status": f"{headline(trace)} of {one.asked} asked for{told}", "wrong": wrong}


def _recorded(trace: Trace, layer: int) -> bool:
    return any((trace.geometry(stream, "recorded")[:, :, layer] == 1).any() for stream in trace.streams)


def _provenance(one: Member, trace: Trace) -> list[tuple[str, str]]:
    settings, made = trace.run.settings, trace.run.provenance
    call = {name: value for name, value in (settings.get("call") or {}).items() if value not in (None, "")}
    networks = settings.get("transformers") or {}
    command, versions = made.get("command"), made.get("versions")
    rows = {
        "trace": one.path.resolve().name,
        "model": one.model,
        "revision": settings.get("revision"),
        "pipeline": settings.get("pipeline"),
        "networks": ", ".join(f"{told.get('class')} (weights {told.get('weights')})" for told in networks.values()),
        "parameters": f"{one.parameters:,}" if one.parameters else "",
        "scheduler": one.scheduler_name,
        "call": ", ".join(f"{name} {value}" for name, value in sorted(call.items())),
        "precision": settings.get("dtype"),
        "device": made.get("device"),
        "seeds": one.seeds,
        "versions": ", ".join(f"{name} {told}" for name, told in sorted((versions or {}).items())),
        "command": shlex.join(map(str, command)) if isinstance(command, list) else command,
        "signature": trace.run.signature,
    }
    return [(name, harmless(str(value))) for name, value in rows.items() if value]


def _layers(view: xr.Dataset) -> list[dict[str, Any]]:
    columns = (view[name].values.tolist() for name in ("layer", "layer_name", "layer_type"))
    return [{"index": index, "name": harmless(name), "type": harmless(kind)} for index, name, kind in zip(*columns)]


def _steps(view: xr.Dataset) -> list[dict[str, Any]]:
    """Every transition, and what the paper calls it."""
    last = int(view.attrs["num_steps"]) - 2
    return [
        {"step": step, "paper": last - step, "timestep": f"{timestep:.4g}", "sigma": f"{sigma:.4g}"}
        for step, timestep, sigma in zip(*(view[name].values.tolist() for name in ("transition", "timestep", "sigma")))
    ]


def _variation(one: Member, varied: xr.Dataset | str, parts: xr.Dataset | str) -> dict[str, Any]:
    """Rows of the table, cells that are left out, or why there is nothing."""
    if isinstance(varied, str) or isinstance(parts, str):
        return {"rows": [], "left_out": [], "why": varied if isinstance(varied, str) else parts}
    left_out = [line.removeprefix("- ") for line in _left_out(one.name, varied)]
    return {"rows": [row[1:] for row in _rows(Varied(one.name, varied, parts))], "left_out": left_out, "why": ""}


def _prompts(view: xr.Dataset) -> list[dict[str, Any]]:
    """Those whose curves lie highest and lowest."""
    levels = prompt_levels(view)
    if levels.size < 2 or not np.isfinite(levels).all():
        return []
    order = np.argsort(-levels.values, kind="stable")
    shown = order if len(order) <= 2 * MOST_PROMPTS else [*order[:MOST_PROMPTS], *order[-MOST_PROMPTS:]]
    told = zip(*(view[name].values[shown].tolist() for name in ("prompt", "text", "seed")), levels.values[shown])
    return [
        {"index": index, "text": harmless(text), "seed": seed, "level": f"×{level:.2f}"}
        for index, text, seed, level in told
    ]


def _ranking(view: xr.Dataset) -> dict[str, Any]:
    """Layers and steps, from the least relative change to the most."""
    relative, l1 = relative_means(view), view["l1"].sel(kind=kinds_of(view)).mean("prompt", skipna=False)
    by_layer = [
        [layer["index"], layer["name"], layer["type"], *cells]
        for layer, cells in zip(_layers(view), _cells(relative, l1, "layer"))
    ]
    by_step = [
        [f"{step['step']} → {step['step'] + 1}", step["paper"], step["timestep"], step["sigma"], *cells]
        for step, cells in zip(_steps(view), _cells(relative, l1, "transition"))
    ]
    names = [f"L1 {kind.upper()}" for kind in kinds_of(view)]
    return {
        "layers": {"head": ["layer", "name", "type", "relative L1", *names], "rows": _sorted(by_layer, 3)},
        "steps": {"head": [*STEP_COLUMNS, "relative L1", *names], "rows": _sorted(by_step, len(STEP_COLUMNS))},
    }


def _cells(relative: xr.DataArray, l1: xr.DataArray, axis: str) -> list[list[float | None]]:
    """Means at each place of an axis: of rel_l1 over kinds too, of l1 for each kind."""
    rest = [name for name in ("kind", "layer", "transition") if name != axis]
    whole = relative.mean(rest).values
    of_kinds = l1.mean([name for name in rest if name != "kind"]).transpose(axis, "kind").values
    return [[_short(first), *map(_short, others)] for first, others in zip(whole, of_kinds)]


def _short(value: float) -> float | None:
    """Four digits; None where there is no value."""
    return float(f"{value:.4g}") if np.isfinite(value) else None


def _sorted(rows: Sequence[list[Any]], column: int) -> list[list[Any]]:
    return sorted(rows, key=lambda row: (row[column] is None, row[column]))
