"""Distances as pictures: the paper's small multiples (arXiv 2411.13588, Figures 2 to 8), a heat map, and saving them.

A figure function gets what `paper_view` returns and gives back a matplotlib Figure. Over prompts it takes the mean and
two percentiles, nothing else; a cell that some prompt lacks stays empty. Transition t stands at num_steps - 2 - t, as
in the paper. Names come from a trace and are drawn as they are, never read as formulas.
"""

from __future__ import annotations

import io
import math
import os
import textwrap
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path

import matplotlib
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

Draw = Callable[[], Figure]

COLOURS = {"k": "mediumpurple", "v": "darkorange", "a": "cornflowerblue"}
STYLE = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.titlepad": 3,
    "lines.linewidth": 1.1,
    "lines.markersize": 3,
    "figure.titlesize": 10,
    "figure.labelsize": 8,
    "legend.title_fontsize": 10,
    "pdf.fonttype": 42,
    "text.parse_math": False,
    "text.usetex": False,
}
LARGE, SMALL = 12, 15
"""Letters an inch of titles and of captions."""

MOST_COLUMNS = 8
"""Panels in a row, unless told otherwise."""

SIZE = "mean |Δ| (L1)"
STEPS = "steps counted down as in the paper (arXiv 2411.13588)"
UNDATED = {"pdf": {"CreationDate": None, "Creator": None, "Producer": None}, "png": {"Software": None}}


def redundancy(view: xr.Dataset, title: str, *, columns: int | None = None) -> Figure:
    """One panel per layer: l1 of K, V and A over the steps, as mean and 5th to 95th percentile of the prompts.

    A log axis cannot show cells that are 0 because nothing changed; a kind that never changes is named in its panel.

    Args:
        columns: Panels in a row, narrow ones if they are many; by default 8 at most.
    """
    l1 = _l1(view)
    curves = _curves(l1)
    low, high = _limits(curves.to_array())
    layers = l1.sizes["layer"]
    rows, columns = _grid(layers, columns)
    with matplotlib.rc_context(STYLE):
        width = 1.5 if columns <= MOST_COLUMNS else 0.85
        figure = Figure((0.8 + width * max(columns, 3), 0.9 + 1.15 * max(rows, 2)), layout="constrained")
        for layer in range(layers):
            panel = figure.add_subplot(rows, columns, layer + 1)
            _draw(panel, l1.isel(layer=layer), curves.isel(layer=layer), _counted_down(view))
            panel.set(yscale="log", ylim=(low * 0.85, high / 0.85))  # sharey costs seconds for FLUX's 57 layers
            log_ticks(panel.yaxis)
            _step_ticks(panel, view)
            panel.tick_params(labelleft=layer % columns == 0, labelbottom=layer >= layers - columns)
        _frame(figure, l1, title)
    return figure


def heatmap(view: xr.Dataset, title: str) -> Figure:
    """Layers by steps, one image each for K, V and A: mean l1 of the prompts on one log colour scale.

    Cells without a value, and cells that are 0 because nothing changed, are grey.
    """
    means = _curves(_l1(view))["mean"]
    kinds, layers, _ = means.shape
    height = max(1.2, 0.115 * layers)  # a row has room for a line of text
    rows = range(0, layers, math.ceil(layers / 12))
    with matplotlib.rc_context(STYLE):
        figure = Figure((1.4 + 2.1 * max(kinds, 3), 0.8 + height), layout="constrained")
        panels = list(figure.subplots(1, kinds, squeeze=False)[0])
        norm = LogNorm(*_limits(means))
        for panel, kind in zip(panels, means, strict=True):
            image = _image(panel, kind, norm, _counted_down(view))
            _step_ticks(panel, view)
            panel.set_yticks(rows, means.layer.values[rows])
            panel.tick_params(labelleft=panel is panels[0])
        _part_types(panels, means)
        bar = figure.colorbar(image, ax=panels, pad=0.02, aspect=height / 0.12, label=SIZE)
        log_ticks(bar.ax.yaxis)
        figure.suptitle(_in_lines(title, figure))
        grey = "; grey: no change, or no value" if means.isnull().any() else ""
        figure.supxlabel(_in_lines(_caption(view) + grey, figure, SMALL))
        figure.supylabel("layer")
    return figure


