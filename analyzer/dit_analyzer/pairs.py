"""Which traces of a study are set against each other: within a model, and between models."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from dit_analyzer.members import Member

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
