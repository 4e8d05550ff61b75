"""What `dit-analyze summary` prints: one trace in a few lines, for people or as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import xarray as xr
from dit_formats.console import harmless, plural
from dit_formats.reader import Trace
from numpy.typing import NDArray

from dit_analyzer.measures.audit import Audit, audit
from dit_analyzer.measures.components import components
from dit_analyzer.measures.design import CROSSED
from dit_analyzer.measures.distance import distances
from dit_analyzer.measures.paper import LEFT_OUT, guidance_halves, paper_view
from dit_analyzer.measures.variation import LeftOut, left_out, variation
from dit_analyzer.show.papertables import known

GROUPS = {"cross": "cross-attention", "ff": "feed-forward"}
"""Layer types beside those that the paper looked at."""

CVS = {"cv_level": "level", "cv_shape": "shape", "cv_seed": "seed"}
"""Parts of the variation that a summary tells."""

WHY = {"constant": "that never change", "zero": "that some prompt does not change", "nonfinite": "that are not finite"}
"""Cells that have no CV, by `variation.REASONS`."""

BARS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Row:
    """One kind of one group of layers: means over prompts, layers and transitions, and the curve over transitions."""

    kind: str
    group: str
    layers: int
    l1: float
    rel_l1: float
    cv: float
    cv_low: float
    cv_high: float
    left_out: tuple[LeftOut, ...]
    """Cells that have no CV."""
    curve: NDArray[np.float64]


@dataclass(frozen=True)
class Summary:
    """One trace in a few numbers."""

    title: str
    prompts: int
    asked: int
    steps: int
    layer_types: dict[str, int]
    rows: list[Row]
    highest: str
    lowest: str
    time: dict[str, float] | None = None
    """Seconds of a step, and the shares of it that attention and feed-forward networks take."""
    transitions: str = "exact"
    """Which elements the exact changes were taken over, `exact` for all."""
    spread: dict[str, dict[str, float]] = field(default_factory=dict)
    """Of each kind the CVs that `components` tells apart, by name."""
    design: str = ""
    """Whether seeds were varied."""
    archive: bool = True
    """Whether it holds samples of the tensors themselves."""
    audit: Audit | None = None


def headline(trace: Trace) -> str:
    """`digits-flux · 9 layers, 6 ff · 28 steps · FlowMatchEulerDiscrete · 16 prompts`."""
    settings = trace.run.settings
    scheduler = settings.get("scheduler")
    scheduler = str(scheduler.get("class", "")).removesuffix("Scheduler") if isinstance(scheduler, dict) else ""
    random = "RANDOM WEIGHTS" if str(settings.get("model")).startswith("tiny:") else ""
    parts = [
        settings.get("model"),
        random,
        _layers(trace),
        plural(trace.num_steps, "step"),
        scheduler,
    ]
    return harmless(" · ".join(str(part) for part in [*parts, plural(len(trace.prompts), "prompt")] if part))


def _layers(trace: Trace) -> str:
    """Those that the paper looks at, and how many there are of the others."""
    counts = Counter(layer.type for layer in trace.layers)
    own = sum(number for name, number in counts.items() if name not in LEFT_OUT)
    return ", ".join([plural(own, "layer"), *(f"{counts[name]} {name}" for name in LEFT_OUT if counts[name])])


def summarise(trace: Trace, source: str, dask: Any = None) -> Summary:
    """The summary of a trace, its distances taken from `source`, by a Dask cluster if there is one."""
    ds = distances(trace, source=source, dask=dask)[["l1", "rel_l1", "rms", "size", "count"]]
    others = {group: _others(ds.isel(layer=ds.layer_type.values == name)) for name, group in GROUPS.items()}
    view = paper_view(ds)[["l1", "rel_l1", "count"]]
    del ds  # which is large
    by_layer = view["rel_l1"].mean(("prompt", "kind", "transition")).dropna("layer")
    sampled = any(trace.geometry(stream, "token").shape[-1] for stream in trace.streams)
    return Summary(
        title=headline(trace) + ("" if sampled else " · statistics only, no archive"),
        prompts=len(trace.prompts),
        asked=trace.num_asked,
        steps=trace.num_steps,
        layer_types=dict(Counter(layer.type for layer in trace.layers)),
        rows=_rows(view, "as in the paper") + [row for group, one in others.items() for row in _rows(one, group)],
        highest=_layer(by_layer, by_layer.argmax("layer")) if by_layer.size else "none has a value",
        lowest=_layer(by_layer, by_layer.argmin("layer")) if by_layer.size else "none has a value",
        time=_time(trace),
        transitions=trace.transitions,
        **_spread(view),
        archive=sampled,
        audit=audit(trace) if sampled else None,
    )


def _others(ds: xr.Dataset) -> xr.Dataset:
    """Means over guidance halves, of latent tokens, in layers that the paper did not look at."""
    return ds.isel(branch=guidance_halves(ds), stream=(ds.stream == "latent").values).mean(("branch", "stream"))


def _spread(view: xr.Dataset) -> dict[str, Any]:
    """`spread` and `design` of a summary."""
    if view.sizes["prompt"] < 2 or not view.sizes["kind"]:
        return {}
    found = components(view)
    if found.attrs["texts"] < 2:
        return {}
    told = {kind: {name: found[name].sel(kind=kind).item() for name in CVS} for kind in found.kind.values.tolist()}
    return {"spread": told, "design": found.attrs["design"]}


def _time(trace: Trace) -> dict[str, float] | None:
    """Over all steps, for a layer may run in some of them only."""
    timing = trace.timing
    if timing is None:
        return None
    ran = np.zeros((len(trace.layers), trace.num_steps), bool)
    for stream in trace.streams:
        ran |= (trace.geometry(stream, "recorded") == 1).any((0, 1))
    whole = timing.steps.sum()
    shares = {kind: float(np.nansum(seconds * ran.sum(-1)) / whole) for kind, seconds in timing.layers.items()}
    return {
        "step": float(np.median(timing.steps)),
        "attention": shares.get("a", 0.0),
        "feed_forward": shares.get("f", 0.0),
    }


def show(summary: Summary) -> None:
    """Print a summary to stdout."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    width = max(Console().width, 60 + max(summary.steps, 30))  # a terminal wraps what is too wide; a table would cut it
    console = Console(highlight=False, soft_wrap=True, width=width)
    console.print(Text(summary.title, style="bold"))
    if summary.prompts < summary.asked:
        console.print(Text(f"incomplete: {summary.prompts} of {summary.asked} prompts", style="red"))
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("", "layers", "mean L1", "rel. L1", "CV", f"L1 by step, {summary.steps - 2} down to 0"):
        table.add_column(name, justify="left" if name in ("",) or "step" in name else "right", no_wrap=True)
    group = ""
    for row in summary.rows:
        if row.group != group:
            group = row.group
            table.add_row(Text(group, style="dim"))
        cells = f"{row.l1:.4f}", f"{row.rel_l1:.1%}", _with_interval(row)
        table.add_row(f"  {row.kind.upper()}", str(row.layers), *cells, sparkline(row.curve))
    console.print(table)
    console.print(Text(f"changes most:  {summary.highest}", style="dim"))
    console.print(Text(f"changes least: {summary.lowest}", style="dim"))
    for line, style in _notes(summary):
        console.print(Text(harmless(line), style=style))
    if summary.time:
        attention, feed_forward = (f"{summary.time[part]:.0%}" for part in ("attention", "feed_forward"))
        step = summary.time["step"]
        took = f"{step:.3g} s" if step >= 1 else f"{1000 * step:.3g} ms"
        console.print(Text(f"a step takes:  {took}; attention {attention}, feed-forward {feed_forward}", style="dim"))
    if summary.transitions != "exact":
        told = harmless(f"exact changes were taken over a {summary.transitions} elements of each activation")
        console.print(Text(f"{told}, and are estimates", style="dim"))
    console.print()


