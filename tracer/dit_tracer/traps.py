"""The traps that configurations of caches step into: a sentence for each, with what to do about it."""

from __future__ import annotations

import re
from typing import Any

from dit_formats.console import plural
from dit_formats.plan import from_data

from dit_tracer.counting import Counted
from dit_tracer.foreign import Config
from dit_tracer.recording.sites import find_networks

ADAPTIVE = (
    "a threshold decides, on values that random weights do not have: this says that it runs, not how often it skips"
)

CLEAR = {
    "smoothcache": "call disable() and enable() of its helper before every image",
    "diffusers": "clear what is kept, and name the call, before every image, as the snippet of an export does",
}
"""What to do about it, by engine."""


def of_second(config: Config, first: Counted, second: Counted) -> list[str]:
    if first.by_step == second.by_step:
        return []
    calls = f"the first image makes {first.attention} calls of attention and the second {second.attention}"
    return [f"{calls}; {clearing(config)}"]


def clearing(config: Config) -> str:
    return CLEAR.get(config.engine, "it does not start anew with every image")


def of_length(config: Config, steps: int) -> list[str]:
    """Schedules of another length than the run."""
    found = []
    if config.num_steps not in (None, steps):
        found.append(
            f"the file is for {plural(config.num_steps, 'step')} and the run has {steps}: {_meanwhile(config)}"
        )
    elif config.mask is not None and len(config.mask) < steps:
        found.append(f"the mask has {plural(len(config.mask), 'step')} and the run {steps}: the rest is cached")
    return found


def _meanwhile(config: Config) -> str:
    """What an engine does in a run of another length."""
    return {
        "cache-dit": "cache-dit counts anew behind its number of steps, and its mask no longer fits",
        "smoothcache": "SmoothCache computes every step behind the end of its schedule",
        "diffusers": "it counts anew behind its number of steps, or goes on in the next image",
    }.get(config.engine, "they do not fit")


def of_calls(config: Config, pipeline: Any, uncached: Counted) -> list[str]:
    """Guidance branches in calls of their own, and several networks."""
    networks, calls = find_networks(pipeline), max(max(counts) for counts in uncached.by_layer.values())
    found = []
    mixes = config.engine == "smoothcache" or "pyramid" in config.data.get("engine", "")
    if calls > 1 and mixes:
        found.append(
            f"{type(pipeline).__name__} calls its network {calls} times a step, and {config.kind} gives one guidance "
            "branch what it kept of the other"
        )
    if len(networks) > 1:
        found.append(f"{' and '.join(networks)} count their steps apart, each from its own first one")
    return found


def of_result(config: Config, pipeline: Any, cached: Counted, uncached: Counted, line: str) -> list[str]:
    """What the count shows."""
    found = [ADAPTIVE] if config.adaptive else []
    if cached.attention >= uncached.attention:
        found.append(f"it skips nothing{_why(config, pipeline)}")
    found += of_last(config, line)
    if config.mask is not None and len(config.mask) == len(line):
        asked = "".join("1" if step else "0" for step in config.mask)
        if any((step == "1") != (made == "1") for step, made in zip(asked, line)):
            found.append(f"the file asks for {asked}, and {line} was computed")
    return [*found, *_unmatched(config, pipeline)]


def of_last(config: Config, line: str) -> list[str]:
    """The step that nothing comes after to mend; layers that a plan leaves out there are its choice."""
    cached = line.endswith("0") or (line.endswith("-") and config.engine == "cache-dit")
    return ["the last step is cached"] if cached else []


def _why(config: Config, pipeline: Any) -> str:
    if config.data.get("engine") == "taylorseer" and not _identifiers(config):
        return (
            ": TaylorSeer's own identifiers end in attn and must match in full, which no attn1 does; give "
            "cache_identifiers"
        )
    return ""


def _identifiers(config: Config) -> list[str]:
    groups = config.data.get("groups", [])
    return [name for group in groups for name in group.get("cache_identifiers") or group.get("identifiers") or []]


def _unmatched(config: Config, pipeline: Any) -> list[str]:
    """Identifiers and parts that no module has; a miniature has fewer blocks than the model."""
    names = [name for network in find_networks(pipeline).values() for name, _ in network.named_modules()]
    if config.engine == "smoothcache":
        schedules = [s for s in config.data.values() if isinstance(s, dict)] or [config.data]
        keys = {key for schedule in schedules for key in schedule}
        idle = sorted(key for key in keys if not any(_has_part(name, key) for name in names))
    else:
        match = re.fullmatch if config.data.get("engine") == "taylorseer" else re.search
        keys = set(_identifiers(config))
        idle = sorted(key for key in keys if not any(match(key, name) for name in names))
    if not idle:
        return []
    some = ", ".join(idle[:3]) + (", ..." if len(idle) > 3 else "")
    return [f"{len(idle)} of {plural(len(keys), 'name')} match nothing in this miniature: {some}"]


def _has_part(name: str, key: str) -> bool:
    """Whether a module is this part of a block: `attn1` of any, `attn1-3` of the fourth."""
    part, _, block = key.partition("-")
    path = name.split(".")
    return len(path) > 1 and path[-1] == part and (not block or path[-2] == block)


def of_failure(config: Config) -> list[str]:
    if config.engine == "cache-dit" and isinstance(config.data.get("cache_type"), str):
        return ["leave out cache_type: cache-dit 1.5.3 refuses the string"]
    return []


def of_plan(config: Config, pipeline: Any, uncached: Counted) -> list[str]:
    """A plan of another network, and layers that are not there."""
    plan, found = from_data(config.data), []
    here = "+".join(dict.fromkeys(type(network).__name__ for network in find_networks(pipeline).values()))
    if plan.request.transformer != here:
        found.append(f"the plan is for {plan.request.transformer}, and {type(pipeline).__name__} has {here}")
    idle = [layer for layer in plan.types if layer not in uncached.by_layer]
    if idle and plan.granularity != "step":
        found.append(f"{len(idle)} of {plural(len(plan.types), 'layer')} are not in this miniature, as {idle[0]}")
    return found
