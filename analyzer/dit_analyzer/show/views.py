"""The earlier observations as pictures: a figure for each view of `dit_analyzer.views`, laid out as its paper did.

A figure function gets what the function of the same name in `dit_analyzer.measures.views` returns, and a title. Steps
run from left to right in the order of the sampler. Over prompts it takes the mean and the 5th and 95th percentile; bars
are standard errors of the mean where that is from samples. Lines differ in colour and in marker.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import matplotlib
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator

from dit_analyzer.show.figures import STYLE, log_ticks

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "grey")
"""Colours that can be told apart with any colour vision (Okabe and Ito, Color Universal Design, 2008)."""

MARKERS = ("o", "s", "^", "D", "v", "P")
LEGEND = 1.5
"""Inches at the right for a legend, which then lies on nothing."""

PARTS = {"a": "attention", "f": "feed-forward"}
TYPES = {"ff": "feed-forward"} | {name: f"{name} attention" for name in ("spatial", "temporal", "joint", "single")}
TYPES |= {"self": "self-attention", "cross": "cross-attention", "linear": "linear attention"}
SITES = {"model_input": "noisy input", "modulated": "timestep-modulated input", "prediction": "model output"}
GROUPS = {"front": "front blocks", "rear": "rear blocks", "all": "all blocks"}
SPREAD = "mean and 5th to 95th percentile of {} prompts"


@matplotlib.rc_context(STYLE)
def l2c(view: xr.Dataset, title: str) -> Figure:
    """Squared change over the depth, a line for each transition; attention and feed-forward networks."""
    square, error = view["square"].mean("prompt", skipna=False), view["square_se"]
    figure, panels = _panels(2, title, "Learning-to-Cache (arXiv 2406.01733), changes of layers' outputs")
    colours = ScalarMappable(Normalize(0, max(square.sizes["transition"] - 1, 1)), "viridis")
    for panel, kind in zip(panels, PARTS):
        lines = square.sel(kind=kind).dropna("layer", how="all")
        for transition in lines.transition.values:
            line, colour = lines.sel(transition=transition), colours.to_rgba(transition)
            panel.plot(range(line.sizes["layer"]), line, "o-", color=colour)
            _bars(panel, range(line.sizes["layer"]), line, error.sel(kind=kind, transition=transition))
        panel.set(title=PARTS[kind], xlabel="layer of this kind")
        _log_if_positive(panel, lines)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panels[0].set_ylabel("‖f(h)[t+1] − f(h)[t]‖₂²")
    bar = figure.colorbar(colours, ax=panels, label="transition t → t+1")
    bar.ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    return _captioned(figure, view, _mean(view))


@matplotlib.rc_context(STYLE)
def tgate(view: xr.Dataset, title: str) -> Figure:
    """Change of cross-attention's output over the steps."""
    figure, (panel,) = _panels(1, title, "T-GATE (arXiv 2404.02747), change of cross-attention's output")
    mean = view["distance"].mean("prompt", skipna=False)
    spread = view["distance"].std("prompt", skipna=False)
    _line(panel, mean, (mean - spread, mean + spread), 0, error=view["distance_se"])
    panel.set(xlabel="transition t → t+1", ylabel="‖c[t+1] − c[t]‖₂", ylim=(0, None))
    return _captioned(figure, view, _mean(view))


@matplotlib.rc_context(STYLE)
def pab(view: xr.Dataset, title: str) -> Figure:
    """Mean squared change of attention's output over the steps, a line for each type."""
    figure, (panel,) = _panels(1, title, "PAB (arXiv 2408.12588), attention differences", legend=True)
    _lines(panel, view["mse"], "type", view["mse_se"], TYPES)
    panel.set(xlabel="transition t → t+1", ylabel="mean (a[t+1] − a[t])²")
    _log_if_positive(panel, view["mse"])
    _legend(figure, panel)
    return _captioned(figure, view, _spread(view))


@matplotlib.rc_context(STYLE)
def smoothcache(view: xr.Dataset, title: str) -> Figure:
    """Relative L1 error over the steps, a panel for each type of layer and a line for each lag."""
    types = view.type.values.tolist()
    figure, panels = _panels(
        len(types), title, "SmoothCache (arXiv 2411.10510), error curves", sharey=True, legend=True
    )
    for panel, name in zip(panels, types):
        for place, lag in enumerate(view.lag.values):
            one = view.sel(type=name, lag=lag)
            mean = one["error"].mean("prompt", skipna=False)
            band = mean - one["half_width"], mean + one["half_width"]
            _line(panel, mean, band, place, f"k = {lag}", one["error_se"])
        panel.set(title=TYPES.get(name, name), xlabel="step t")
    panels[0].set_ylabel("‖L[t] − L[t−k]‖₁ / ‖L[t]‖₁")
    panels[0].set_ylim(0, None)  # of all panels, once all is drawn
    _legend(figure, panels[0])
    many = view.sizes["prompt"] > 1
    return _captioned(figure, view, _mean(view) + (", shade: 95 % confidence interval of the mean" if many else ""))


