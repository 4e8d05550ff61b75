"""diffusers 0.42: a step mask through MagCache, as a JSON file with the arguments of MagCacheConfig.

MagCache skips a step while the product of its ratios stays near one. Ratios of 1 where the plan reuses and of 10 where
it computes make it follow any mask that begins with a computed step. It skips all blocks and keeps what they add to
their input; it predicts nothing.
"""

from __future__ import annotations

import numpy as np

from dit_formats.plan import STEPS, Plan, PlanError
from dit_formats.targets.exported import (
    Export,
    Mask,
    layers_of,
    refuse_whole,
    reuse_instead,
    share_lost,
    to_text,
    untried,
)
from dit_formats.targets.traits import STACKS, calls_twice, component, traits_of

NAME, FILE = "diffusers", "plan.diffusers.json"
FORMAT, VERSION = "dit-diffusers", 1
ENGINE = "mag_cache"
REUSED, COMPUTED, THRESHOLD = 1.0, 10.0, 0.5


def write(plan: Plan) -> Export:
    """The plan as ratios of MagCache.

    Raises:
        PlanError: MagCache cannot run it; the message says why and what can.
    """
    traits = traits_of(plan)
    if traits.mag_cache:
        raise PlanError(f"{NAME} (MagCache) cannot run {plan.request.transformer}: {traits.mag_cache}")
    if calls_twice(plan) and not traits.has_enable_cache:
        raise PlanError(f"{NAME} (MagCache) does not tell the guidance branches of {plan.request.transformer} apart")
    network = component(plan, NAME)
    refuse_whole(plan, NAME)
    computed = _computed(plan)
    lost = (
        *share_lost(plan, computed, NAME),
        *reuse_instead(plan, NAME),
        *_reused(plan),
        *untried(plan, traits.tried, NAME),
    )
    snippet = _snippet(network, traits.has_enable_cache)
    text = to_text(head(ENGINE, plan) | {"config": _config(plan)})
    return Export(NAME, FILE, text, layers_of(plan), computed, lost, snippet, traits.tried)


def head(engine: str, plan: Plan) -> dict[str, object]:
    """How the file of one of diffusers' engines begins."""
    kind = {"format": FORMAT, "version": VERSION, "engine": engine, "diffusers": "0.42"}
    return kind | {"transformer": plan.request.transformer, "num_steps": plan.request.num_steps}


def _config(plan: Plan) -> dict[str, object]:
    steps = plan.request.num_steps
    return {
        "mag_ratios": [COMPUTED if step else REUSED for step in plan.steps_mask],
        "threshold": THRESHOLD,
        "max_skip_steps": steps,
        "retention_ratio": 0.0,
        "num_inference_steps": steps,
    }


def _computed(plan: Plan) -> Mask:
    """The steps of the mask; every step for what is in no list of blocks."""
    inside = [layer.split(".")[1] in STACKS for layer in layers_of(plan)]
    return np.array([plan.steps_mask if one else np.full(plan.request.num_steps, True) for one in inside])


def _reused(plan: Plan) -> tuple[str, ...]:
    what = "the network's prediction" if plan.granularity == STEPS else "each layer's output"
    return (
        f"the plan keeps {what} from step to step, MagCache keeps what all blocks together add to their input: the "
        "error may differ from the predicted one",
    )


def _snippet(network: str, has_enable_cache: bool) -> str:
    apply = f"pipe.{network}.enable_cache(config)" if has_enable_cache else f"apply_mag_cache(pipe.{network}, config)"
    return f"""\
import json

from diffusers import MagCacheConfig
{"" if has_enable_cache else "from diffusers.hooks import apply_mag_cache" + chr(10)}
with open("{FILE}") as file:
    config = MagCacheConfig(**json.load(file)["config"])
{apply}
# the pipeline's num_inference_steps must be that of the file
"""