def save(figure: Figure, stem: Path, *, force: bool = False) -> list[Path]:
    """Write `stem`.pdf and `stem`.png, the same bytes for the same figure, and return their paths.

    Where one of them is there already, neither is written: FileExistsError. A file appears whole or not at all.
    """
    refuse_existing(stem, force=force)
    paths = _paths(stem)
    stem.parent.mkdir(parents=True, exist_ok=True)
    for path, content in zip(paths, rendered(figure), strict=True):
        _replace(path, content)
    return paths


def rendered(figure: Figure) -> Iterator[bytes]:
    """The contents of the files that `save` writes, in the order of `UNDATED`."""
    with matplotlib.rc_context(STYLE):
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # laying out takes longer than drawing, and once is enough
    for ending, metadata in UNDATED.items():
        content = io.BytesIO()
        with matplotlib.rc_context(STYLE):
            figure.savefig(content, format=ending, dpi=150, metadata=metadata)
        yield content.getvalue()


def refuse_existing(stem: Path, *, force: bool = False) -> None:
    """FileExistsError if `save` would replace a file, unless by force."""
    for path in _paths(stem):
        if path.exists() and not force:
            raise FileExistsError(f"{path}: exists already; add --force to replace it")


def _paths(stem: Path) -> list[Path]:
    return [stem.with_name(f"{stem.name}.{ending}") for ending in UNDATED]


