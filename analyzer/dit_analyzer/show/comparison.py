"""What `dit-analyze compare` prints: how alike the curves of two or more traces are, for people or as JSON.

Where schedulers differ the noise axis is the headline: at the same relative step two schedulers give different noise,
and curves differ for that alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from dit_formats.console import harmless, plural
from dit_formats.reader import open_trace
from rich.table import Table
from rich.text import Text

from dit_analyzer.measures.axes import AXES
from dit_analyzer.measures.concordance import concordance, mean_curves
from dit_analyzer.measures.depth import depth_profile, depth_trend, kind_contrast, roughness
from dit_analyzer.measures.distance import distances
from dit_analyzer.measures.pairing import ComparisonError
from dit_analyzer.measures.paper import paper_view
from dit_analyzer.measures.stability import LITTLE_CONTRAST, stability
from dit_analyzer.show import depth
from dit_analyzer.show.papertables import known
from dit_analyzer.show.stability import NAMES, cells

SAME_NOISE = 0.01
"""Noise levels closer than this at every relative step are called the same."""

FEW = 6
"""With fewer prompts no flipping of signs gives a p-value below 0.05."""


@dataclass
class Run:
    """A trace to compare: its label, `paper_view`, and the scheduler that made it."""

    label: str
    view: xr.Dataset
    scheduler: Any

    @cached_property
    def trend(self) -> xr.Dataset:
        """`depth_trend`."""
        return depth_trend(self.view)

    @cached_property
    def contrast(self) -> xr.Dataset:
        """`kind_contrast`."""
        return kind_contrast(self.view)


@dataclass(frozen=True)
class Pair:
    """Two traces: `stability` on each axis that was asked for, and why an axis is missing; `roughness`, or why not."""

    one: Run
    other: Run
    found: dict[str, xr.Dataset]
    missing: dict[str, str]
    rough: xr.Dataset | str

    @property
    def max_dsigma(self) -> float:
        return next(iter(self.found.values()))["max_dsigma"].item()

    @property
    def schedulers_differ(self) -> bool:
        return self.one.scheduler != self.other.scheduler

    @property
    def headline(self) -> str:
        """The axis to look at first."""
        other_noise = self.schedulers_differ or self.max_dsigma > SAME_NOISE
        return "noise" if "noise" in self.found and other_noise else next(iter(self.found))


def read(traces: Sequence[Path], source: str, dask: Any = None) -> list[Run]:
    """The traces to compare, named by their files, or by their paths where two files have one name."""
    stems = [path.resolve().stem for path in traces]
    labels = stems if len(set(stems)) == len(stems) else list(map(str, traces))
    runs = []
    for path, label in zip(traces, labels):
        with open_trace(path) as trace:
            view = paper_view(distances(trace, source=source, dask=dask))
            runs.append(Run(harmless(label), view, trace.run.settings.get("scheduler")))
    return runs


def draw(found: Sequence[Pair], runs: Sequence[Run], stem: Path, *, force: bool = False) -> list[Path]:
    """Write the matrix of S on the headline's axis, mean curves on all axes, and change over depth; the paths written.

    The axis is noise if it is the headline of some pair.
    """
    from dit_analyzer.show import beside, figures

    views, labels = [run.view for run in runs], [run.label for run in runs]
    axes = [axis for axis in AXES if all(axis in pair.found for pair in found)]
    if not axes:
        raise ComparisonError("no axis on which all traces can be drawn together; compare fewer")
    axis = "noise" if "noise" in axes and "noise" in [pair.headline for pair in found] else axes[0]
    made = {
        "concordance": beside.matrix(concordance(views, axis), labels, axis),
        "curves": beside.overlaid([mean_curves(views, axis) for axis in axes], labels),
        "depth": depth.profile(labels, [depth_profile(view) for view in views]),
    }
    return [
        path
        for name, figure in made.items()
        for path in figures.save(figure, stem.with_name(f"{stem.name}-{name}"), force=force)
    ]


def pairs(runs: Sequence[Run], axes: Sequence[str] = AXES) -> list[Pair]:
    """Every two of the runs, compared.

    Raises:
        ComparisonError: Two of them cannot be, on any axis; it names them.
    """
    return [_pair(one, other, axes) for one, other in combinations(runs, 2)]


def show(found: Sequence[Pair], runs: Sequence[Run]) -> None:
    """Print to stdout a table for each pair, then how change of each trace depends on depth and kind, and roughness."""
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True, width=max(Console().width, 110))
    for pair in found:
        console.print(Text(_head(pair), style="bold"))
        console.print(_stabilities(pair))
        for note in _notes(pair):
            console.print(Text(note, style="dim"))
        console.print()
    labels = [run.label for run in runs]
    for title, rows in (
        ("over depth, as the factor from input to output", depth.trend_rows(labels, [run.trend for run in runs])),
        ("between kinds, as a factor", depth.contrast_rows(labels, [run.contrast for run in runs])),
        (
            "roughness of ln L1",
            [depth.ROUGH_HEADER, *(row for pair in found for row in depth.rough_rows(_named(pair)))],
        ),
    ):
        if len(rows) > 1:
            console.print(Text(title, style="bold"))
            console.print(_grid(rows))
            console.print()


def as_json(found: Sequence[Pair], runs: Sequence[Run]) -> dict[str, list[dict[str, Any]]]:
    """Pairs and traces as plain values; what is missing is null."""
    pairs = [
        {
            "one": pair.one.label,
            "other": pair.other.label,
            "prompts": next(iter(pair.found.values()))["prompts"].item(),
            "max_dsigma": known(pair.max_dsigma),
            "schedulers_differ": pair.schedulers_differ,
            "headline": pair.headline,
            "axes": {axis: _rows(values) for axis, values in pair.found.items()},
            "roughness": [] if isinstance(pair.rough, str) else list(depth.rough_records(pair.rough)),
            "notes": _notes(pair),
        }
        for pair in found
    ]
    return {
        "pairs": pairs,
        "traces": [
            {"trace": run.label, "depth": list(depth.records(run.label, run.trend, run.contrast))} for run in runs
        ],
    }


def _stabilities(pair: Pair) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("", "S", "curves differ by", "level", "p", "verdict"):
        table.add_column(name, justify="left" if name in ("", "verdict") else "right", no_wrap=True)
    for axis, values in pair.found.items():
        headline = ", headline" if len(pair.found) > 1 and axis == pair.headline else ""
        table.add_row(Text(f"{NAMES[axis]}{headline}", style="dim"))
        for kind in values.kind.values:
            row = {name: each.item() for name, each in values.sel(kind=kind).data_vars.items()}
            table.add_row(f"  {kind.upper()}", *cells(row))
    return table


def _grid(rows: list[list[str]]) -> Table:
    """Rows under the first as header; a name is not said twice below itself."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in rows[0]:
        table.add_column(name, no_wrap=True, overflow="fold")
    for before, row in zip(rows, rows[1:]):
        said = [place < 2 and row[: place + 1] == before[: place + 1] for place in range(len(row))]
        table.add_row(*(Text("" if known else cell) for known, cell in zip(said, row)))
    return table


