"""Change over depth, between kinds, and roughness over the steps: as a page of Markdown, as records, as a picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import xarray as xr
from dit_formats.console import harmless
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from dit_analyzer.show.beside import style
from dit_analyzer.show.facts import table
from dit_analyzer.show.figures import STYLE, log_ticks
from dit_analyzer.show.papertables import known
from dit_analyzer.show.stability import between

NAMES = {"l1": "L1", "rel_l1": "relative L1"}
"""Absolute change, and change as a share of the activation's size."""

HEAD = (
    "# Depth, kinds and roughness",
    "In brackets: 95 % over prompts, leaving one out. Relative L1 is change over the size of the activation itself.",
)
TREND = (
    "## Over depth",
    "The line through ln mean L1 of the layers over relative depth: the factor from input to output, and the share of "
    "the layers' variance that the line explains. Where that is small, the factor is no trend. The paper: deeper "
    "layers differ more.",
)
CONTRAST = (
    "## Between kinds",
    "The factor by which one kind changes more than another in the same layer and transition. The paper: A far above K "
    "and V in some models.",
)
ROUGHNESS = (
    "## Roughness",
    "How far a transition stands off the line between its neighbours, root mean square of ln L1: of each run over its "
    "own steps, and of both at the noise levels of the run with fewer steps. The paper: with 14 steps curves look "
    "smoother. A ratio of 1 at matched noise: only for want of points.",
)


@dataclass(frozen=True)
class Rough:
    """`roughness` of two traces by name, or why it cannot be."""

    one: str
    other: str
    found: xr.Dataset | str


def page(
    names: Sequence[str], trends: Sequence[xr.Dataset], contrasts: Sequence[xr.Dataset], rough: Sequence[Rough]
) -> str:
    parts = [*HEAD, *TREND, table(trend_rows(names, trends)), *CONTRAST]
    rows = contrast_rows(names, contrasts)
    parts += [table(rows) if len(rows) > 1 else "No trace holds two kinds.", *ROUGHNESS, *_rough(rough)]
    return "\n\n".join(parts) + "\n"


def trend_rows(names: Sequence[str], trends: Sequence[xr.Dataset]) -> list[list[str]]:
    """A header, and a row for each trace and kind."""
    rows = [["trace", "kind", *(name for quantity in NAMES.values() for name in (quantity, "explained"))]]
    for name, ds in zip(names, trends, strict=True):
        for kind in ds.kind.values.tolist():
            cells = [cell for of in _quantities(ds.sel(kind=kind)) for cell in _trend(of)]
            rows.append([harmless(name), kind.upper(), *cells])
    return rows


def contrast_rows(names: Sequence[str], contrasts: Sequence[xr.Dataset]) -> list[list[str]]:
    """A header, and a row for each trace and pair of kinds."""
    rows = [["trace", "kinds", *NAMES.values()]]
    for name, ds in zip(names, contrasts, strict=True):
        for pair in ds.pair.values.tolist():
            cells = [factor(of["log_ratio"], of["low"], of["high"]) for of in _quantities(ds.sel(pair=pair))]
            rows.append([harmless(name), pair.upper(), *cells])
    return rows


def rough_rows(found: Rough) -> list[list[str]]:
    """Rows for a pair that could be compared, one for each kind, without a header."""
    if isinstance(found.found, str):
        return []
    rows = []
    for kind in found.found.kind.values.tolist():
        of = found.found.sel(kind=kind)
        own, matched = (", ".join(_number(of[name].values[run]) for run in (0, 1)) for name in ("own", "matched"))
        ratio = "–" if np.isnan(of["ratio"]) else f"{of['ratio'].item():.2f}" + between(*_ends(of))
        points = str(of["points"].item())
        rows.append([harmless(found.one), harmless(found.other), kind.upper(), own, matched, ratio, points])
    return rows


MEANS = "mean over prompts and transitions"
ROUGH_HEADER = ["one", "other", "kind", "own", "at matched noise", "other / one", "points"]


def factor(log: xr.DataArray, low: xr.DataArray, high: xr.DataArray) -> str:
    """`×1.31 (1.20 to 1.43)` of a logarithm and its interval."""
    value, *ends = (float(np.exp(each)) for each in (log, low, high))
    return "–" if np.isnan(value) else f"×{value:.2f}" + between(*ends)


