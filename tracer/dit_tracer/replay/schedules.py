"""Ways to spend less computation, each run for real: a plan, and what others would do with as much."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from dit_formats.plan import GRID, LINEAR, REUSE, STEPS, TYPES, Plan, PlanError, Row
from dit_formats.policy import Policy
from dit_formats.targets import broadcast, cache_dit, export, mag_cache
from numpy.typing import NDArray

from dit_tracer.engines import ENGINES
from dit_tracer.recording.sites import find_networks
from dit_tracer.replay.caching import Caching, sites_of
from dit_tracer.replay.grid import chosen_steps
from dit_tracer.replay.online import Online

UNCACHED = "uncached"
GATE = 0.4
"""Share of the steps after which T-GATE gates: 10 of 25 (arXiv 2404.02747, section 4)."""

BROADCAST = {"self": 1, "joint": 1, "single": 1, "spatial": 1, "temporal": 2, "cross": 3}
"""Ranges of PAB relative to that of spatial attention: 2, 4 and 6 in PAB_246 (arXiv 2408.12588, section 4)."""

WINDOW = (0.1, 0.8)
"""Shares of the training steps between which PAB broadcasts: timesteps 100 to 800."""

NOT_RUN = {
    "L2C": "its routers are trained for each model and number of steps, and published for DiT-XL/2 and U-ViT-H/2 alone "
    "(arXiv 2406.01733)",
    "DiTFastAttn": "it needs a search that runs the model anew for each choice, and windowed attention kernels; "
    "published for DiT, PixArt-Sigma and Open-Sora (arXiv 2406.08552)",
}
"""Methods of which nothing is run, and why."""

Mask = NDArray[np.bool_]
Work = Callable[[Any], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Schedule:
    """One way to make a generation.

    Args:
        work: Within its block a pipeline's generations follow the schedule.
        call: Arguments of the pipeline in which it differs.
        note: What is special about it, for the reader of a table.
        mask: The steps of a schedule by whole steps, (step).
        plan: What it was made from, where it is a plan of ours.
        lost: What another engine cannot express of it.
        policy: The same of an online rule, whose block gives what it computed in the last generation.
    """

    name: str
    work: Work = field(default=lambda pipeline: nullcontext())
    call: dict[str, Any] = field(default_factory=dict)
    note: str = ""
    mask: tuple[bool, ...] = ()
    plan: Plan | None = None
    policy: Policy | None = None
    lost: tuple[str, ...] = ()


class Impossible(Exception):
    """A schedule that cannot be had for this model; the message says why."""


def of_plan(name: str, plan: Plan, engine: str = "") -> Schedule:
    """The plan itself, by our own hook or by another engine.

    Raises:
        PlanError: The engine cannot run it.
    """
    mask = plan.rows[0].compute if plan.granularity in (STEPS, GRID) else ()
    if engine:
        made = export(plan, engine)
        return Schedule(
            name, partial(_engine, engine, made.text), note=f"by {engine}", mask=mask, plan=plan, lost=made.lost
        )
    if plan.granularity == GRID:
        levels = f"{sum(mask)} of {len(mask)} noise levels"
        return Schedule(name, partial(chosen_steps, compute=mask), note=levels, mask=mask, plan=plan)
    return Schedule(name, partial(_cached, plan), mask=mask, plan=plan)


def of_policy(name: str, static: str, policy: Policy) -> list[Schedule]:
    """An online rule, and the static plan of the same share beside it, by these names."""
    note = f"{policy.signal} below {policy.threshold:.3g}"
    return [Schedule(name, partial(_online, policy), note=note, policy=policy), of_plan(static, policy.static)]


@contextmanager
def _online(policy: Policy, pipeline: Any) -> Iterator[Online]:
    with Online(pipeline, policy) as running:
        yield running


@contextmanager
def _cached(plan: Plan, pipeline: Any) -> Iterator[None]:
    with Caching(pipeline, plan):
        yield


def _engine(name: str, text: str, pipeline: Any) -> AbstractContextManager[None]:
    return ENGINES[name](pipeline, text)


def baselines(plan: Plan, pipeline: Any) -> tuple[list[Schedule], dict[str, str]]:
    """What others would do with the computation that a plan spends, and of those that cannot be run why."""
    found, reasons = [], dict(NOT_RUN)
    for name, make in BASELINES.items():
        try:
            found.append(make(name, plan, pipeline))
        except (Impossible, PlanError) as error:
            reasons[name] = str(error)
    return found, reasons


def steps_like(plan: Plan) -> int:
    """Whole steps that cost as much as the plan, at least one."""
    return max(1, round(plan.computed_share * plan.request.num_steps))


def by_steps(plan: Plan, compute: Mask, predictor: str = REUSE) -> Plan:
    """A plan that computes these whole steps."""
    row = Row("all", tuple(plan.types), tuple(map(bool, compute)))
    return replace(plan, granularity=STEPS, predictor=predictor, rows=(row,))


def by_rows(plan: Plan, pipeline: Any, compute: dict[str, Mask], predictor: str = REUSE) -> Plan:
    """A plan that computes these layers in these steps, and all others in every one.

    Args:
        compute: By name of the layer, (step).
    """
    types = {name: site.type for name, site in sites_of(find_networks(pipeline)).items()}
    types |= {name: kind for name, kind in plan.types.items() if name in types}
    always = np.ones(plan.request.num_steps, bool)
    rows: dict[tuple[bool, ...], list[str]] = {}
    for name in types:
        rows.setdefault(tuple(map(bool, compute.get(name, always))), []).append(name)
    made = tuple(Row(f"group {place}", tuple(names), mask) for place, (mask, names) in enumerate(rows.items(), 1))
    return replace(plan, granularity=TYPES, predictor=predictor, rows=made, types=types)


# One function for each baseline ----------------------------------------------------


def _fewer(name: str, plan: Plan, pipeline: Any) -> Schedule:
    steps = steps_like(plan)
    return Schedule(
        name, call={"num_inference_steps": steps}, note=f"{steps} steps instead of {plan.request.num_steps}"
    )


def _uniform(predictor: str, name: str, plan: Plan, pipeline: Any) -> Schedule:
    """Steps as evenly spaced as their number allows, the first among them."""
    steps, count = plan.request.num_steps, steps_like(plan)
    compute = np.zeros(steps, bool)
    compute[np.floor(np.arange(count) * steps / count).astype(int)] = True
    even = by_steps(plan, compute, predictor)
    return replace(of_plan(name, even), note="TaylorSeer's, of order 1" if predictor == LINEAR else "FORA's", plan=None)


def _cache_dit(name: str, plan: Plan, pipeline: Any) -> Schedule:
    """The one of cache-dit's predefined masks that computes as much as the plan, or next to it."""
    try:
        from cache_dit import steps_mask
    except ModuleNotFoundError:
        raise Impossible('cache-dit is not installed; pip install "ditscope[trace,replay]"') from None
    masks = {}
    for policy in ("slow", "medium", "fast", "ultra"):
        try:
            masks[policy] = np.array(steps_mask(mask_policy=policy, total_steps=plan.request.num_steps), bool)
        except (ValueError, AssertionError):
            continue  # fewer steps than it has masks for
    if not masks:
        raise Impossible(f"it has no predefined mask for {plan.request.num_steps} steps")
    policy = min(masks, key=lambda one: abs(masks[one].sum() - steps_like(plan)))
    text = cache_dit.write(by_steps(plan, masks[policy])).text
    return Schedule(name, partial(_engine, "cache-dit", text), note=f"mask {policy!r}", mask=tuple(masks[policy]))


