"""Distances as pictures: the paper's small multiples (arXiv 2411.13588, Figures 2 to 8), a heat map, and saving them.

A figure function gets what `paper_view` returns and gives back a matplotlib Figure. Over prompts it takes the mean and
two percentiles, nothing else; a cell that some prompt lacks stays empty. Transition t stands at num_steps - 2 - t, as in
the paper. Names come from a trace and are drawn as they are, never read as formulas.
"""

from __future__ import annotations

import math
from itertools import groupby
from pathlib import Path

import matplotlib
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

COLOURS = {"k": "mediumpurple", "v": "darkorange", "a": "cornflowerblue"}
STYLE = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.titlepad": 3,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.1,
    "lines.markersize": 2,
    "figure.titlesize": 10,
    "figure.labelsize": 8,
    "legend.title_fontsize": 10,
    "pdf.fonttype": 42,
    "text.parse_math": False,
    "text.usetex": False,
}
NO_VALUE = "lightgrey"
STEPS = "steps counted down as in the paper"
SIZE = "mean |Δ| (L1)"


def redundancy(view: xr.Dataset, title: str) -> Figure:
    """One panel per layer: l1 of K, V and A over the steps, as mean and 5th to 95th percentile of the prompts.

    A log axis cannot show cells that are 0 because nothing changed; a kind that never changes is named in its panel.
    """
    l1 = _l1(view)
    curves = _curves(l1)
    low, high = _limits(curves)
    layers = l1.sizes["layer"]
    rows, columns = _grid(layers)
    with matplotlib.rc_context(STYLE):
        figure = Figure((0.8 + 1.5 * max(columns, 3), 0.9 + 1.15 * max(rows, 2)), layout="constrained")
        # Limits by hand: shared axes ask all their siblings at every curve, 20 seconds for the 57 layers of FLUX.
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for layer, panel in enumerate(panels[:layers]):
            panel.set(yscale="log", ylim=(0.85 * low, high / 0.85), title=_label(l1, layer))
            _draw(panel, curves.isel(layer=layer), _unchanged(l1.isel(layer=layer)))
            _log_ticks(panel.yaxis)
            _step_ticks(panel, view)
            panel.tick_params(labelleft=layer % columns == 0, labelbottom=layer >= layers - columns)
        for panel in panels[layers:]:
            panel.remove()
        _frame(figure, l1, title)
    return figure


def heatmap(view: xr.Dataset, title: str) -> Figure:
    """Layers by steps, one image each for K, V and A: mean l1 of the prompts on one log colour scale.

    Cells without a value, and cells that are 0 because nothing changed, are grey.
    """
    means = _positive(_l1(view).mean("prompt", skipna=False))
    layers, kinds = means.sizes["layer"], means.sizes["kind"]
    height = max(1.2, 0.115 * layers)  # a row has room for a line of text
    first, *_, last = [*_counted_down(view), *_counted_down(view)]
    norm = LogNorm(*_limits(means), clip=False)
    with matplotlib.rc_context(STYLE):
        figure = Figure((1.4 + 2.1 * kinds, 0.9 + height), layout="constrained")
        panels = figure.subplots(1, kinds, squeeze=False)[0]
        for panel, kind in zip(panels, means):
            panel.set(facecolor=NO_VALUE, title=str(kind.kind.item()).upper())
            edges = (first + 0.5, last - 0.5, layers - 0.5, -0.5)
            image = panel.imshow(kind, norm=norm, cmap="viridis", aspect="auto", interpolation="nearest", extent=edges)
