"""What the paper's published scripts compute, beside the correct values: a page of Markdown, records, and a picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import matplotlib
import numpy as np
import xarray as xr
from dit_formats.console import harmless, plural
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from dit_analyzer.measures.defects import SCRIPT_PROMPTS, curve_weights
from dit_analyzer.show.facts import SCRIPTS, table
from dit_analyzer.show.figures import (
    COLOURS,
    SIZE,
    SMALL,
    STEPS,
    STYLE,
    _counted_down,
    _in_lines,
    _step_ticks,
    log_ticks,
)
from dit_analyzer.show.papertables import known

HEAD = (
    "# As published",
    f"What the scripts of the paper compute ({SCRIPTS}), on the traces of this study, and the correct values. `exp_1` "
    f"takes the CV over the first {SCRIPT_PROMPTS} prompts, with N degrees of freedom; one cell without change makes "
    "it NaN. `exp_2` draws a running mean of the same prompts in which prompt 0 has no weight.",
    "CV, script: as `exp_1`. The same prompts: the correct CV of these. All: of all prompts, with its 95 % interval. "
    "Curve: the script's over the mean of all prompts, median and largest deviation over layers and transitions.",
)


def page(names: Sequence[str], found: Sequence[xr.Dataset | str]) -> str:
    """Of each trace what `as_published` found, or why it could not."""
    rows = [["trace", "kind", "CV, script", "the same prompts", "all", "prompts", "curve, median", "curve, largest"]]
    for name, one in zip(names, found, strict=True):
        rows += [] if isinstance(one, str) else [_row(name, one, kind) for kind in one.kind.values.tolist()]
    parts = [*HEAD, table(rows)] if len(rows) > 1 else [*HEAD]
    told = [f"{name}: {one}" for name, one in zip(names, found, strict=True) if isinstance(one, str)]
    told += [
        f"{name}: has {one.attrs['prompts']} prompts, and what the scripts do to {SCRIPT_PROMPTS} was done to these"
        for name, one in zip(names, found, strict=True)
        if not isinstance(one, str) and one.attrs["script_prompts"] < SCRIPT_PROMPTS
    ]
    told += [
        f"{name}: the scripts read {one.attrs['script_layers']} of {plural(one.sizes['layer'], 'layer')}"
        for name, one in zip(names, found, strict=True)
        if not isinstance(one, str) and one.attrs["script_layers"] < one.sizes["layer"]
    ]
    return "\n\n".join([*parts, *(["\n".join(f"- {harmless(line)}" for line in told)] if told else [])]) + "\n"


def records(name: str, found: xr.Dataset) -> Iterator[dict[str, Any]]:
    """A record for each kind."""
    for kind in found.kind.values.tolist():
        of = found.sel(kind=kind)
        numbers = {cv: known(of[cv].item()) for cv in ("cv_script", "cv_first", "cv", "cv_low", "cv_high")}
        curve = dict(zip(("curve_median", "curve_largest"), map(known, _apart(of["l1_ratio"]))))
        prompts = {name: int(found.attrs[name]) for name in ("script_prompts", "prompts")}
        yield {"trace": name, "kind": kind} | prompts | numbers | curve


def curves(found: xr.Dataset, title: str) -> Figure:
    """The script's curve and the mean of all prompts, of the layer in which they are furthest apart: a panel a kind."""
    kinds = [kind for kind in COLOURS if kind in found.kind]
    with matplotlib.rc_context(STYLE):
        figure = Figure((0.8 + 2.3 * max(len(kinds), 2), 2.7), layout="constrained")
        panels = figure.subplots(1, max(len(kinds), 1), squeeze=False)[0]
        for panel, kind in zip(panels, kinds):
            off = np.abs(np.log(found["l1_ratio"].sel(kind=kind)))
            if not np.isfinite(off).any():
                panel.text(0.5, 0.5, "nothing to compare", transform=panel.transAxes, ha="center")
                continue
            layer = int(off.max("transition").fillna(-1).argmax("layer"))
            of = found.sel(kind=kind).isel(layer=layer)
            panel.plot(_counted_down(found), of["l1"], color=COLOURS[kind])
            panel.plot(_counted_down(found), of["l1_script"], color="black", linestyle="--", linewidth=0.9)
            panel.set(yscale="log", title=f"{kind.upper()} · layer {of.layer.item()}")
            log_ticks(panel.yaxis)
            _step_ticks(panel, found)
        panels[0].set_ylabel(SIZE)
        lines = [
            Line2D([], [], color="grey", label=f"mean of {found.attrs['prompts']} prompts"),
            Line2D([], [], color="black", linestyle="--", label=f"script: {_weights(found.attrs['script_prompts'])}"),
        ]
        legend = figure.legend(handles=lines, title=_in_lines(title, figure), loc="outside upper center", ncols=2)
        legend.set_frame_on(False)
        figure.supxlabel(_in_lines(f"{STEPS}; the layers that differ most", figure, SMALL))
    return figure


def _weights(prompts: int) -> str:
    """`prompts 1 to 9, prompt 0 dropped`."""
    kept = np.flatnonzero(curve_weights(prompts))
    if len(kept) < 2:
        return f"prompt {kept[0]} alone"
    return f"prompts {kept[0]} to {kept[-1]}" + (", prompt 0 dropped" if kept[0] else "")


def _row(name: str, found: xr.Dataset, kind: str) -> list[str]:
    of = found.sel(kind=kind)
    low, high = 100 * of["cv_low"].item(), 100 * of["cv_high"].item()
    ends = "" if np.isnan(low) else f" ({low:.1f} to {high:.1f})"
    prompts = f"{found.attrs['script_prompts']} of {found.attrs['prompts']}"
    cells = [_percent(of["cv_script"].item()), _percent(of["cv_first"].item()), _percent(of["cv"].item()) + ends]
    return [harmless(name), kind.upper(), *cells, prompts, *map(_percent, _apart(of["l1_ratio"]))]


def _apart(ratio: xr.DataArray) -> tuple[float, float]:
    """Median and largest |ratio - 1|, NaN of none."""
    off = np.abs(ratio.values[np.isfinite(ratio.values)] - 1)
    return (float(np.median(off)), float(off.max())) if off.size else (float("nan"), float("nan"))


def _percent(value: float) -> str:
    return "NaN" if np.isnan(value) else f"{value:.1%}"
