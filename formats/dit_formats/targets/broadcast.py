"""diffusers 0.42: Pyramid Attention Broadcast (PAB), several groups of attention layers in one JSON file.

Each group has one range and one window: within it, every `range`-th step is computed, counted from the first step of
the run; outside it every step is. The best of these patterns is taken for each row of the plan. Feed-forward networks
are always computed, and nothing is predicted. diffusers' windows are in timesteps, taken from a callback; the callback
here counts steps, so the windows are in steps. The names of layers are anchored, for diffusers searches them anywhere.
"""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from dit_formats.plan import STEPS, Plan, PlanError
from dit_formats.targets.exported import Export, Mask, layers_of, reuse_instead, share_lost, to_text, untried
from dit_formats.targets.mag_cache import head
from dit_formats.targets.traits import component, refuse_two_calls, traits_of

NAME, FILE = "diffusers-pab", "plan.diffusers-pab.json"
ENGINE = "pyramid_attention_broadcast"

Pattern = tuple[int, int, int]
"""Range, and the first step of the window and the one after its last."""


def write(plan: Plan) -> Export:
    """The plan as groups of PAB.

    Raises:
        PlanError: PAB cannot run it; the message says why and what can.
    """
    network = component(plan, NAME)
    refuse_two_calls(
        plan, NAME, "PAB gives one branch the attention of the other",
        "export to cache-dit or diffusers, or run the plan with dit-trace replay",
    )  # fmt: skip
    found = {row.compute: nearest(np.array(row.compute)) for row in plan.rows}
    groups = _groups(plan, found)
    if not groups:
        raise PlanError(
            f"{NAME} computes feed-forward networks in every step, and this plan leaves out nothing else; export it to "
            "smoothcache or diffusers-taylorseer"
        )
    computed = np.array(
        [
            computes(found[plan.of_layer(layer)] if plan.types[layer] != "ff" else None, plan.request.num_steps)
            for layer in layers_of(plan)
        ]
    )
    traits = traits_of(plan)
    lost = (
        *_feed_forward(plan),
        *share_lost(plan, computed, NAME),
        *reuse_instead(plan, NAME),
        *_reused(plan),
        *untried(plan, traits.tried, NAME),
    )
    text = to_text(head(ENGINE, plan) | {"groups": groups})
    snippet = _snippet(network, plan.request.num_steps)
    return Export(NAME, FILE, text, layers_of(plan), computed, lost, snippet, traits.tried)


def computes(pattern: Pattern | None, steps: int) -> Mask:
    """Steps that a pattern computes, (step); all without one.

    Example:
        >>> computes((2, 1, 5), 6).astype(int).tolist()
        [1, 0, 1, 0, 1, 1]
    """
    index = np.arange(steps)
    if pattern is None:
        return np.full(steps, True)
    every, first, end = pattern
    return (index % every == 0) | (index < first) | (index >= end)


def nearest(asked: Mask) -> Pattern | None:
    """The pattern that differs from the asked steps in the fewest, and of those the one that computes most; None where
    computing all does not differ in more.

    For a range, a step within the window adds what it differs in inside less what it would outside; the best window is
    the run of steps whose sum is least.
    """
    best, least = None, (int((~asked).sum()), 0)
    for every in range(2, len(asked) + 1):
        inside = np.arange(len(asked)) % every == 0
        gain = np.where(inside == asked, 0, 1) - ~asked
        first, end = _least_run(gain)
        mask = computes((every, first, end), len(asked))
        score = int((mask != asked).sum()), -int(mask.sum()) + len(asked)
        if end > first and score < least:
            best, least = (every, first, end), score
    return best


def _least_run(gain: NDArray[np.int64]) -> tuple[int, int]:
    """First step and end of the run with the least sum, the shortest of equals; empty where no sum is negative."""
    best, run, first, current = (0, 0), 0, 0, 0
    for step, value in enumerate(gain):
        if current >= 0:
            current, first = 0, step
        current += int(value)
        if current < run:
            run, best = current, (first, step + 1)
    return best


def _groups(plan: Plan, found: dict[tuple[bool, ...], Pattern | None]) -> list[dict[str, object]]:
    """A group for each pattern: its range, window in steps and in timesteps, and the layers' names as expressions."""
    members: dict[Pattern, list[str]] = {}
    for layer in layers_of(plan):
        pattern = found[plan.of_layer(layer)]
        if pattern is not None and plan.types[layer] != "ff":
            members.setdefault(pattern, []).append(f"^{re.escape(layer.partition('.')[2])}$")
    times = plan.request.timesteps
    return [
        {"range": every, "steps": [first, end - 1], "timesteps": [times[first], times[end - 1]], "identifiers": names}
        for (every, first, end), names in members.items()
    ]


def _feed_forward(plan: Plan) -> tuple[str, ...]:
    left = [layer for layer in layers_of(plan) if plan.types[layer] == "ff" and not all(plan.of_layer(layer))]
    return (f"{NAME} computes feed-forward networks in every step: {len(left)} of the plan",) if left else ()


def _reused(plan: Plan) -> tuple[str, ...]:
    if plan.granularity != STEPS:
        return ()
    return (
        f"the plan keeps the network's prediction from step to step, {NAME} keeps the outputs of attention layers and "
        "computes the rest: the error may differ from the predicted one, and more is computed",
    )


def _snippet(network: str, steps: int) -> str:
    return f"""\
import itertools
import json

from diffusers import PyramidAttentionBroadcastConfig
from diffusers.hooks import HookRegistry, apply_pyramid_attention_broadcast

calls, now = itertools.count(), [0]
registry = HookRegistry.check_if_exists_or_initialize(pipe.{network})


def count(*_):
    now[0] = next(calls) % {steps}
    if now[0] == 0:  # a new image: nothing is left of the last one
        registry.reset_stateful_hooks()


pipe.{network}.register_forward_pre_hook(count)
with open("{FILE}") as file:
    groups = json.load(file)["groups"]
for group in groups:
    window, names = (group["steps"][0] - 1, group["steps"][1] + 1), tuple(group["identifiers"])
    apply_pyramid_attention_broadcast(pipe.{network}, PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=group["range"],
        spatial_attention_timestep_skip_range=window,
        spatial_attention_block_identifiers=names,
        cross_attention_block_skip_range=group["range"],
        cross_attention_timestep_skip_range=window,
        cross_attention_block_identifiers=names,
        current_timestep_callback=lambda: now[0],
    ))
"""