@matplotlib.rc_context(STYLE)
def magcache(view: xr.Dataset, title: str) -> Figure:
    """Magnitude ratio, its deviation over tokens, and cosine distance of the residual, over the steps."""
    names = {
        "ratio": "mean of |r[t+1]| / |r[t]| over tokens" if "ratio_std" in view else "|r[t+1]| / |r[t]|",
        "ratio_std": "standard deviation over tokens",
        "distance": "1 − cos(r[t], r[t+1])",
    }
    shown = [name for name in names if name in view]
    figure, panels = _panels(len(shown), title, "MagCache (arXiv 2506.09045), magnitude ratio", legend=True)
    for panel, name in zip(panels, shown):
        _lines(panel, view[name], "branch", view[f"{name}_se"])
        panel.set(title=names[name], xlabel="transition t → t+1")
    panels[0].axhline(1, color="lightgrey", linewidth=0.8, zorder=0)
    _legend(figure, panels[0])
    return _captioned(figure, view, _spread(view, halved=False))


@matplotlib.rc_context(STYLE)
def teacache(view: xr.Dataset, title: str) -> Figure:
    """Relative change of inputs and output over the steps; and output against modulated input with the polynomial."""
    figure, panels = _panels(2, title, "TeaCache (arXiv 2411.19108), input and output differences", legend=True)
    means = view["rel_l1"].mean("branch", skipna=False)
    _lines(panels[0], means, "site", view["rel_l1_se"], SITES)
    panels[0].set(xlabel="transition t → t+1", ylabel="mean |x[t+1] − x[t]| / mean |x[t]|")
    _log_if_positive(panels[0], means)
    _legend(figure, panels[0])
    x, y = (view["rel_l1"].sel(site=site).values.ravel() for site in ("modulated", "prediction"))
    panels[1].plot(x, y, "o", color="grey", alpha=0.4, markeredgewidth=0)
    if view["coefficient"].notnull().all() and np.isfinite(x).any():
        grid = np.linspace(np.nanmin(x), np.nanmax(x), 200)
        curve = np.polynomial.polynomial.polyval(grid, view["coefficient"].values)
        panels[1].plot(grid, curve, color="black")
        panels[1].set_title(f"polynomial of degree {len(view.power) - 1}, R² = {view.r_squared.item():.2f}")
    panels[1].set(xlabel="relative L1 change of the modulated input", ylabel="of the model output", ylim=_room(y))
    return _captioned(figure, view, f"{_spread(view)}; right: a point for each prompt, branch and t")


@matplotlib.rc_context(STYLE)
def delta_dit(view: xr.Dataset, title: str) -> Figure:
    """Relative change and cosine distance of the offsets of front, rear and all blocks, over the steps."""
    figure, panels = _panels(2, title, "Delta-DiT (arXiv 2406.01125), what Δ-Cache reuses", legend=True)
    relative, cosine = (view[name].mean("branch", skipna=False) for name in ("rel_l1", "cosine"))
    _lines(panels[0], relative, "group", view["rel_l1_se"], GROUPS)
    _lines(panels[1], cosine, "group", view["cosine_se"], GROUPS)
    panels[0].set(xlabel="transition t → t+1", ylabel="mean |D[t+1] − D[t]| / mean |D[t]|")
    _log_if_positive(panels[0], relative)
    panels[1].set(xlabel="transition t → t+1", ylabel="cos(D[t], D[t+1])")
    _legend(figure, panels[0])
    return _captioned(figure, view, _spread(view))


