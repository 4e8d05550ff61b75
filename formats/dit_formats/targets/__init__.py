"""Plans in the forms of other engines, one file for each; each says what its engine cannot express.

The table loads nothing heavy: a command that prints its help reads the names.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dit_formats.plan import Plan
    from dit_formats.targets.exported import Export

__all__ = ["TARGETS", "Target", "export"]


@dataclass(frozen=True)
class Target:
    """A form of another engine.

    Args:
        home: The file here that writes it.
        ending: Of the file's name, after that of the plan.
        about: What it expresses, in a line.
    """

    name: str
    home: str
    ending: str
    about: str

    def write(self, plan: Plan) -> Export:
        """The export of a plan, or PlanError."""
        return import_module(f"dit_formats.targets.{self.home}").write(plan)


TARGETS = {
    target.name: target
    for target in (
        Target("cache-dit", "cache_dit", "cache-dit.yaml", "cache-dit 1.5: whole steps"),
        Target("diffusers", "mag_cache", "diffusers.json", "diffusers 0.42, MagCache: whole steps"),
        Target(
            "diffusers-pab",
            "broadcast",
            "diffusers-pab.json",
            "diffusers 0.42, Pyramid Attention Broadcast: a range and a window for each attention layer",
        ),
        Target(
            "diffusers-taylorseer",
            "taylorseer",
            "diffusers-taylorseer.json",
            "diffusers 0.42, TaylorSeer: uniform intervals for each layer, reused or predicted",
        ),
        Target("smoothcache", "smoothcache", "smoothcache.json", "dit-smoothcache 0.1: any steps of each layer"),
        Target("sglang", "sglang", "sglang.json", "SGLang, DPCache: whole steps, predicted; not run here"),
    )
}


def export(plan: Plan, target: str) -> Export:
    """The plan in the form of a target.

    Raises:
        LookupError: There is no such target.
        PlanError: The target cannot run the plan; the message says why and what can.
    """
    from dit_formats.plan import GRID, PlanError

    if target not in TARGETS:
        raise LookupError(f"unknown target {target!r}; known are {', '.join(TARGETS)}")
    if plan.granularity == GRID:
        raise PlanError("a choice of noise levels leaves nothing to cache; dit-trace replay runs it")
    if plan.mask.all():
        raise PlanError("the plan computes every layer in every step: there is nothing to export")
    return TARGETS[target].write(plan)
