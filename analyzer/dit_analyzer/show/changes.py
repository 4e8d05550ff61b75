"""Where curves break, and what they do in words: a page of Markdown, and a picture of the probabilities."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import matplotlib
import numpy as np
import xarray as xr
from dit_formats.console import harmless, plural
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dit_analyzer.measures.changes import declared, dips
from dit_analyzer.show.facts import table
from dit_analyzer.show.figures import COLOURS, SMALL, STEPS, STYLE, _in_lines, _step_ticks

HEAD = (
    "# Where the curves break",
    "Change points of the mean curve over prompts: exact Bayesian segmentation of log L1 into straight lines, against "
    "a smooth alternative. One is declared when a change at all has a probability of 0.5 or more, and so has the place "
    "with the two beside it. A transition counts up from 0, a step of the paper counts down; sigma is the noise level "
    "of the transition's first step; the factor is the jump of L1 from the old line to the new; the interval holds "
    "95 % of the posterior.",
    "The words say what the mean over layers does; turns by less than a factor 1.25 are left out. Prompts agree in the "
    "share of resampled sets of prompts whose mean gets the same word. A dash: too few transitions have a value.",
)

NONE = "–"
MOST_MOVES = 4


def page(names: Sequence[str], changes: Sequence[xr.Dataset], words: Sequence[xr.Dataset]) -> str:
    """What `changes` and `words` found in each trace."""
    parts = [*HEAD]
    for name, change, word in zip(names, changes, words, strict=True):
        parts += [f"## {harmless(name)}", *_breaks(change), *_dips(change), _words(word)]
    return "\n\n".join(parts) + "\n"


def records(name: str, changes: xr.Dataset) -> Iterator[dict[str, object]]:
    """Every declared change, of all layers and of each, for programs."""
    for one in declared(changes):
        yield {"trace": name} | one


def _breaks(ds: xr.Dataset) -> Iterator[str]:
    """All layers of a kind together."""
    layers = ds.sizes["layer"]
    rows = [["kind", "transition", "step of the paper", "sigma", "interval", "factor", "posterior", "layers alone"]]
    for one in declared(ds):
        if one["layer"] == "all":
            interval = f"{one['low']:.0f} to {one['high']:.0f}"
            sigma = NONE if np.isnan(one["sigma"]) else f"{one['sigma']:.3g}"
            place = [one["kind"].upper(), str(one["transition"]), str(one["paper_step"]), sigma, interval]
            rows.append([*place, f"x{one['jump']:.2f}", f"{one['posterior']:.2f}", f"{one['layers_near']} of {layers}"])
    if len(rows) > 1:
        yield table(rows)
    for kind in ds.kind.values.tolist():
        of = ds.sel(kind=kind)
        if of["joint_any"].isnull():
            yield f"{kind.upper()}: fewer than six transitions with a value, too few for a change."
        elif of["joint_posterior"].isnull().all():
            single = int(of["posterior"].notnull().any("transition").sum())
            alone = f"; alone, {single} of {plural(layers, 'layer')} have one" if single else ""
            probability = f"probability of any {of['joint_any'].item():.2f}"
            yield f"{kind.upper()}: no change common to the layers ({probability}){alone}."


def _dips(ds: xr.Dataset) -> Iterator[str]:
    lines = []
    for one in dips(ds):
        what = "dip" if one["factor"] < 1 else "spike"
        where = f"transition {one['transition']} (step {one['paper_step']} of the paper)"
        layers = f"{one['layers']} of {plural(ds.sizes['layer'], 'layer')}"
        length = plural(one["length"], "transition")
        lines.append(
            f"- {one['kind'].upper()}: isolated {what} of {length} at {where}, x{one['factor']:.2f}, in {layers}"
        )
    if lines:
        yield "\n".join(lines)


def _words(ds: xr.Dataset) -> str:
    rows = [["kind", "word", "moves", "prompts agree", "layers"]]
    for kind in ds.kind.values.tolist():
        of = ds.sel(kind=kind)
        agreement = of["mean_agreement"].item()
        counted = Counter(word or "no word" for word in of["word"].values.tolist())
        layers = ", ".join(f"{number} {word}" for word, number in counted.most_common())
        agree = NONE if np.isnan(agreement) else f"{agreement:.0%}"
        rows.append(
            [kind.upper(), of["mean_word"].item() or NONE, _short(of["mean_phrase"].item()) or NONE, agree, layers]
        )
    return table(rows)


def _short(phrase: str) -> str:
    """The first moves, and how many follow."""
    moves = phrase.split(", ")
    more = len(moves) - MOST_MOVES
    return ", ".join(moves[:MOST_MOVES]) + (f", and {plural(more, 'further move')}" if more > 0 else "")


def probabilities(ds: xr.Dataset, title: str) -> Figure:
    """The probability that a new segment begins, an image of layers by steps for each kind; above, of all together.

    Declared changes of all layers are marked and numbered as the paper counts. Grey: the transition took no part.
    """
    kinds = ds.kind.values.tolist()
    layers = ds.sizes["layer"]
    x = ds["paper_step"].values
    with matplotlib.rc_context(STYLE):
        height = max(1.0, 0.1 * layers)
        figure = Figure((1.4 + 2.1 * max(len(kinds), 3), 1.9 + height), layout="constrained")
        grid = figure.subplots(2, len(kinds), squeeze=False, sharex=True, height_ratios=(0.7, height))
        for (above, below), kind in zip(grid.T, kinds, strict=True):
            _strip(above, ds.sel(kind=kind), x, kind)
            edges = (x.max() + 0.5, x.min() - 0.5, layers - 0.5, -0.5)
            values = np.ma.masked_invalid(ds["probability"].sel(kind=kind).transpose("layer", "transition"))
            below.set_facecolor("lightgrey")
            image = below.imshow(values, "Blues", vmin=0, vmax=1, aspect="auto", interpolation="nearest", extent=edges)
            rows = range(0, layers, -(-layers // 12))
            below.set_yticks(rows, ds.layer.values[rows])
            _step_ticks(below, ds)
        for panel in grid[:, 1:].flat:
            panel.tick_params(labelleft=False)
        grid[0, 0].set_ylabel("all layers")
        grid[1, 0].set_ylabel("layer")
        figure.colorbar(image, ax=grid, pad=0.02, label="probability of a change")
        figure.suptitle(_in_lines(title, figure))
        figure.supxlabel(_in_lines(f"{STEPS}; change points of the mean over prompts", figure, SMALL))
    return figure


def _strip(panel: Axes, ds: xr.Dataset, x: np.ndarray, kind: str) -> None:
    panel.bar(x, np.nan_to_num(ds["joint_probability"]), width=0.9, color=COLOURS.get(kind, "black"))
    for place in np.flatnonzero(ds["joint_posterior"].notnull()):
        panel.text(x[place], 1.06, str(x[place]), ha="center", va="bottom")
    panel.set(ylim=(0, 1.4), yticks=(0, 1), title=kind.upper())
    panel.spines[["top", "right"]].set_visible(False)