def _mag_cache(name: str, plan: Plan, pipeline: Any) -> Schedule:
    """MagCache in diffusers with the trace's ratios, and the threshold that skips as much."""
    config = plan.made.get("magcache")
    if not isinstance(config, dict):
        raise Impossible("the plan holds no ratios: the trace it was made from has no stack")
    mag_cache.write(by_steps(plan, _all_but_last(plan)))  # refuses what it cannot run on
    text = json.dumps(mag_cache.head(mag_cache.ENGINE, plan) | {"config": config})
    return Schedule(name, partial(_engine, "diffusers", text), note=f"threshold {config['threshold']:.3g}")


def _broadcast(name: str, plan: Plan, pipeline: Any) -> Schedule:
    """PAB in diffusers with the ranges that come nearest to the plan's share; it always computes feed-forward."""
    inside = _window(plan)
    tried = {}
    for least in range(2, max(3, plan.request.num_steps // 2)):
        compute = {
            layer: ~inside | (np.arange(plan.request.num_steps) % (least * BROADCAST[kind]) == 0)
            for layer, kind in plan.types.items()
            if kind in BROADCAST
        }
        one = by_rows(plan, pipeline, compute)
        tried[abs(one.computed_share - plan.computed_share)] = least, one
    least, one = tried[min(tried)]
    ranges = "/".join(
        str(least * times) for times in sorted({BROADCAST[k] for k in plan.types.values() if k in BROADCAST})
    )
    return Schedule(name, partial(_engine, "diffusers-pab", broadcast.write(one).text), note=f"ranges {ranges}")


def _gate(name: str, plan: Plan, pipeline: Any) -> Schedule:
    """T-GATE's rule: cross-attention is kept from the gate step on."""
    cross = [layer for layer, kind in plan.types.items() if kind == "cross"]
    if not cross:
        raise Impossible("the model has no cross-attention, which is all that it keeps")
    gate = max(1, round(GATE * plan.request.num_steps))
    before = np.arange(plan.request.num_steps) < gate
    kept = by_rows(plan, pipeline, dict.fromkeys(cross, before))
    return replace(of_plan(name, kept), note=f"cross-attention kept from step {gate} on", plan=None)


def _front_and_rear(name: str, plan: Plan, pipeline: Any) -> Schedule:
    """Delta-DiT's rule: of the first half of the steps the rear blocks are left out, of the second the front ones.

    So many blocks, at so long an interval, that the plan's share is met (arXiv 2406.01125, section 4.2).
    """
    steps, layers = plan.request.num_steps, list(sites_of(find_networks(pipeline)))
    left_out = 1 - plan.computed_share
    interval = next((n for n in range(2, steps + 1) if 1 - 1 / n >= left_out), steps)
    part = min(1.0, left_out / (1 - 1 / interval))
    count = round(part * len(layers))
    on = np.arange(steps) % interval == 0
    late = np.arange(steps) >= steps // 2
    front, rear = set(layers[:count]), set(layers[len(layers) - count :])
    compute = {
        layer: on | ~((late & (layer in front)) | (~late & (layer in rear)))
        for layer in layers
        if layer in front | rear
    }
    ruled = by_rows(plan, pipeline, compute)
    note = f"{part:.0%} of the layers every {interval} steps, rear ones first; outputs are kept, not differences"
    return replace(of_plan(name, ruled), note=note, plan=None)


def _all_but_last(plan: Plan) -> Mask:
    compute = np.ones(plan.request.num_steps, bool)
    compute[-1] = plan.request.num_steps == 1
    return compute


def _window(plan: Plan) -> Mask:
    """Steps in which PAB broadcasts."""
    timesteps = np.array(plan.request.timesteps)
    share = timesteps / max(timesteps.max(), 1e-9) if timesteps.max() > 1 else timesteps
    inside = (share > WINDOW[0]) & (share < WINDOW[1])
    inside[0] = False
    return inside


BASELINES: dict[str, Callable[[str, Plan, Any], Schedule]] = {
    "fewer steps": _fewer,
    "uniform, reused": partial(_uniform, REUSE),
    "uniform, linear": partial(_uniform, LINEAR),
    "cache-dit's mask": _cache_dit,
    "MagCache": _mag_cache,
    "PAB": _broadcast,
    "T-GATE": _gate,
    "Delta-DiT": _front_and_rear,
}
