"""What became of a plan in the form of another engine: the file, what will really be computed, and what was lost."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dit_formats.plan import LINEAR, STEPS, Plan, PlanError

Mask = NDArray[np.bool_]


EVEN = 1.05
"""Below this ratio of the largest to the smallest distance of levels, they are as good as even."""


@dataclass(frozen=True, eq=False)
class Export:
    """A plan in another engine's form.

    Args:
        target: Name of the engine's form, one of `TARGETS`.
        file: The name that `snippet` loads; whoever saves it under another name calls `loading`.
        text: Content of the file.
        layers: Names of the plan's layers, in the order of its rows.
        computed: Whether the engine will compute a layer, (layer, step).
        lost: What the engine cannot express and what that cost, a sentence each.
        snippet: Python that puts the file to work on `pipe`.
        ran_here: Whether the file was run by the real engine with a network of this class.
    """

    target: str
    file: str
    text: str
    layers: tuple[str, ...]
    computed: Mask
    lost: tuple[str, ...]
    snippet: str
    ran_here: bool

    @property
    def computed_share(self) -> float:
        """Share of the evaluations of layers that the engine computes."""
        return float(self.computed.mean())

    def loading(self, file: str) -> str:
        """The snippet for a file of this name."""
        return self.snippet.replace(f'"{self.file}"', json.dumps(file))


def layers_of(plan: Plan) -> tuple[str, ...]:
    """Names of the layers, in the order of the rows."""
    return tuple(layer for row in plan.rows for layer in row.layers)


def planned(plan: Plan) -> Mask:
    """Whether the plan computes a layer, (layer, step)."""
    return np.array([row.compute for row in plan.rows for _ in row.layers])


def percent(share: float) -> str:
    """`41.7%`, and what is all or nothing without a decimal."""
    return f"{share:.0%}" if share in (0, 1) else f"{share:.1%}"


def share_lost(plan: Plan, computed: Mask, target: str) -> tuple[str, ...]:
    """How much more or less the target computes; nothing where it is the plan cell by cell."""
    asked = planned(plan)
    if (asked == computed).all():
        return ()
    more, fewer = int((computed & ~asked).sum()), int((asked & ~computed).sum())
    parts = [f"{count} {what}" for count, what in ((more, "more"), (fewer, "fewer")) if count]
    return (
        f"the plan computes {percent(asked.mean())} of the evaluations of its layers, {target} "
        f"{percent(computed.mean())}: of {asked.size}, {' and '.join(parts)} than planned",
    )


def reuse_instead(plan: Plan, target: str) -> tuple[str, ...]:
    """What is lost of linear prediction where a target can only reuse."""
    if plan.predictor != LINEAR:
        return ()
    return (f"the plan predicts linearly from the last two computed values, {target} reuses the last one",)


def steps_as_levels(plan: Plan, target: str) -> tuple[str, ...]:
    """What is lost of the plan's levels where a target predicts along the index of the step."""
    gaps = np.diff(plan.levels)
    ratio = float(np.abs(gaps).max() / np.abs(gaps).min()) if len(gaps) > 1 else 1.0
    if ratio < EVEN:
        return ()
    return (
        f"the plan predicts along its levels, whose distances differ up to {ratio:.1f}-fold; {target} predicts along "
        "the index of the step, as if they were equal",
    )


def refuse_whole(plan: Plan, target: str) -> None:
    """Refuse for a target that skips whole steps a plan that leaves it none to skip."""
    if plan.steps_mask.all() and plan.granularity != STEPS:
        raise PlanError(
            f"{target} skips whole steps, and this plan computes some layer in every one; export it to smoothcache, or "
            "make a plan by steps"
        )


def untried(plan: Plan, tried: bool, target: str) -> tuple[str, ...]:
    """That nobody ran this export here."""
    if tried:
        return ()
    return (f"{target} was not run here with {plan.request.transformer}; dit-trace lint counts what it really skips",)


def to_text(content: dict[str, Any]) -> str:
    """JSON with a line for each entry, and lists of numbers in one."""
    text = json.dumps(content, indent=1, ensure_ascii=False)
    return (
        re.sub(
            r"\[[\s\d.,-]+\]", lambda found: re.sub(r"\s+", " ", found[0]).replace("[ ", "[").replace(" ]", "]"), text
        )
        + "\n"
    )
