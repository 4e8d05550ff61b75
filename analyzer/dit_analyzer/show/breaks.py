"""The page `changes.md`, and the same as records: where the curves of each trace break, dip, and what shape they have.

Every number is from `measures.changes` and `measures.words`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from dit_formats.console import harmless

from dit_analyzer.measures.changepoints import DECLARED
from dit_analyzer.measures.changes import ALL, dips, points
from dit_analyzer.members import Member
from dit_analyzer.show.facts import table
from dit_analyzer.show.papertables import DASH

COLUMNS = {
    **dict.fromkeys(("trace", "model", "what", "kind", "layer", "transition", "from_step", "to_step", "paper_step")),
    **dict.fromkeys(("sigma", "posterior", "low", "high", "jump", "slope", "length", "factor", "layers", "of_layers")),
    **dict.fromkeys(("any", "note")),
}
"""What a record of `changes.csv` has, empty where it does not apply."""
NONE = "no change declared"


@dataclass(frozen=True)
class Breaks:
    """What was found in a trace: `changes` and `words` of its view."""

    one: Member
    changes: xr.Dataset
    words: xr.Dataset


def page(found: Sequence[Breaks], source: str = "exact") -> str:
    """The whole page, in Markdown."""
    parts = [
        "# Where the curves break",
        _METHOD + (" Everything is from the sampled values alone." if source == "sample" else ""),
        _STEPS,
        *(f"{harmless(each.one.name)}: random weights, its numbers mean nothing." for each in _random(found)),
        "## Changes of all layers together",
        table([_HEADER, *(row for each in found for row in _changes(each))]),
        _CHANGES,
        *(line for each in found for line in _notes(each)),
        "## Dips and spikes",
        *_dips(found),
        "## Shapes",
        table([_SHAPES_HEADER, *(row for each in found for row in _words(each))]),
        "Agreement: share of curves over resampled prompts that get the same word, mean of these layers; it needs two "
        "prompts.",
    ]
    return "\n\n".join(parts) + "\n"


_METHOD = (
    "Exact Bayesian segmentation of the logarithm of mean L1 into lines, against a smooth curve (`change_points`, "
    f"`joint_change_points`). A change is declared if there is any with a probability of {DECLARED} or more, at a step "
    "that holds as much with the one before and the one after."
)
_STEPS = (
    "Steps count up as sampled: 10 → 11 is the change of L1 from that pair of steps on. The paper (arXiv 2411.13588) "
    "counts down, and 10 → 11 of 28 is its step 16. Sigma is that of the first step of the pair, as its scheduler has "
    "it. "
    "`changes-NAME.pdf` shows each trace layer by layer; `changes.csv` has the changes of single layers too, "
    "`shapes.csv` the word of each."
)
_CHANGES = (
    "Jump: factor of L1 beyond the line before. Slope: by how much that of log L1 changes, per step; where the jump is "
    "about 1, the curve bends. Interval: first steps of the pairs that hold 95 % of where the change is, given that it "
    "is. Layers: how many have a declared change of their own within one step."
)
_HEADER = ["trace", "kind", "step", "the paper's", "sigma", "jump", "slope", "interval", "posterior", "layers"]
_SHAPES_HEADER = ["trace", "kind", "layers", "word: how many (agreement)"]


def records(found: Sequence[Breaks]) -> list[dict[str, Any]]:
    """Of `changes.csv`: every declared change and dip, and for kinds whose layers have no common change that."""
    return [
        {**COLUMNS, "trace": each.one.name, "model": each.one.model, **record}
        for each in found
        for record in [*_declared(each), *({"what": "dip", **dip} for dip in dips(each.changes))]
    ]


def shape_records(found: Sequence[Breaks]) -> list[dict[str, Any]]:
    """Of `shapes.csv`: a word for each kind and layer."""
    return [
        {"trace": each.one.name, "model": each.one.model, "kind": kind, "layer": layer}
        | {name: _value(each.words[name][row, place]) for name in ("shape", "agreement", "phrase", "note")}
        for each in found
        for row, kind in enumerate(each.words.kind.values.tolist())
        for place, layer in enumerate(each.words.layer.values.tolist())
    ]


def _declared(each: Breaks) -> Iterator[dict[str, Any]]:
    told = points(each.changes)
    for kind in each.changes.kind.values.tolist():
        of_kind = each.changes.sel(kind=kind)
        chance, note = _value(of_kind["joint_any"]), of_kind["joint_note"].item()
        mine = [point for point in told if point["kind"] == kind]
        if not any(point["layer"] == ALL for point in mine):
            why = "; ".join(filter(None, ("" if chance is None else NONE, note)))
            yield {"what": "none", "kind": kind, "layer": ALL, "any": chance, "note": why}
        for point in mine:
            alone = point["layer"] != ALL
            about = {"any": _value(of_kind["any"].sel(layer=point["layer"])), "note": ""} if alone else {}
            yield {"what": "change", **point, "any": chance, "note": note} | about


def _changes(each: Breaks) -> Iterator[list[str]]:
    """Rows of the table of common changes."""
    for record in _declared(each):
        names = [harmless(each.one.name), record["kind"].upper()]
        if record["what"] == "none":
            yield [*names, _none(record["any"]), *[DASH] * 7]
        elif record["layer"] == ALL:
            yield [*names, *_change(record)]


def _change(record: dict[str, Any]) -> list[str]:
    low, high = record["low"], record["high"]
    return [
        f"{record['from_step']} → {record['to_step']}",
        str(record["paper_step"]),
        _sigma(record["sigma"]),
        f"×{record['jump']:.2f}",
        f"{record['slope']:+.2f}",
        f"{low} to {high}" if low < high else str(low),
        f"{record['posterior']:.2f}",
        f"{record['layers']} of {record['of_layers']}",
    ]


def _none(chance: float | None) -> str:
    """Why there is no change to tell of."""
    if chance is None:
        return "too few usable steps"
    if chance < DECLARED:
        return f"{NONE}, probability of any {chance:.2f}"
    return f"{NONE}: there is one with probability {chance:.2f}, but no place is likely enough"


def _notes(each: Breaks) -> Iterator[str]:
    for kind, note in zip(each.changes.kind.values.tolist(), each.changes["joint_note"].values.tolist()):
        if note:
            yield f"{harmless(each.one.name)}, {kind.upper()}: {note}."


def _dips(found: Sequence[Breaks]) -> Iterator[str]:
    """One or two steps off the course of those beside, by step."""
    rows = []
    for each in found:
        groups: dict[tuple[str, int, int], list[dict[str, Any]]] = {}
        for dip in dips(each.changes):
            groups.setdefault((dip["kind"], dip["transition"], dip["length"]), []).append(dip)
        rows += [_dip(each, alike) for alike in groups.values()]
    if not rows:
        yield "None: no curve leaves its course for one or two steps and comes back."
        return
    yield table([["trace", "kind", "step", "the paper's", "sigma", "pairs", "factor", "layers"], *rows])
    yield "Factor: L1 over what the steps beside let expect; above 1 it is a spike. Dips take no part in changes."


def _dip(each: Breaks, alike: Sequence[dict[str, Any]]) -> list[str]:
    first, factors = alike[0], [dip["factor"] for dip in alike]
    low, high = f"×{min(factors):.2f}", f"×{max(factors):.2f}"
    return [
        harmless(each.one.name),
        first["kind"].upper(),
        f"{first['from_step']} → {first['to_step']}",
        str(first["paper_step"]),
        _sigma(first["sigma"]),
        str(first["length"]),
        low if low == high else f"{low} to {high}",
        f"{len(alike)} of {each.changes.sizes['layer']}",
    ]


def _words(each: Breaks) -> Iterator[list[str]]:
    """Rows of the table of shapes, the most frequent word first."""
    for kind in each.words.kind.values.tolist():
        of_kind = each.words.sel(kind=kind)
        shape, agreement = of_kind["shape"].values, of_kind["agreement"].values
        counts = sorted(
            ((int(n), word) for n, word in zip(of_kind["layers"], of_kind.word.values.tolist()) if n), reverse=True
        )
        cells = [f"{word}: {count}{_agreement(agreement[shape == word])}" for count, word in counts]
        if without := int((shape == "").sum()):
            cells.append(f"none, too few usable steps: {without}")
        yield [harmless(each.one.name), kind.upper(), str(len(shape)), "; ".join(cells)]


def _agreement(values: np.ndarray) -> str:
    return "" if np.isnan(values).any() else f" ({values.mean():.0%})"


def _random(found: Sequence[Breaks]) -> list[Breaks]:
    return [each for each in found if each.one.has_random_weights]


def _sigma(value: float | None) -> str:
    return DASH if value is None or not np.isfinite(value) else f"{value:.3g}"


def _value(value: Any) -> Any:
    """A plain value, None where it is NaN."""
    plain = value.item()
    return None if plain != plain else plain
