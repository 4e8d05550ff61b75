"""Traces set against each other, as rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from dit_formats.console import harmless

from dit_analyzer.measures.axes import AXES
from dit_analyzer.members import Member
from dit_analyzer.pairs import between, stability_of, within
from dit_analyzer.show.stability import NAMES, Compared, cells
from dit_analyzer.study import Study

HEAD = ["one", "other", "at the same", "kind", "S", "shapes differ by", "level", "p", "verdict"]


def compared(study: Study) -> dict[str, Any]:
    """Each model's first run against its others and those of other models; what has no pair then, against the first."""
    members = study.members
    pairs = [(role, pair) for role in ("steps", "scheduler", "steps+scheduler") for pair in within(members, role)]
    pairs += [("between", pair) for pair in between(members)]
    paired = {one.path for _, pair in pairs for one in pair}
    first = members[0]
    pairs += [("other", (first, one)) for one in members[1:] if one.path not in paired]
    rows, notes = [], []
    for role, (one, other) in pairs:
        _add(study, role, one, other, rows, notes)
    return {"head": HEAD, "rows": rows, "notes": notes}


def _add(study: Study, role: str, one: Member, other: Member, rows: list[list[str]], notes: list[str]) -> None:
    found = {axis: stability_of(study, one, other, axis) for axis in AXES}
    axis = Compared(role, one.name, other.name, found).headline
    ds = found[axis]
    names = [harmless(one.name), harmless(other.name)]
    if not isinstance(ds, xr.Dataset):
        notes.append(harmless(f"{one.name} and {other.name}, {NAMES[axis]}: {ds}"))
        return
    for kind in ds.kind.values.tolist():
        row = {name: values.item() for name, values in ds.sel(kind=kind).data_vars.items()}
        shown = cells(row)
        rows.append([*names, NAMES[axis], kind.upper(), *shown, *[""] * (5 - len(shown))])
    if np.isnan(ds["max_dsigma"].item()):
        notes.append(harmless(f"{one.name} and {other.name}: noise levels unknown"))