@matplotlib.rc_context(STYLE)
def ditfastattn(view: xr.Dataset, title: str) -> Figure:
    """Cosines of all pairs of steps at three depths; and of the guidance halves, layers by steps."""
    steps = view["step_cosine"].mean("prompt", skipna=False)
    layers = np.unique(np.round(np.array([5, 15, 25]) / 27 * (steps.sizes["layer"] - 1)).astype(int))
    guided = "half_cosine" in view
    number = len(layers) + guided
    figure, panels = _panels(number, title, "DiTFastAttn (arXiv 2406.08552), similarity of attention outputs")
    norm = Normalize(min(float(steps.isel(layer=layers).min(skipna=True)), 0.99), 1)
    for panel, layer in zip(panels, layers):
        _image(panel, steps.isel(layer=layer), norm)
        one = steps.isel(layer=layer)
        panel.set(title=f"layer {one.layer.item()} · {one.layer_type.item()}", xlabel="step t", aspect="equal")
    panels[0].set_ylabel("step s")
    figure.colorbar(panels[0].images[0], ax=list(panels[: len(layers)]), label="cos(A[s], A[t])", location="bottom")
    if guided:
        between = view["half_cosine"].mean("prompt", skipna=False)
        image = _image(panels[-1], between, Normalize(min(float(between.min(skipna=True)), 0.99), 1))
        rows = range(0, between.sizes["layer"], -(-between.sizes["layer"] // 10))
        panels[-1].set(title="conditional and unconditional", xlabel="step t", ylabel="layer", aspect="auto")
        panels[-1].set_yticks(rows, between.layer.values[rows])
        figure.colorbar(image, ax=panels[-1], label="cos(A_cond, A_uncond)", location="bottom")
    return _captioned(figure, view, _mean(view), bars=False)


@matplotlib.rc_context(STYLE)
def stale_kv(view: xr.Dataset, title: str) -> Figure:
    """Change of K and of V, layers by transitions; and its mean over layers, with thresholds and what they suggest."""
    figure, panels = _panels(3, title, "PipeFusion (arXiv 2405.14430), K and V one step stale", legend=True)
    layers = view["rel_l1"].mean("prompt", skipna=False)
    norm = _log_norm(layers)
    for panel, kind in zip(panels, view.kind.values):
        image = _image(panel, layers.sel(kind=kind).transpose("layer", "transition"), norm)
        panel.set(title=kind.upper(), xlabel="transition t → t+1", aspect="auto")
        rows = range(0, view.sizes["layer"], -(-view.sizes["layer"] // 10))
        panel.set_yticks(rows, view.layer.values[rows])
    panels[0].set_ylabel("layer")
    bar = figure.colorbar(
        image, ax=panels[:2], label="mean |x[t+1] − x[t]| / mean |x[t]|", location="bottom", aspect=45
    )
    if isinstance(norm, LogNorm):
        log_ticks(bar.ax.xaxis)
    _lines(panels[2], view["joint"], "kind", view["joint_se"], {kind: kind.upper() for kind in view.kind.values})
    for threshold in view.threshold.values:
        panels[2].axhline(threshold, color="grey", linewidth=0.8, linestyle="--", zorder=0)
    panels[2].set(title="mean over layers", xlabel="transition t → t+1")
    _log_if_positive(panels[2], view["joint"])
    _legend(figure, panels[2])
    told = "; ".join(_suggested(view, float(threshold)) for threshold in view.threshold.values)
    return _captioned(figure, view, f"{_spread(view)}; {told}")


def _log_norm(values: xr.DataArray) -> Normalize:
    """A log scale of colours over all that is above 0; any scale where nothing is."""
    there = values.values[values.values > 0]
    if not there.size:
        return Normalize(0, 1)
    low, high = there.min(), there.max()
    return LogNorm(low, high) if low < high else LogNorm(low / 2, high * 2)


def _suggested(view: xr.Dataset, threshold: float) -> str:
    """`warm-up for less than 0.1: K 3 [3, 4], V 4 [4, 4] steps (as much again late in K 1 [1, 1], V 2 [2, 2])`."""
    at = view.sel(threshold=threshold)
    warm, late = (
        ", ".join(f"{kind.upper()} {_counted(at.sel(kind=kind), name)}" for kind in view.kind.values)
        for name in ("warm_up", "later")
    )
    return f"warm-up for less than {threshold:g}: {warm} steps (as much again late in {late})"


def _counted(at: xr.Dataset, name: str) -> str:
    """A number of steps with its interval."""
    number, low, high = (float(at[key]) for key in (name, f"{name}_low", f"{name}_high"))
    if not np.isfinite(number):
        return "?"
    return f"{number:.0f}" + (f" [{low:.0f}, {high:.0f}]" if np.isfinite(low) else "")


def _panels(
    count: int, title: str, paper: str, sharey: bool = False, legend: bool = False
) -> tuple[Figure, Sequence[Axes]]:
    """A figure of panels in one row, headed by the trace and what it is drawn after."""
    figure = Figure((0.8 + 2.6 * max(count, 2) + LEGEND * legend, 3.4), layout="constrained")
    panels = list(figure.subplots(1, count, squeeze=False, sharey=sharey)[0])
    width = int(12 * figure.get_figwidth())
    figure.suptitle(f"{textwrap.fill(title, width)}\n{textwrap.fill(f'after {paper}', width)}")
    return figure, panels


def _legend(figure: Figure, panel: Axes) -> None:
    """Names of the lines of a panel, beside all panels."""
    figure.legend(*panel.get_legend_handles_labels(), loc="outside right center", frameon=False)


def _captioned(figure: Figure, view: xr.Dataset, averaged: str, bars: bool = True) -> Figure:
    """Say below what was averaged, what was computed, where the paper differs, and how good samples are."""
    source = "all from samples" if view.attrs["source"] == "sample" else ""
    parts = averaged, view.attrs["notes"], source, _uncertainty(view, bars), view.attrs.get("deviation", "")
    told = "; ".join(part for part in parts if part)
    figure.supxlabel(textwrap.fill(told, int(18 * figure.get_figwidth())), fontsize=7)
    return figure


def _uncertainty(view: xr.Dataset, bars: bool) -> str:
    """What the standard errors of sampled values are, if there are any."""
    names = [name for name in view.data_vars if f"{name}_se" in view and not view[f"{name}_exact"].all()]
    if bars:
        return "bars: ± one standard error from sampled positions" if names else ""
    largest = {name: float(view[f"{name}_se"].max()) for name in names}
    told = ", ".join(f"{name.replace('_', ' ')} {value:.1g}" for name, value in largest.items() if np.isfinite(value))
    return f"largest standard error from sampled positions: {told}" if told else ""


def _lines(
    panel: Axes, values: xr.DataArray, axis: str, errors: xr.DataArray, labels: dict[str, str] | None = None
) -> None:
    """A line for each place along an axis, mean over prompts with its 5th to 95th percentile and standard error."""
    low, high = values.quantile([0.05, 0.95], "prompt", skipna=False)
    mean = values.mean("prompt", skipna=False)
    for place, name in enumerate(values[axis].values.tolist()):
        at = {axis: name}
        label = (labels or {}).get(name, name)
        _line(panel, mean.sel(at), (low.sel(at), high.sel(at)), place, label, errors.sel(at))


def _line(
    panel: Axes,
    mean: xr.DataArray,
    band: tuple[xr.DataArray, xr.DataArray],
    place: int,
    label: str = "",
    error: xr.DataArray | None = None,
) -> None:
    """A line over its only axis, the band and the error bars around it, and whole numbers of steps below."""
    x, colour = mean[mean.dims[0]], PALETTE[place % len(PALETTE)]
    panel.plot(x, mean, "-", marker=MARKERS[place % len(MARKERS)], color=colour, label=label)
    panel.fill_between(x, *band, color=colour, alpha=0.2, linewidth=0)
    if error is not None:
        _bars(panel, x, mean, error)
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))


def _bars(panel: Axes, x: Sequence[int] | xr.DataArray, mean: xr.DataArray, error: xr.DataArray) -> None:
    """Bars of one standard error, where something has one."""
    if (error > 0).any():
        there = error.sel({axis: mean[axis] for axis in mean.dims})
        panel.errorbar(x, mean, there, fmt="none", ecolor="black", elinewidth=0.7, capsize=1.5, capthick=0.7, zorder=3)


def _image(panel: Axes, values: xr.DataArray, norm: Normalize) -> AxesImage:
    """Rows by steps, the first row at the top; grey where there is no value."""
    panel.set(facecolor="lightgrey")
    panel.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    panel.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    return panel.imshow(values, "viridis", norm, interpolation="nearest")


def _log_if_positive(panel: Axes, values: xr.DataArray) -> None:
    """A log axis, unless something is 0 or nothing is there."""
    if values.notnull().any() and (values.where(values.notnull(), 1) > 0).all():
        panel.set_yscale("log")
        log_ticks(panel.yaxis)


def _room(values: np.ndarray) -> tuple[float, float] | None:
    """Limits that hold the points, so that a polynomial which runs away does not squeeze them."""
    there = values[np.isfinite(values)]
    if not there.size:
        return None
    margin = 0.08 * (np.ptp(there) or abs(there[0]) or 1)
    return float(there.min() - margin), float(there.max() + margin)


def _mean(view: xr.Dataset) -> str:
    prompts = view.sizes["prompt"]
    return f"mean of {prompts} prompts" if prompts > 1 else "one prompt"


def _spread(view: xr.Dataset, halved: bool = True) -> str:
    prompts = view.sizes["prompt"]
    told = SPREAD.format(prompts) if prompts > 1 else "one prompt"
    return told + (", mean over guidance halves" if view.sizes.get("branch", 1) > 1 and halved else "")
