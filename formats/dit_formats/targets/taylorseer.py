"""diffusers 0.42: TaylorSeer, groups of layers with the names that its identifiers must match in full.

A layer is computed in the steps before `disable_cache_before_step`, in those from `disable_cache_after_step` on, and
between them at a uniform interval that begins one step after the first of these; the best such pattern is taken for
each row of the plan. Between them its output is predicted along the index of the step, or reused with order 0. Its own
identifiers end in `attn` and match no `attn1`: without explicit ones it skips nothing in most networks.
"""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from dit_formats.plan import LINEAR, STEPS, Plan, PlanError
from dit_formats.targets.exported import Export, Mask, layers_of, share_lost, steps_as_levels, to_text, untried
from dit_formats.targets.mag_cache import head
from dit_formats.targets.traits import calls_twice, component, traits_of

NAME, FILE = "diffusers-taylorseer", "plan.diffusers-taylorseer.json"
ENGINE = "taylorseer"

Pattern = tuple[int, int, int]
"""Interval, and the steps before and from which all are computed."""


def write(plan: Plan) -> Export:
    """The plan as TaylorSeer's intervals.

    Raises:
        PlanError: TaylorSeer cannot run it; the message says why and what can.
    """
    network, traits = component(plan, NAME), traits_of(plan)
    if calls_twice(plan) and not traits.has_enable_cache:
        raise PlanError(f"{NAME} does not tell the guidance branches of {plan.request.transformer} apart")
    found = {row.compute: nearest(np.array(row.compute)) for row in plan.rows}
    groups = _groups(plan, found)
    steps = plan.request.num_steps
    computed = np.array([computes(found[plan.of_layer(layer)], steps) for layer in layers_of(plan)])
    lost = (
        *share_lost(plan, computed, NAME),
        *(steps_as_levels(plan, NAME) if plan.predictor == LINEAR else ()),
        *_reused(plan),
        *untried(plan, traits.tried, NAME),
    )
    text = to_text(head(ENGINE, plan) | {"dtype": plan.request.dtype, "groups": groups})
    snippet = _snippet(network)
    return Export(NAME, FILE, text, layers_of(plan), computed, lost, snippet, traits.tried)


def computes(pattern: Pattern | None, steps: int) -> Mask:
    """Steps that a pattern computes, (step); all without one.

    Example:
        >>> computes((3, 2, 9), 10).astype(int).tolist()
        [1, 1, 0, 1, 0, 0, 1, 0, 0, 1]
    """
    index = np.arange(steps)
    if pattern is None:
        return np.full(steps, True)
    interval, before, after = pattern
    return (index < before) | ((index - before - 1) % interval == 0) | (index >= after)


def nearest(asked: Mask) -> Pattern | None:
    """The pattern that differs from the asked steps in the fewest, and of those the one that computes most; None where
    computing all does not differ in more."""
    steps = len(asked)
    best, least = None, (int((~asked).sum()), 0)
    for interval in range(2, steps + 1):
        wrong, fewer = _by_bounds(asked, interval)
        for place in np.flatnonzero(wrong.ravel() == wrong.min(initial=steps)) if wrong.size else ():
            score = int(wrong.ravel()[place]), int(fewer.ravel()[place])
            if score < least:
                before, after = divmod(int(place), steps + 1)
                best, least = (interval, before + 1, after), score
    return best


def _by_bounds(asked: Mask, interval: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """In how many steps the patterns of an interval differ from the asked ones, and how many they leave out,
    (before, after): from 1, and from 0 to all steps."""
    steps = len(asked)
    index, before = np.arange(steps), np.arange(1, steps)[:, None]
    inside = (index < before) | ((index - before - 1) % interval == 0)
    rest = np.append(np.cumsum((~asked)[::-1])[::-1], 0)
    return _up_to(inside != asked) + rest, _up_to(~inside)


def _up_to(counted: Mask) -> NDArray[np.int64]:
    """How many are counted before each step, and before the end, (row, step)."""
    return np.concatenate([np.zeros((len(counted), 1), int), np.cumsum(counted, 1)], 1)


def _groups(plan: Plan, found: dict[tuple[bool, ...], Pattern | None]) -> list[dict[str, object]]:
    """A group for each pattern: arguments of TaylorSeerCacheConfig."""
    members: dict[Pattern, list[str]] = {}
    for layer in layers_of(plan):
        pattern = found[plan.of_layer(layer)]
        if pattern is not None:
            members.setdefault(pattern, []).append(re.escape(layer.partition(".")[2]))
    return [
        {
            "cache_interval": interval,
            "disable_cache_before_step": before,
            "disable_cache_after_step": after,
            "max_order": int(plan.predictor == LINEAR),
            "cache_identifiers": names,
        }
        for (interval, before, after), names in members.items()
    ]


def _reused(plan: Plan) -> tuple[str, ...]:
    if plan.granularity != STEPS:
        return ()
    return (
        f"the plan leaves out the network as a whole, {NAME} its layers, and what is between them is computed: the "
        "error may differ from the predicted one, and more is computed",
    )


def _snippet(network: str) -> str:
    return f"""\
import json

import torch
from diffusers import TaylorSeerCacheConfig
from diffusers.hooks import apply_taylorseer_cache
from diffusers.hooks.hooks import CacheContext, HookRegistry, _set_cache_context

with open("{FILE}") as file:
    content = json.load(file)
for group in content["groups"]:
    config = TaylorSeerCacheConfig(**group, taylor_factors_dtype=getattr(torch, content["dtype"]))
    apply_taylorseer_cache(pipe.{network}, config)


def before_every_image():
    registry = HookRegistry.check_if_exists_or_initialize(pipe.{network})
    registry.reset_stateful_hooks()
    registry._child_registries_cache = None  # so that the names of guidance branches reach the new hooks
    _set_cache_context(pipe.{network}, CacheContext("inference"))  # a name where the pipeline gives none


before_every_image()
"""
