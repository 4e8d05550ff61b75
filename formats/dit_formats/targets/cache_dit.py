"""cache-dit 1.5: a step mask in its YAML file, which SGLang's --cache-dit-config reads too.

It skips whole steps, all blocks but the first, and keeps what the other blocks added to their input; order 1 of its
TaylorSeer calibrator predicts that linearly in the index of the step. The file is written as JSON, which is YAML.
It names no `cache_type`, for 1.5.3 refuses the string. The mask is as long as the run, for cache-dit caches every step
behind the end of a shorter one. Whether guidance branches come in calls of their own is said too: left to itself,
cache-dit takes it from the class of the pipeline, whatever the guidance.
"""

from __future__ import annotations

import numpy as np

from dit_formats.plan import LINEAR, STEPS, Plan, PlanError
from dit_formats.targets.exported import (
    Export,
    Mask,
    layers_of,
    refuse_whole,
    reuse_instead,
    share_lost,
    steps_as_levels,
    to_text,
    untried,
)
from dit_formats.targets.traits import STACKS, calls_twice, component, traits_of

NAME, FILE = "cache-dit", "plan.cache-dit.yaml"

SNIPPET = f"""\
import cache_dit

configs = cache_dit.load_configs("{FILE}")
cache_dit.enable_cache(pipe, **{{name: value for name, value in configs.items() if value is not None}})
# cache_dit.disable_cache(pipe) undoes it; cache_dit.summary(pipe) says what was cached
"""


def write(plan: Plan) -> Export:
    """The plan as cache-dit's configuration.

    Raises:
        PlanError: cache-dit cannot run it; the message says why and what can.
    """
    traits = traits_of(plan)
    if traits.cache_dit:
        raise PlanError(f"{NAME} cannot run {plan.request.transformer}: {traits.cache_dit}; export to smoothcache")
    component(plan, NAME)
    refuse_whole(plan, NAME)
    computed = _computed(plan)
    predicting = steps_as_levels(plan, NAME) if plan.predictor == LINEAR else reuse_instead(plan, NAME)
    lost = (*share_lost(plan, computed, NAME), *predicting, *_reused(plan), *untried(plan, traits.tried, NAME))
    text = to_text({"cache_config": _config(plan)})
    return Export(NAME, FILE, text, layers_of(plan), computed, lost, SNIPPET, traits.tried)


def _config(plan: Plan) -> dict[str, object]:
    config = {
        "num_inference_steps": plan.request.num_steps,
        "Fn_compute_blocks": 1,
        "Bn_compute_blocks": 0,
        "max_warmup_steps": 0,
        "residual_diff_threshold": 0.12,
        "steps_computation_mask": [int(step) for step in plan.steps_mask],
        "steps_computation_policy": "static",
        "enable_separate_cfg": calls_twice(plan),
    }
    return config | ({"enable_taylorseer": True, "taylorseer_order": 1} if plan.predictor == LINEAR else {})


def _computed(plan: Plan) -> Mask:
    """The steps of the mask; every step for the first block and for what is in no list of blocks."""
    places = [layer.split(".")[1:3] for layer in layers_of(plan)]
    first = next((name for name in STACKS if [name, "0"] in places), "")
    always = [place[0] not in STACKS or place == [first, "0"] for place in places]
    return np.array([np.full(plan.request.num_steps, True) if one else plan.steps_mask for one in always])


def _reused(plan: Plan) -> tuple[str, ...]:
    what = "the network's prediction" if plan.granularity == STEPS else "each layer's output"
    return (
        f"the plan keeps {what} from step to step, {NAME} keeps what the blocks after the first add to their input: "
        "the error may differ from the predicted one",
    )
