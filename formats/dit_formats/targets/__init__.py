"""Plans in the forms of other engines, one file for each; each says what its engine cannot express."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dit_formats.plan import Plan, PlanError
from dit_formats.targets import broadcast, cache_dit, mag_cache, sglang, smoothcache, taylorseer
from dit_formats.targets.export import Export, planned

__all__ = ["Export", "TARGETS", "Target", "export"]


@dataclass(frozen=True)
class Target:
    """A form of another engine.

    Args:
        ending: Of the file's name, after that of the plan.
        write: Gives the export of a plan, or raises PlanError.
        about: What it expresses, in a line.
    """

    name: str
    ending: str
    write: Callable[[Plan], Export]
    about: str


TARGETS = {
    target.name: target
    for target in (
        Target(cache_dit.NAME, "cache-dit.yaml", cache_dit.write, "cache-dit 1.5: whole steps"),
        Target(mag_cache.NAME, "diffusers.json", mag_cache.write, "diffusers 0.42, MagCache: whole steps"),
        Target(
            broadcast.NAME,
            "diffusers-pab.json",
            broadcast.write,
            "diffusers 0.42, Pyramid Attention Broadcast: a range and a window for each attention layer",
        ),
        Target(
            taylorseer.NAME,
            "diffusers-taylorseer.json",
            taylorseer.write,
            "diffusers 0.42, TaylorSeer: uniform intervals for each layer, reused or predicted",
        ),
        Target(smoothcache.NAME, "smoothcache.json", smoothcache.write, "dit-smoothcache 0.1: any steps of each layer"),
        Target(sglang.NAME, "sglang.json", sglang.write, "SGLang, DPCache: whole steps, predicted; not run here"),
    )
}


def export(plan: Plan, target: str) -> Export:
    """The plan in the form of a target.

    Raises:
        LookupError: There is no such target.
        PlanError: The target cannot run the plan; the message says why and what can.
    """
    if target not in TARGETS:
        raise LookupError(f"unknown target {target!r}; known are {', '.join(TARGETS)}")
    if planned(plan).all():
        raise PlanError("the plan computes every layer in every step: there is nothing to export")
    return TARGETS[target].write(plan)