def _with_interval(row: Row) -> str:
    """`14.9% (9.9 to 22.5)`"""
    if np.isnan(row.cv):
        return "-"
    return f"{row.cv:.1%}" + ("" if np.isnan(row.cv_low) else f" ({100 * row.cv_low:.1f} to {100 * row.cv_high:.1f})")


def _notes(summary: Summary) -> Iterator[tuple[str, str]]:
    """What is left out of the CVs, and how the sample agrees; each line with its style."""
    if summary.spread:
        told = (
            ", ".join(f"{CVS[name]} {cv:.1%}" for name, cv in cvs.items() if np.isfinite(cv))
            for cvs in summary.spread.values()
        )
        kinds = "; ".join(f"{kind.upper()} {cvs}" for kind, cvs in zip(summary.spread, told) if cvs)
        yield f"CV of parts:   {kinds}" + ("" if summary.design == CROSSED else f"; {summary.design}"), "dim"
    left_out = [one for row in summary.rows for one in row.left_out]
    if left_out:
        cells = Counter[str]()
        for one in left_out:
            cells[one.why] += len(one.transitions)
        counted = ", ".join(f"{number} {WHY[why]}" for why, number in cells.items())
        more = f"; and {len(left_out) - 1} more" if len(left_out) > 1 else ""
        yield f"without a CV:  {counted}: {left_out[0]}{more}", "dim"
    if summary.audit:
        style = "dim" if summary.audit.plausible else "red"
        yield f"sample:        {summary.audit}", style
        if summary.audit.worst:
            yield f"               strays most: {summary.audit.worst[0]}", style