def _replace(path: Path, content: bytes) -> None:
    """Write a file aside and move it to its name."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise
    finally:
        partial.unlink(missing_ok=True)


def _l1(view: xr.Dataset) -> xr.DataArray:
    """l1 of K, V and A as far as they are there, (prompt, kind, layer, transition), NaN where it is not finite."""
    kinds = [kind for kind in COLOURS if kind in view.kind]
    l1 = view["l1"].sel(kind=kinds).transpose("prompt", "kind", "layer", "transition")
    return l1.where(np.isfinite(l1)).assign_attrs(view.attrs)


def _curves(l1: xr.DataArray) -> xr.Dataset:
    """Mean, low and high of the prompts, (kind, layer, transition), NaN where a log scale cannot show them."""
    low, high = l1.quantile([0.05, 0.95], "prompt", skipna=False).drop_vars("quantile")
    curves = xr.Dataset({"mean": l1.mean("prompt", skipna=False), "low": low, "high": high})
    return curves.where(curves > 0)


def _limits(values: xr.DataArray) -> tuple[float, float]:
    """Smallest and largest value, and something to draw where there is none."""
    return (values.min().item(), values.max().item()) if values.notnull().any() else (0.1, 1.0)


def _counted_down(view: xr.Dataset) -> xr.DataArray:
    """Where the paper draws each transition."""
    return int(view.attrs["num_steps"]) - 2 - view["transition"]


def _grid(panels: int, columns: int | None) -> tuple[int, int]:
    """Rows and columns: as many columns as told; else 8 at most, and as few empty places as can be."""
    if columns:
        return math.ceil(panels / columns), min(columns, panels)
    fewest = min(6, math.ceil(math.sqrt(panels)))
    columns = min(range(fewest, min(MOST_COLUMNS, panels) + 1), key=lambda columns: -panels % columns)
    return math.ceil(panels / columns), columns


def _draw(panel: Axes, l1: xr.DataArray, curves: xr.Dataset, x: xr.DataArray) -> None:
    """Draw the curves of one layer, and name the kinds that have none."""
    for kind in l1.kind.values:
        curve, colour = curves.sel(kind=kind), COLOURS[kind]
        panel.fill_between(x, curve["low"], curve["high"], color=colour, alpha=0.25, linewidth=0)
        gap = np.pad(curve["mean"].isnull(), 1, constant_values=True)
        panel.plot(x, curve["mean"], "o-", color=colour, markevery=gap[:-2] & gap[2:])  # a point alone has no line
    panel.set_title(f"{l1.layer.item()} · {l1.layer_type.item()}")
    rest = ("prompt", "transition")
    without = {"constant": l1.max(rest) == 0, "without a value": l1.isnull().all(rest)}
    notes = [", ".join(l1.kind.values[which]).upper() + f" {why}" for why, which in without.items() if which.any()]
    panel.text(0.04, 0.06, "\n".join(notes), transform=panel.transAxes)


def _image(panel: Axes, means: xr.DataArray, norm: LogNorm, x: xr.DataArray) -> AxesImage:
    """Draw one kind, means of (layer, transition)."""
    edges = (x.max().item() + 0.5, x.min().item() - 0.5, means.sizes["layer"] - 0.5, -0.5)
    panel.set(facecolor="lightgrey", title=means.kind.item().upper())
    return panel.imshow(means, "viridis", norm, aspect="auto", interpolation="nearest", extent=edges)


def _frame(figure: Figure, l1: xr.DataArray, title: str) -> None:
    """Title, legend and names of the axes, once for all panels."""
    handles: list[Line2D | Patch] = [Line2D([], [], color=COLOURS[kind], label=kind.upper()) for kind in l1.kind.values]
    if l1.sizes["prompt"] > 1:
        handles.append(Patch(color="lightgrey", label="5th to 95th percentile"))
    # A suptitle would lie on the legend, so the legend carries the title.
    places = {"loc": "outside upper center", "ncols": len(handles)}
    legend = figure.legend(handles=handles, title=_in_lines(title, figure), frameon=False, **places)
    legend.get_title().set_multialignment("center")
    figure.supxlabel(_in_lines(_caption(l1), figure, SMALL))
    figure.supylabel(SIZE)


def _in_lines(text: str, figure: Figure, an_inch: int = LARGE) -> str:
    """A title or caption, broken where the figure is too narrow for it."""
    return textwrap.fill(text, int(an_inch * figure.get_figwidth()))


def _caption(view: xr.Dataset | xr.DataArray) -> str:
    """How to read the steps, and what was averaged."""
    prompts = view.sizes["prompt"]
    sampled = "; from the sampled values alone" if view.attrs.get("source") == "sample" else ""
    return f"{STEPS}; " + (f"mean of {prompts} prompts" if prompts > 1 else "one prompt") + sampled


def _step_ticks(panel: Axes, view: xr.Dataset) -> None:
    """First, middle and last step, counted down from left to right."""
    first = int(view.attrs["num_steps"]) - 2
    panel.set(xticks=np.unique([first, first // 2, 0]), xlim=(first + 0.5, -0.5))


def _part_types(panels: list[Axes], means: xr.DataArray | xr.Dataset, colour: str = "white") -> None:
    """Where types differ, part the layers by a line, and name the type on the right of the last panel."""
    runs = [(name, len(list(run))) for name, run in groupby(means.layer_type.values)]
    row = -0.5
    for name, length in runs if len(runs) > 1 else []:
        for panel in panels:
            panel.axhline(row, color=colour, linewidth=1)
        panels[-1].text(1.02, row + length / 2, name, transform=panels[-1].get_yaxis_transform(), va="center")
        row += length


def log_ticks(axis: Axis) -> None:
    """Plain numbers, as many as a small panel has room for."""
    low, high = axis.get_view_interval()
    subs = (1, 2, 5) if high / low < 30 else (1, 3) if high / low < 1000 else (1,)
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_locator(NullLocator())
