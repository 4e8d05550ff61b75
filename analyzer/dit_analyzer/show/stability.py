"""How alike curves are, between models and within one, as a page of Markdown and as records."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from dit_formats.console import harmless

from dit_analyzer.measures.axes import AXES
from dit_analyzer.measures.stability import LITTLE_CONTRAST
from dit_analyzer.show.facts import table
from dit_analyzer.show.papertables import known

NAMES = {"step": "relative step", "noise": "noise level"}
HEAD = (
    "# Stability: whether curves have the same shape",
    "S is 1 for curves of equal shape over layers and steps, about 0 for unrelated, -1 for opposite ones. D is by what "
    "factor shapes differ, the noise of prompts taken off; level is the factor by which the second is above the first, "
    "which is no part of S and D. In brackets: 95 % over prompts, leaving one out. Equivalent: the interval of D ends "
    "below ×1.16. Different: flipping signs of the prompts' differences gives p below 0.05. Undecided: neither.",
    "Curves are set against each other at the same relative step, and as speed, L1 / |d sigma|, at the same noise "
    "level; layers at the same relative depth. Where schedulers differ the noise level is what to look at. Without a p "
    "the traces have no prompt in common: the noise of each is taken off on its own, and different means that the "
    "interval of D excludes ×1.",
)
BETWEEN = (
    "## Between models",
    "The first run of each model against that of every other. The paper's first finding is that these differ; a pair "
    "that is equivalent speaks against it, of these two models.",
)
WITHIN = {
    "steps": "## Step counts\n\nEach model's first run against its runs with other step counts.",
    "scheduler": "## Schedulers\n\nEach model's first run against its runs with another scheduler. Where max |d sigma| "
    f"is below {LITTLE_CONTRAST}, the two hardly differ in what they ask of the model, and equal curves say little.",
    "steps+scheduler": "## Step counts and schedulers\n\nEach model's first run against its runs that differ in both.",
}
NOTHING = {
    "between": "No two models to compare.",
    "steps": "No model here was traced with another step count.",
    "scheduler": "No model here was traced with another scheduler.",
    "steps+scheduler": "No model here was traced with both changed.",
}


@dataclass(frozen=True)
class Compared:
    """Two traces by name: `stability` on each axis, or why it cannot be.

    Args:
        set_apart: `between` models, or within one by `steps` or `scheduler`.
    """

    set_apart: str
    one: str
    other: str
    found: dict[str, xr.Dataset | str]

    @property
    def headline(self) -> str:
        """The axis to look at first: the noise level where schedulers differ, if it is known."""
        noise = "scheduler" in self.set_apart and isinstance(self.found["noise"], xr.Dataset)
        return "noise" if noise else "step"


def page(compared: Sequence[Compared]) -> str:
    parts = [*HEAD, *BETWEEN, *_section(compared, "between")]
    for role, head in WITHIN.items():
        parts += [head, *_section(compared, role)]
    return "\n\n".join(parts) + "\n"


def records(compared: Sequence[Compared]) -> Iterator[dict[str, Any]]:
    """A record for each pair, axis and kind; where it could not be, one that says why."""
    names = ("s", "s_low", "s_high", "d", "d_low", "d_high", "level", "p_value", "verdict", "cells_left_out")
    for pair in compared:
        for axis, found in pair.found.items():
            head = {"set_apart": pair.set_apart, "one": pair.one, "other": pair.other, "axis": axis}
            head["headline"] = axis == pair.headline
            if isinstance(found, str):
                of_pair = dict.fromkeys(("prompts", "max_dsigma", "kind", *names))
                yield head | of_pair | {"note": found}
                continue
            for kind in found.kind.values.tolist():
                row = found.sel(kind=kind)
                common = {"prompts": found["prompts"].item(), "max_dsigma": known(found["max_dsigma"].item())}
                yield head | common | {"kind": kind} | {name: known(row[name].item()) for name in names} | {"note": ""}


def _section(compared: Sequence[Compared], set_apart: str) -> Iterator[str]:
    pairs = [pair for pair in compared if pair.set_apart == set_apart]
    if not pairs:
        yield NOTHING[set_apart]
        return
    first = pairs[0].headline
    for axis in sorted(AXES, key=lambda name: name != first):
        rows = [["", "", "kind", "S", "shapes differ by", "level", "p", "verdict", "max abs. d sigma", "prompts"]]
        for pair in pairs:
            found = pair.found[axis]
            if isinstance(found, xr.Dataset):
                rows += [_row(pair, found, kind) for kind in found.kind.values.tolist()]
        if len(rows) > 1:
            yield f"At the same {NAMES[axis]}{', to look at first' if axis == first else ''}:"
            yield table(rows)
        told = [(pair, pair.found[axis]) for pair in pairs]
        reasons = [(f"{pair.one} and {pair.other}", why) for pair, why in told if isinstance(why, str)]
        if reasons:
            yield f"Not compared by {NAMES[axis]}:"
            yield "\n".join(f"- {harmless(f'{who}: {why}')}" for who, why in reasons)


def _row(pair: Compared, found: xr.Dataset, kind: str) -> list[str]:
    row = {name: values.item() for name, values in found.sel(kind=kind).data_vars.items()}
    apart, prompts = found["max_dsigma"].item(), str(found["prompts"].item())
    shown = "–" if np.isnan(apart) else f"{apart:.3f}"
    return [harmless(pair.one), harmless(pair.other), kind.upper(), *cells(row), shown, prompts]


def cells(row: dict[str, Any]) -> list[str]:
    """S, D as a factor, level, p and verdict, in few digits."""
    if np.isnan(row["s"]):
        return ["–", "–", "–", "–", "no common cell"]
    s = f"{row['s']:.2f}" + between(row["s_low"], row["s_high"])
    d = f"×{np.exp(row['d']):.2f}" + between(np.exp(row["d_low"]), np.exp(row["d_high"]))
    p = row["p_value"]
    shown = "–" if np.isnan(p) else f"{p:.3f}" if p >= 0.001 else "<0.001"
    return [s, d, f"×{row['level']:.2f}", shown, row["verdict"]]


def between(low: float, high: float) -> str:
    """` (0.51 to 0.72)`, or nothing."""
    return "" if np.isnan(low) else f" ({low:.2f} to {high:.2f})"