def records(name: str, trend: xr.Dataset, contrast: xr.Dataset) -> Iterator[dict[str, Any]]:
    """A record for each kind or pair of kinds, and quantity: the logarithm of a factor, with its interval."""
    for kind in trend.kind.values.tolist():
        for quantity in trend.quantity.values.tolist():
            of = trend.sel(kind=kind, quantity=quantity)
            numbers = {"log_factor": of["slope"], "low": of["low"], "high": of["high"], "explained": of["explained"]}
            yield _record(name, "output / input", kind, quantity, numbers)
    for pair in contrast.pair.values.tolist():
        for quantity in contrast.quantity.values.tolist():
            of = contrast.sel(pair=pair, quantity=quantity)
            numbers = {"log_factor": of["log_ratio"], "low": of["low"], "high": of["high"]}
            yield _record(name, "one kind / another", pair, quantity, numbers)


def rough_records(found: xr.Dataset) -> Iterator[dict[str, Any]]:
    """A record for each kind, of what `roughness` returns."""
    for kind in found.kind.values.tolist():
        of = found.sel(kind=kind)
        pairs = {name: [known(value) for value in of[name].values.tolist()] for name in ("own", "matched")}
        ratio = {name: known(of[name].item()) for name in ("ratio", "ratio_low", "ratio_high")}
        yield {"kind": kind} | pairs | ratio | {"points": of["points"].item()}


def ratio_records(found: Rough) -> Iterator[dict[str, Any]]:
    """The ratios of roughness of a pair as records like those of `records`; none where it could not be compared."""
    for kind in found.found.kind.values.tolist() if isinstance(found.found, xr.Dataset) else ():
        of = found.found.sel(kind=kind)
        for name, what in (("own_ratio", "roughness"), ("ratio", "roughness at matched noise")):
            ends = dict(zip(("log_factor", "low", "high"), (of[f"{name}{end}"] for end in ("", "_low", "_high"))))
            with np.errstate(divide="ignore"):
                logs = {key: np.log(value) for key, value in ends.items()}
            yield _record(f"{found.other} over {found.one}", what, kind, "l1", logs)


def profile(names: Sequence[str], profiles: Sequence[xr.DataArray], title: str = MEANS) -> Figure:
    """Mean change of each layer over relative depth: a row for each quantity, a panel for each kind, a line a trace.

    Args:
        profiles: (quantity, kind, depth) of each trace, with coordinate depth from 0, the input, to 1.
    """
    kinds = list(dict.fromkeys(kind for one in profiles for kind in one.kind.values.tolist()))
    with matplotlib.rc_context(STYLE):
        rows = -(-len(names) // 3)
        figure = Figure((0.8 + 2.2 * max(len(kinds), 2), 4.2 + 0.16 * rows), layout="constrained")
        grid = figure.subplots(len(NAMES), len(kinds), squeeze=False, sharex=True, sharey="row")
        for panels, quantity in zip(grid, NAMES):
            for panel, kind in zip(panels, kinds):
                for place, one in enumerate(profiles):
                    if kind in one.kind:
                        curve = one.sel(quantity=quantity, kind=kind)
                        panel.plot(one.depth, curve, marker="o", markersize=2, **style(place))
                panel.set(yscale="log", title=kind.upper() if quantity == "l1" else "", xlim=(0, 1))
            log_ticks(panels[0].yaxis)
            panels[0].set_ylabel(f"mean {NAMES[quantity]}")
        grid[-1, len(kinds) // 2].set_xlabel("relative depth, from input to output")
        lines = [Line2D([], [], **style(place)) for place in range(len(names))]
        figure.legend(lines, names, title=title, frameon=False, loc="outside upper center", ncols=min(len(names), 3))
    return figure


def _quantities(ds: xr.Dataset) -> list[xr.Dataset]:
    return [ds.sel(quantity=name) for name in NAMES if name in ds.quantity]


def _trend(of: xr.Dataset) -> list[str]:
    explained = "–" if np.isnan(of["explained"]) else f"{of['explained'].item():.0%}"
    trend = "" if of["trend"] == "none" else f", {of['trend'].item()}"
    return [factor(of["slope"], of["low"], of["high"]) + trend, explained]


def _rough(rough: Sequence[Rough]) -> Iterator[str]:
    rows = [row for one in rough for row in rough_rows(one)]
    if rows:
        yield table([ROUGH_HEADER, *rows])
    reasons = [
        f"- {harmless(f'{one.one} and {one.other}: {one.found}')}" for one in rough if isinstance(one.found, str)
    ]
    if reasons:
        yield "Not compared:\n\n" + "\n".join(reasons)
    if not rough:
        yield "No model here was traced with another step count."


def _number(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.3f}"


def _ends(of: xr.Dataset) -> tuple[float, float]:
    return of["ratio_low"].item(), of["ratio_high"].item()


def _record(name: str, what: str, of: str, quantity: str, numbers: dict[str, xr.DataArray]) -> dict[str, Any]:
    values = {key: known(float(value)) for key, value in numbers.items()}
    return {"trace": name, "what": what, "of": of, "quantity": quantity, "explained": None} | values
