"""How far prompts differ, and in what, as a page of Markdown and as records."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from dit_formats.console import harmless, plural

from dit_analyzer.measures.variation import left_out
from dit_analyzer.show.facts import table
from dit_analyzer.show.papertables import known

HEAD = (
    "# How far prompts differ",
    "CV is the standard deviation over prompts by the mean, of each layer and transition: the mean of all cells, "
    "corrected for the number of prompts, with its 95 % interval (leave one prompt out, Student's t of log CV); their "
    "median; and the mean deviation over the mean L1, which cells near zero hardly move. Table 2 has the CV that the "
    "paper's script computes.",
    "The components say in what prompts differ, from the variance of log L1: level, a prompt's curves are higher or "
    "lower; shape, its change falls on other steps or layers, which alone moves where the redundancy is; seed, the "
    "noise of one text. The pattern is the share of all variance that layers and steps decide, whatever the prompt.",
)
CVS = {"cv": "CV", "cv_median": "median", "cv_ratio": "ratio"}
PARTS = {"cv_level": "level", "cv_shape": "shape", "cv_seed": "seed", "icc_pattern": "pattern"}


@dataclass(frozen=True)
class Varied:
    """`variation` and `components` of a trace, or why there are none."""

    name: str
    found: xr.Dataset | str
    parts: xr.Dataset | str


def page(traces: Sequence[Varied]) -> str:
    rows = [["trace", "kind", "prompts", *CVS.values(), *PARTS.values()]]
    for one in traces:
        rows += _rows(one)
    parts = [*HEAD, table(rows)] if len(rows) > 1 else [*HEAD]
    reasons = [f"- {harmless(f'{one.name}: {one.found}')}" for one in traces if isinstance(one.found, str)]
    if reasons:
        parts += ["Without variation:", "\n".join(reasons)]
    named = [line for one in traces if isinstance(one.found, xr.Dataset) for line in _left_out(one.name, one.found)]
    if named:
        parts += ["## Cells that are left out", "\n".join(named)]
    return "\n\n".join(parts) + "\n"


def records(one: Varied) -> Iterator[dict[str, Any]]:
    """A record for each kind, with the ends of the intervals."""
    if isinstance(one.found, str) or isinstance(one.parts, str):
        return
    for kind in one.found.kind.values.tolist():
        cv, part = one.found.sel(kind=kind), one.parts.sel(kind=kind)
        numbers = {name: known(cv[name].item()) for name in ("cv_published", *CVS, "cv_low", "cv_high", "cv_error")}
        ends = ("", "_low", "_high")
        numbers |= {f"{name}{end}": known(part[f"{name}{end}"].item()) for name in PARTS for end in ends}
        counts = {name: int(cv[name]) for name in cv if str(name).startswith("cells")}
        yield {"trace": one.name, "kind": kind, "prompts": int(one.found.attrs["prompts"])} | numbers | counts


def _rows(one: Varied) -> Iterator[list[str]]:
    if isinstance(one.found, str) or isinstance(one.parts, str):
        return
    for kind in one.found.kind.values.tolist():
        cv, part = one.found.sel(kind=kind), one.parts.sel(kind=kind)
        cells = [_percent(cv, "cv"), *(_percent(cv, name, ends=False) for name in list(CVS)[1:])]
        cells += [_percent(part, name) for name in PARTS]
        yield [harmless(one.name), kind.upper(), str(one.found.attrs["prompts"]), *cells]


def _percent(of: xr.Dataset, name: str, *, ends: bool = True) -> str:
    """`14.2% (13.0 to 15.5)`."""
    value = of[name].item()
    if np.isnan(value):
        return "–"
    low, high = (100 * of[f"{name}{end}"].item() for end in ("_low", "_high")) if ends else (np.nan, np.nan)
    return f"{value:.1%}" + ("" if np.isnan(low) else f" ({low:.1f} to {high:.1f})")


def _left_out(name: str, found: xr.Dataset) -> Iterator[str]:
    """How many, and which: the first few."""
    lines = [str(cells) for cells in left_out(found)]
    if lines:
        more = f"; and {plural(len(lines) - MOST, 'further place')}" if len(lines) > MOST else ""
        counted = f"{name}: {plural(int(found['cells_left_out'].sum()), 'cell')}. {'; '.join(lines[:MOST])}{more}"
        yield f"- {harmless(counted)}"


MOST = 6
"""Places of a trace that are named."""
