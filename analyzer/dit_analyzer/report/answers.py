"""The four answers at the head of a report: a value in few words, and a line that says how sure it is."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from dit_formats.console import harmless

from dit_analyzer.measures.changes import ALL, points
from dit_analyzer.measures.regions import SHARE, Region
from dit_analyzer.plans.asked import SHARE as DEFAULT
from dit_analyzer.show.breaks import _none

Answer = dict[str, Any]


def change(found: xr.Dataset) -> Answer:
    """The change of all layers together that is surest, of A if it has one, and which kinds have others."""
    declared = [point for point in points(found) if point["layer"] == ALL]
    if not declared:
        chances = found["joint_any"].values[np.isfinite(found["joint_any"].values)]
        told = _none(chances.max() if chances.size else None)
        return _answer("Change point", "none declared", f"Of the kind where one is likeliest: {told}.")
    first = max(declared, key=lambda point: (point["kind"] == "a", point["posterior"]))
    steps = int(found.attrs["num_steps"])
    low, high = first["low"], first["high"]
    interval = f"between step {low} and {high + 1}" if low < high else f"at step {low} → {low + 1}"
    others = {point["kind"].upper() for point in declared} - {first["kind"].upper()}
    of = f", also of {', '.join(sorted(others))}" if others else ""
    rest = f" {len(declared) - 1} more declared{of}." if len(declared) > 1 else ""
    return _answer(
        "Change point",
        f"step {first['from_step']} → {first['to_step']} of {steps}",
        f"{first['kind'].upper()} of all layers together, L1 by ×{first['jump']:.2f}; 95 %: {interval}; "
        f"{first['layers']} of {first['of_layers']} layers. The paper counts it as {first['paper_step']}.{rest}",
    )


def effect(varied: xr.Dataset | str, parts: xr.Dataset | str) -> Answer:
    """How much prompts differ, and how much of it moves where the redundancy is."""
    if isinstance(varied, str):
        return _answer("Prompt effect", "not known", varied)
    told = [_percent(varied.sel(kind=kind), "cv") for kind in varied.kind.values.tolist()]
    kinds = [kind.upper() for kind in varied.kind.values.tolist()]
    intervals = "; ".join(f"{kind} {value}{ends}" for kind, (value, ends) in zip(kinds, told))
    shape = ""
    if isinstance(parts, xr.Dataset):
        shapes = [f"{kind} {_percent(parts.sel(kind=kind.lower()), 'cv_shape')[0]}" for kind in kinds]
        shape = f" Of this, shape, which moves where the redundancy is: {', '.join(shapes)}."
    prompts = varied.attrs["prompts"]
    value = "CV " + ", ".join(f"{kind} {value}" for kind, (value, _) in zip(kinds, told))
    return _answer("Prompt effect", value, f"Over {prompts} prompts, 95 %: {intervals}.{shape}")


def region(found: Region | None, view: xr.Dataset) -> Answer:
    """The layers and steps that change least."""
    if found is None:
        return _answer("Most redundant", "not known", "Too few layers and steps have a value.")
    first, last = (int(view.layer.values[place]) for place in found.layers)
    one, other = (int(view.transition.values[place]) for place in found.transitions)
    names = sorted({harmless(name) for name in view.layer_type.values[found.layers[0] : found.layers[1] + 1].tolist()})
    layers = f"layers {first} to {last}" if first != last else f"layer {first}"
    return _answer(
        "Most redundant",
        f"{layers}, steps {one} to {other + 1}",
        f"They change by {found.inside:.1%} a step, all by {found.overall:.1%} (relative L1, mean over prompts and "
        f"kinds; types {', '.join(names)}): the block of neighbouring layers and steps that changes least, of those "
        f"with {SHARE:.0%} of all cells.",
    )


def plan(planned: dict[str, Any] | str) -> Answer:
    """The plan that dit-analyze plan makes when nothing else is asked for."""
    if isinstance(planned, str):
        return _answer("Cache plan", "none", planned)
    told = planned["rows"][planned["default"]]
    value = f"compute {told['steps']} of {told['of']} steps" if told["verdict"] == "cache" else "do not cache"
    why = "" if told["verdict"] == "cache" else " Leaving out the cheapest step alone costs too much."
    return _answer("Cache plan", value, f"At {DEFAULT:.0%} computed, predicted error {told['error']}.{why}")


def _answer(title: str, value: str, detail: str) -> Answer:
    return {"title": title, "value": value, "detail": detail}


def _percent(of: xr.Dataset, name: str) -> tuple[str, str]:
    """`14.2%`, and ` (13.0 to 15.5)` or nothing."""
    value, low, high = (100 * of[f"{name}{end}"].item() for end in ("", "_low", "_high"))
    if np.isnan(value):
        return "–", ""
    return f"{value:.1f}%", "" if np.isnan(low) else f" ({low:.1f} to {high:.1f})"
