"""Where the curves of a trace break, as a picture: layers by steps, and above them all layers together.

Gets what `measures.changes` returns and computes nothing new. Steps are counted down as in the paper's figures.
"""

from __future__ import annotations

import math

import matplotlib
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from dit_analyzer.show.figures import COLOURS, SMALL, STEPS, STYLE, _in_lines, _part_types, _step_ticks

CHANGE = {"color": "crimson", "marker": "o", "markersize": 3, "linestyle": "none"}
DIP = {"color": "black", "marker": "x", "markersize": 3.5, "linestyle": "none"}
SCALE = Normalize(0, 1)
MAP = "Blues"


def changes(found: xr.Dataset, title: str) -> Figure:
    """A column for each kind: probability of a change at each step, as bars for all layers together, as a heat map for
    each alone; declared changes are marked, those of all layers with their interval, and dips.

    Cells that took no part, for want of a usable L1 or as part of a dip, are grey.
    """
    kinds, layers = [kind for kind in COLOURS if kind in found.kind], found.sizes["layer"]
    height = max(1.2, 0.115 * layers)
    with matplotlib.rc_context(STYLE):
        figure = Figure((1.4 + 2.1 * max(len(kinds), 3), 2.3 + height), layout="constrained")
        ratios = {"height_ratios": (0.9, height)}
        above, below = figure.subplots(2, max(len(kinds), 1), squeeze=False, gridspec_kw=ratios)
        for top, panel, kind in zip(above, below, kinds):
            one = found.sel(kind=kind)
            _joint(top, one, COLOURS[kind])
            _layers(panel, one)
            top.set_title(kind.upper())
            for each in (top, panel):
                _step_ticks(each, found)
                each.tick_params(labelleft=kind == kinds[0])
            top.tick_params(labelbottom=False)
        if not kinds:
            below[0].text(0.5, 0.5, "none of K, V and A was recorded", transform=below[0].transAxes, ha="center")
        _part_types(list(below), found, "grey")
        figure.colorbar(
            ScalarMappable(SCALE, MAP), ax=list(below), pad=0.02, aspect=height / 0.12, label="probability of a change"
        )
        above[0].set_ylabel("all layers\ntogether")
        below[0].set_ylabel("layer")
        _frame(figure, found, title)
    return figure


def _joint(panel: Axes, one: xr.Dataset, colour: str) -> None:
    """Bars of the joint probability of one kind, and its declared changes at their posterior."""
    x = one["paper_step"].values
    panel.bar(x, one["joint_probability"].fillna(0), width=1, color=colour)
    for place in np.flatnonzero(one["joint_declared"].values):
        ends = (
            x[place] + one.transition.values[place] - one[["joint_low", "joint_high"]].isel(transition=place).to_array()
        )
        panel.plot(ends, [one["joint_posterior"].values[place]] * 2, color=CHANGE["color"], linewidth=1)
        panel.plot(x[place], one["joint_posterior"].values[place], **CHANGE)
    why = (
        "too few usable steps" if np.isnan(one["joint_any"]) else "" if one["joint_declared"].any() else "none declared"
    )
    panel.text(0.5, 0.8, why, transform=panel.transAxes, ha="center")
    panel.set(ylim=(0, 1.08), yticks=(0, 0.5, 1))


def _layers(panel: Axes, one: xr.Dataset) -> None:
    """The heat map of one kind, and what is declared in each layer."""
    x, layers = one["paper_step"].values, one.sizes["layer"]
    edges = (x.max() + 0.5, x.min() - 0.5, layers - 0.5, -0.5)
    panel.imshow(one["probability"], MAP, SCALE, aspect="auto", interpolation="nearest", extent=edges)
    for marked, style in ((one["declared"], CHANGE), (one["dip_factor"].notnull(), DIP)):
        row, place = np.nonzero(marked.values)
        panel.plot(x[place], row, **style)
    rows = range(0, layers, math.ceil(layers / 12))
    panel.set_yticks(rows, one.layer.values[rows])
    panel.set_facecolor("lightgrey")


def _frame(figure: Figure, found: xr.Dataset, title: str) -> None:
    """Title, legend, and how to read it."""
    handles = [
        Line2D([], [], **CHANGE, label="declared change of a layer"),
        Line2D([], [], **CHANGE | {"linestyle": "-"}, label="of all together, at its posterior, with 95 % interval"),
    ]
    if found["dip_factor"].notnull().any():
        handles.append(Line2D([], [], **DIP, label="dip or spike"))
    if found["probability"].isnull().any():
        handles.append(Patch(color="lightgrey", label="took no part"))
    legend = figure.legend(
        handles=handles, title=_in_lines(title, figure), frameon=False, loc="outside upper center", ncols=4
    )
    legend.get_title().set_multialignment("center")
    prompts = found.attrs["prompts"]
    mean = f"mean of {prompts} prompts" if prompts > 1 else "one prompt"
    sampled = "; from the sampled values alone" if found.attrs.get("source") == "sample" else ""
    figure.supxlabel(_in_lines(f"{STEPS}; {mean}{sampled}", figure, SMALL))
