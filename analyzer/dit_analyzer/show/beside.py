"""Several traces beside each other as pictures: the matrix of S, and mean curves laid over each other.

A figure function gets what `concordance` and `mean_curves` return, and computes nothing new.
"""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

from dit_analyzer.show.figures import STYLE, _in_lines

COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#777777")
"""Paul Tol's bright scheme, which colour-blind readers can tell apart; with dashes where there are more traces."""

LINES = ("-", "--", ":", "-.")
ALONG = {"step": "relative step", "noise": "noise level, falling as the run goes on"}
HEIGHT = {"step": "L1 over its mean", "noise": "L1 / |Δσ| over its mean"}


def matrix(found: xr.DataArray, labels: Sequence[str], axis: str) -> Figure:
    """S of every two traces, (kind, model, other), an image for each kind; S in numbers where there is room.

    Cells without a value are grey.
    """
    kinds, count, _ = found.shape
    side = max(1.6, 0.42 * count)
    with matplotlib.rc_context(STYLE):
        figure = Figure((1.6 + 0.062 * max(map(len, labels)) + kinds * (side + 0.2), side + 1.7), layout="constrained")
        panels = list(figure.subplots(1, kinds, squeeze=False)[0])
        for panel, values in zip(panels, found, strict=True):
            panel.set(facecolor="lightgrey", title=values.kind.item().upper())
            image = panel.imshow(np.ma.masked_invalid(values), "RdBu", vmin=-1, vmax=1, interpolation="nearest")
            panel.set_xticks(range(count), labels, rotation=40, ha="right", rotation_mode="anchor")
            panel.set_yticks(range(count), labels if panel is panels[0] else [""] * count)
            _numbers(panel, values.values)
        figure.colorbar(image, ax=panels, pad=0.02, label="shape concordance S")
        title = f"same shape over depth and {ALONG[axis].split(',')[0]}? 1: equal, 0: unrelated, -1: opposite"
        figure.suptitle(_in_lines(title, figure))
    return figure


def overlaid(curves: Sequence[xr.DataArray], labels: Sequence[str]) -> Figure:
    """Mean curves (run, kind, point), a row for each axis and a panel for each kind, in the order that steps run."""
    rows, columns = len(curves), curves[0].sizes["kind"]
    with matplotlib.rc_context(STYLE):
        figure = Figure((0.8 + 2.2 * max(columns, 2), 1.0 + 1.8 * rows), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False, sharey="row")
        for row, (panels, means) in enumerate(zip(grid, curves, strict=True)):
            axis = means.attrs["axis"]
            for panel, kind in zip(panels, means.kind.values, strict=True):
                lines = _lines(panel, means.sel(kind=kind), labels)
                panel.set(yscale="log", title="" if row else kind.upper())
                _ticks(panel)
                if axis == "noise":
                    panel.invert_xaxis()
            panels[0].set_ylabel(HEIGHT[axis])
            panels[columns // 2].set_xlabel(ALONG[axis])
        places = {"loc": "outside upper center", "ncols": min(len(labels), 3)}
        figure.legend(lines, labels, title="mean over prompts and layers", frameon=False, **places)
    return figure


def style(place: int) -> dict[str, str]:
    """Colour and dashes of the trace at this place."""
    return {"color": COLOURS[place % len(COLOURS)], "linestyle": LINES[place // len(COLOURS) % len(LINES)]}


def _lines(panel: Axes, means: xr.DataArray, labels: Sequence[str]) -> list[Line2D]:
    styles = [style(place) for place in range(len(labels))]
    return [panel.plot(means.point, curve, **each)[0] for curve, each in zip(means, styles, strict=True)]


def _ticks(panel: Axes) -> None:
    """Plain numbers, also where a curve hardly varies."""
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 1.4, 2, 3, 5, 7)))
    panel.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    panel.yaxis.set_minor_locator(NullLocator())


def _numbers(panel: Axes, values: np.ndarray) -> None:
    if len(values) > 12:
        return
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            colour = "white" if abs(value) > 0.6 else "black"
            panel.text(column, row, f"{value:.2f}", ha="center", va="center", color=colour, fontsize=7)
