"""SmoothCache (package dit-smoothcache 0.1): a schedule for each part of a block, or for a part of one block.

It reuses the outputs of attention and feed-forward modules, layer by layer, so it takes a plan as it is; it predicts
nothing. A key is the name of the part (`attn1`) or of the part and the block (`attn1-3`), which does not say in which
list the block is: a network with several lists gets a schedule for each. Its counter of steps goes on from image to
image, so it is enabled for each.
"""

from __future__ import annotations

import numpy as np

from dit_formats.plan import STEPS, Plan, PlanError
from dit_formats.targets.exported import Export, layers_of, planned, reuse_instead, to_text, untried
from dit_formats.targets.traits import component, refuse_two_calls, traits_of

NAME, FILE = "smoothcache", "plan.smoothcache.json"

Schedule = dict[str, list[int]]


def write(plan: Plan) -> Export:
    """The plan as SmoothCache's schedule.

    Raises:
        PlanError: SmoothCache cannot run it; the message says why and what can.
    """
    network = component(plan, NAME)
    refuse_two_calls(
        plan, NAME, "SmoothCache counts every call as a step and gives one branch what it kept of the other",
        "export to cache-dit or diffusers, or run the plan with dit-trace replay",
    )  # fmt: skip
    lists = _lists(plan)
    tried = traits_of(plan).tried
    lost = (*reuse_instead(plan, NAME), *_reused(plan), *_several(lists), *untried(plan, tried, NAME))
    text = to_text(next(iter(lists.values())) if len(lists) == 1 else lists)
    return Export(NAME, FILE, text, layers_of(plan), planned(plan), lost, _snippet(network, list(lists)), tried)


def _lists(plan: Plan) -> dict[str, Schedule]:
    """Schedules by list of blocks; a part has one key where it is computed in the same steps in every block."""
    parts: dict[str, dict[str, dict[str, tuple[bool, ...]]]] = {}
    for layer in layers_of(plan):
        name, block, part = _place(layer)
        parts.setdefault(name, {}).setdefault(part, {})[block] = plan.of_layer(layer)
    return {name: _schedule(of_list) for name, of_list in parts.items()}


def _place(layer: str) -> tuple[str, str, str]:
    """List, block and part of a layer.

    Raises:
        PlanError: It is no part of a block in a list.
    """
    _, *path = layer.split(".")
    if len(path) != 3 or not path[1].isdigit():
        raise PlanError(f"{NAME} wraps parts of blocks, and {layer} is none; run the plan with dit-trace replay")
    return path[0], path[1], path[2]


def _schedule(parts: dict[str, dict[str, tuple[bool, ...]]]) -> Schedule:
    schedule: Schedule = {}
    for part, blocks in parts.items():
        if len(set(blocks.values())) == 1:
            schedule[part] = _row(next(iter(blocks.values())))
        else:
            schedule |= {f"{part}-{block}": _row(steps) for block, steps in blocks.items()}
    return schedule


def _row(steps: tuple[bool, ...]) -> list[int]:
    return np.array(steps, int).tolist()


def _reused(plan: Plan) -> tuple[str, ...]:
    if plan.granularity != STEPS:
        return ()
    return (
        f"the plan keeps the network's prediction from step to step, {NAME} keeps the output of each of its layers and "
        "computes what is between them: the error may differ from the predicted one, and more is computed",
    )


def _several(lists: dict[str, Schedule]) -> tuple[str, ...]:
    if len(lists) == 1:
        return ()
    return (f"its keys do not tell {' from '.join(lists)}: the file holds a schedule for each, and each has a helper",)


def _snippet(network: str, lists: list[str]) -> str:
    named = "{" + ", ".join(f'"{name}": schedules["{name}"]' for name in lists) + "}"
    schedules = named if len(lists) > 1 else f'{{"{lists[0]}": schedules}}'
    return f"""\
import json

import torch
from SmoothCache import SmoothCacheHelper

with open("{FILE}") as file:
    schedules = json.load(file)
helpers = []
for name, schedule in {schedules}.items():
    blocks = getattr(pipe.{network}, name)
    for part in sorted({{key.partition("-")[0] for key in schedule}}):  # which some blocks may lack
        having = {{str(i): block for i, block in enumerate(blocks) if getattr(block, part, None) is not None}}
        classes = list({{type(block) for block in having.values()}})
        helpers.append(SmoothCacheHelper(torch.nn.ModuleDict(having), classes, [part], schedule))
for helper in helpers:
    helper.enable()
# for every further image: helper.disable() and helper.enable() of each, or it is not cached
"""
