"""SGLang's DPCache schedule (schema sglang-dpcache-schedule-v2), written to its published schema and not run here.

It skips whole steps, all blocks, and predicts what they give linearly from the last two computed steps along the index
of the step, so the first two must be computed; it takes bfloat16 only. A request must match the file in every field of
`request`, and SGLang refuses others when it starts.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from dit_formats.plan import REUSE, Plan, PlanError, to_json
from dit_formats.targets.exported import (
    Export,
    Mask,
    layers_of,
    refuse_whole,
    share_lost,
    steps_as_levels,
    to_text,
)
from dit_formats.targets.traits import component, guided

NAME, FILE = "sglang", "plan.sglang.json"
SCHEMA = "sglang-dpcache-schedule-v2"
PREDICTOR = {
    "name": "final-feature-linear-extrapolation",
    "order": 1,
    "arithmetic": "feature-dtype-elementwise-v1",
}
OBJECTIVE = "pact-mean-abs-final-feature-predicted-steps-only-v1"
"""The only one that SGLang accepts; the plan's own stands under `calibration`."""

LEADING = 2
"""Steps at the beginning that must be computed, for two are needed to predict from."""

SNIPPET = f"""\
# SGLang reads a folder of schedules and picks one by the number of computed steps. Put "{FILE}" into it, after
# setting in its "request" what only the server knows: checkpoint, quality, attention_backend, scheduler_config_sha256.
import json

with open("{FILE}") as file:
    schedule = json.load(file)
print(schedule["num_full_steps"], schedule["full_steps"])
"""


def write(plan: Plan) -> Export:
    """The plan as SGLang's schedule.

    Raises:
        PlanError: SGLang's schema does not admit it; the message says why and what can.
    """
    request = plan.request
    component(plan, NAME)
    refuse_whole(plan, NAME)
    if request.dtype != "bfloat16":
        raise PlanError(f"{NAME} takes bfloat16 only, and the plan is for {request.dtype}; trace with --dtype bfloat16")
    if request.num_steps <= LEADING:
        raise PlanError(f"{NAME} predicts from two computed steps, and the plan has {request.num_steps}")
    steps = plan.steps_mask | (np.arange(request.num_steps) < LEADING)
    if steps.all():
        raise PlanError(f"{NAME} computes the first two steps, and then nothing is left to skip of this plan")
    computed = np.array([steps] * len(layers_of(plan)))
    lost = (*_not_run(), *share_lost(plan, computed, NAME), *_leading(plan), *_predicting(plan))
    return Export(NAME, FILE, to_text(_schedule(plan, steps)), layers_of(plan), computed, lost, SNIPPET, False)


def _schedule(plan: Plan, steps: Mask) -> dict[str, Any]:
    full = [int(step) for step in np.flatnonzero(steps)]
    return {
        "schema": SCHEMA,
        "schedule_method": "dit-plan",
        "predictor": PREDICTOR,
        "objective": OBJECTIVE,
        "source_commit": "unknown",
        "request": _request(plan),
        "mandatory_full_steps": list(range(LEADING)),
        "force_last_full": False,
        "max_gap": None,
        "num_full_steps": len(full),
        "full_steps": full,
        "calibrated_cost": 0.0,
        "calibration": {
            "manifest_sha256": hashlib.sha256(to_json(plan).encode()).hexdigest(),
            "num_samples": len(plan.made.get("seen", ())),
            "made": plan.made,
        },
    }


def _request(plan: Plan) -> dict[str, Any]:
    request, call = plan.request, plan.request.call
    sizes = {name: call.get(name) for name in ("height", "width")}
    if not all(isinstance(size, int) for size in sizes.values()):
        raise PlanError(f"{NAME} needs height and width, and the plan does not know them; trace with "
                        "--pipeline-kwargs '{\"height\": 1024, \"width\": 1024}'")  # fmt: skip
    if not np.isfinite(request.sigmas).all():
        raise PlanError(f"{NAME} needs the noise level of every step, and this scheduler tells none")
    return {
        "pipeline": request.pipeline,
        "checkpoint": request.revision or request.model,
        "num_inference_steps": request.num_steps,
        **sizes,
        "guidance_scale": float(call.get("guidance_scale") or 1),
        "do_classifier_free_guidance": guided(plan),
        "quality": "",
        "attention_backend": None,
        "dtype": request.dtype,
        "scheduler": request.scheduler,
        "scheduler_config_sha256": request.scheduler_sha256,
        "timesteps": _single(request.timesteps),
        "sigmas": [*_single(request.sigmas), 0.0],
    }


def _single(values: tuple[float, ...]) -> list[float]:
    """The values in single precision, in which SGLang compares them."""
    return np.array(values, np.float32).astype(float).tolist()


def _not_run() -> tuple[str, ...]:
    return (
        f"this file was written to the published schema {SCHEMA} and not run here; SGLang runs it for the models that "
        "opted in to DPCache and refuses the others",
        "SGLang compares every field of the request: set checkpoint, quality, attention_backend and "
        "scheduler_config_sha256 (a hash of its own notation) to the server's before it loads the file",
        f"calibrated_cost is 0 and the objective is SGLang's name ({OBJECTIVE}): the plan minimised another error",
    )


def _leading(plan: Plan) -> tuple[str, ...]:
    if plan.steps_mask[:LEADING].all():
        return ()
    return ("step 1 is computed though the plan leaves it out, for SGLang predicts from two computed steps",)


def _predicting(plan: Plan) -> tuple[str, ...]:
    if plan.predictor == REUSE:
        return (f"the plan reuses the last computed value, {NAME} predicts linearly from the last two",)
    return steps_as_levels(plan, NAME)