def as_json(summary: Summary) -> dict[str, Any]:
    """A summary as plain values; what is missing is null."""
    rows = [
        vars(row)
        | {name: known(getattr(row, name)) for name in ("l1", "rel_l1", "cv", "cv_low", "cv_high")}
        | {"left_out": [asdict(one) for one in row.left_out]}
        | {"curve": [known(value) for value in row.curve]}
        for row in summary.rows
    ]
    spread = {kind: {name: known(cv) for name, cv in cvs.items()} for kind, cvs in summary.spread.items()}
    return vars(summary) | {"rows": rows, "spread": spread, "audit": _audit_as_json(summary.audit)}


def _audit_as_json(audit: Audit | None) -> dict[str, Any] | None:
    if audit is None:
        return None
    values = {name: known(value) if isinstance(value, float) else value for name, value in asdict(audit).items()}
    return values | {"plausible": audit.plausible}


def sparkline(values: NDArray[np.float64]) -> str:
    """The values as bars on a log scale; a blank where there is none."""
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(np.where(values > 0, values, np.nan))
    if not np.isfinite(logs).any():
        return ""
    low, high = np.nanmin(logs), np.nanmax(logs)
    heights = (logs - low) / (high - low or 1) * (len(BARS) - 1)
    return "".join(BARS[round(h)] if np.isfinite(h) else " " for h in heights)


def _rows(view: xr.Dataset, group: str) -> list[Row]:
    """A row for each kind that the group has and that changes at all."""
    rows = []
    for kind in view.kind.values.tolist():
        one = view.sel(kind=[kind]).dropna("layer", how="all", subset=["count"])
        curve = one["l1"].mean(("prompt", "layer", "kind")).values
        if not np.isfinite(curve).any() or not curve.any():
            continue
        found = variation(one) if one.sizes["prompt"] > 1 else None
        cvs = [float("nan") if found is None else found[name].item() for name in ("cv", "cv_low", "cv_high")]
        missing = () if found is None else tuple(left_out(found))
        l1, rel_l1 = (one[name].mean().item() for name in ("l1", "rel_l1"))
        rows.append(Row(kind, group, one.sizes["layer"], l1, rel_l1, *cvs, missing, curve))
    return rows


def _layer(values: xr.DataArray, place: Any) -> str:
    at = values.isel(layer=int(place))
    return harmless(f"layer {int(at.layer)}, {at.layer_name.item()}, by {float(at):.1%} a step")