def _named(pair: Pair) -> depth.Rough:
    return depth.Rough(pair.one.label, pair.other.label, pair.rough)


def _pair(one: Run, other: Run, axes: Sequence[str]) -> Pair:
    found, missing = {}, {}
    for axis in axes:
        try:
            found[axis] = stability(one.view, other.view, axis)
        except ComparisonError as error:
            missing[axis] = str(error)
    if not found:
        reason = next(iter(missing.values()))
        raise ComparisonError(f"{one.label} and {other.label}: {reason}")
    return Pair(one, other, found, missing, _roughness(one, other))


def _roughness(one: Run, other: Run) -> xr.Dataset | str:
    try:
        return roughness(one.view, other.view)
    except ComparisonError as error:
        return str(error)


def _head(pair: Pair) -> str:
    prompts = next(iter(pair.found.values()))["prompts"].item()
    parts = [f"{pair.one.label} and {pair.other.label}", plural(prompts, "common prompt"), _noise(pair)]
    return harmless(" · ".join(parts))


def _noise(pair: Pair) -> str:
    if np.isnan(pair.max_dsigma):
        return "noise levels unknown"
    schedulers = "schedulers differ" if pair.schedulers_differ else "same scheduler"
    return f"{schedulers}, max |Δσ| {pair.max_dsigma:.3f} at the same relative step"


def _notes(pair: Pair) -> list[str]:
    """What a reader has to know about a pair, in sentences."""
    values = next(iter(pair.found.values()))
    prompts, left_out = values["prompts"].item(), int(values["cells_left_out"].sum())
    notes = [f"no {NAMES[axis]}: {reason}" for axis, reason in pair.missing.items()]
    for run in (pair.one, pair.other):
        if run.view.sizes["prompt"] > prompts:
            notes.append(f"{run.label}: {plural(run.view.sizes['prompt'] - prompts, 'prompt')} left out, not in both")
    if pair.one.view.sizes["layer"] != pair.other.view.sizes["layer"]:
        counts = " and ".join(str(run.view.sizes["layer"]) for run in (pair.one, pair.other))
        notes.append(f"{counts} layers, compared at the same relative depth")
    if prompts < 3:
        notes.append("no interval and no verdict of fewer than 3 prompts; trace more with -n")
    elif prompts < FEW:
        notes.append("with fewer than 6 prompts p cannot be below 0.05; trace more with -n")
    if isinstance(pair.rough, str) and pair.rough not in pair.missing.values():
        notes.append(f"no roughness: {pair.rough}")
    if pair.schedulers_differ and pair.max_dsigma < LITTLE_CONTRAST:
        notes.append("the noise levels hardly differ, so this says little about schedulers")
    if left_out:
        notes.append(f"{plural(left_out, 'cell')} without a logarithm left out: no change, or no value")
    return [harmless(note) for note in notes]


def _rows(values: xr.Dataset) -> list[dict[str, Any]]:
    rows = []
    for kind in values.kind.values:
        row = values.sel(kind=kind).drop_vars(("max_dsigma", "prompts"))
        cells = {name: known(value.item()) for name, value in row.data_vars.items() if name != "verdict"}
        rows.append({"kind": str(kind)} | cells | {"verdict": row["verdict"].item()})
    return rows
