"""Which traces of a study are set against each other, within a model and between models, and what that gives."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import xarray as xr

from dit_analyzer.measures.depth import roughness
from dit_analyzer.measures.pairing import ComparisonError, share_prompts
from dit_analyzer.measures.stability import stability
from dit_analyzer.measures.unpaired import unpaired
from dit_analyzer.members import Member
from dit_analyzer.study import Study

Pairs = list[tuple[Member, Member]]


def within(members: Sequence[Member], role: str) -> Pairs:
    """Each model's first run, and each other run of it that differs in this alone: `steps` or `scheduler`."""
    return [
        (first, other)
        for first in members
        for other in members
        if first.role == "default" and other.role == role and other.model == first.model
    ]


def between(members: Sequence[Member]) -> Pairs:
    """Every two of the first runs of different models."""
    firsts = [one for one in members if one.role == "default"]
    return [(one, other) for one, other in combinations(firsts, 2) if one.model != other.model]


def stability_of(study: Study, one: Member, other: Member, axis: str) -> xr.Dataset | str:
    """How alike the curves of two traces are, with their prompts paired where they have some in common; or why not."""
    measure = stability if share_prompts(*study.views((one, other))) else unpaired
    try:
        return study.measured(measure, one, other, axis=axis)
    except ComparisonError as error:
        return str(error)


def roughness_of(study: Study, one: Member, other: Member) -> xr.Dataset | str:
    """`roughness` of two traces, or why there is none."""
    try:
        return study.measured(roughness, one, other)
    except ComparisonError as error:
        return str(error)
