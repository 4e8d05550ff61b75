"""What a configuration of a cache would really skip, found out on a model in miniature, and the traps it steps into."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dit_formats.console import harmless, plural
from dit_formats.plan import from_data

from dit_tracer.calls import generate
from dit_tracer.counting import Counted, counting
from dit_tracer.engines import ENGINES, EngineError
from dit_tracer.foreign import Config, read
from dit_tracer.models.catalog import BUNDLED, TINY, TWINS, Model, find
from dit_tracer.models.loading import load
from dit_tracer.recording.sites import find_networks
from dit_tracer.work import Task

ADAPTIVE = (
    "a threshold decides, on values that random weights do not have: this says that it runs, not how often it skips"
)
TASK = Task("a red fox", 1)


@dataclass(frozen=True)
class Verdict:
    """What was found.

    Args:
        kind: What the file is.
        calls: Of attention in the uncached run of the miniature.
        skipped: Of them with the configuration.
        steps: For each step `1` where all calls are made, `0` where none is, `-` where some are.
        warnings: A sentence for each trap.
        failed: Why it does not run at all; empty where it does.
        ran: Whether it was run; what is only read is counted from what it says.
    """

    file: str
    kind: str
    model: str
    calls: int
    skipped: int
    steps: str
    warnings: tuple[str, ...] = ()
    failed: str = ""
    ran: bool = True

    @property
    def share(self) -> float:
        """Share of the calls that are skipped."""
        return self.skipped / self.calls if self.calls else 0.0

    @property
    def exit_code(self) -> int:
        return 1 if self.failed or not self.skipped else 0

    def as_json(self) -> str:
        return json.dumps(asdict(self) | {"share": self.share})

    def lines(self) -> list[str]:
        """The report for people."""
        lines = [f"{self.file}: {self.kind}, on {self.model}"]
        if self.failed:
            lines.append(f"fails: {self.failed}")
        else:
            how = "skips" if self.ran else "read, not run; says to skip"
            lines.append(f"{how} {self.share:.0%} of attention: {self.skipped} of {plural(self.calls, 'call')}")
            lines.append(f"steps {self.steps}  (1 computed, 0 skipped, - in part)")
        return lines + [f"warning: {warning}" for warning in self.warnings]


def lint(file: Path, name: str, steps: int | None = None) -> Verdict:
    """The verdict on a file for a model, from a run on its twin on the CPU.

    Args:
        name: Of a twin (`tiny:NAME`), of a model that has one, or of a bundled model.
        steps: Of the run; those that the file is for if None, or else the model's.

    Raises:
        FileNotFoundError, ConfigError: The file is no configuration.
        LookupError: The model has no miniature.
    """
    config, model = read(file), miniature(name)
    count = steps or config.num_steps or model.steps
    pipeline = load(model, device="cpu")
    call = model.call | {"num_inference_steps": count}
    uncached = _generated(pipeline, call)
    about = {"file": harmless(str(file)), "kind": config.kind, "model": model.name, "calls": uncached.attention}
    found = [*_of_length(config, count), *_of_calls(config, pipeline, uncached)]
    if not config.engine:
        return _only_read(config, pipeline, uncached, about, found)
    try:
        cached, further = _tried(config, pipeline, call)
    except EngineError as error:
        return Verdict(**about, skipped=0, steps="", warnings=(*found, *_of_failure(config)), failed=str(error))
    line = _line(cached.by_step, uncached.by_step)
    found += [*further, *_of_result(config, pipeline, cached, uncached, line)]
    return Verdict(**about, skipped=uncached.attention - cached.attention, steps=line, warnings=tuple(found))


def miniature(name: str) -> Model:
    """The small model that stands for this one.

    Raises:
        LookupError: There is none.
    """
    if name in BUNDLED:
        return BUNDLED[name]
    twin = name if name.startswith(TINY) else TINY + find(name).name
    if twin not in TWINS and not name.startswith(TINY):
        raise LookupError(
            f"{name} has no miniature to try it on; give one of {', '.join(TWINS)} or {', '.join(BUNDLED)}"
        )
    return find(twin)


def _generated(pipeline: Any, call: dict[str, Any]) -> Counted:
    with counting(pipeline) as counted:
        generate(pipeline, TASK, call)
    return counted


def _tried(config: Config, pipeline: Any, call: dict[str, Any]) -> tuple[Counted, list[str]]:
    """What a first image computes, and what becomes of a second one if nobody clears in between.

    Raises:
        EngineError: It does not run.
    """
    try:
        with ENGINES[config.engine](pipeline, config.text, fresh=False):
            first = _generated(pipeline, call)
            second = _generated(pipeline, call)
    except EngineError:
        raise
    except Exception as error:  # engines fail in their own ways, somewhere inside the network
        return _cleared(config, pipeline, call), [f"it fails as it is ({_said(error)}); {_clear(config)}"]
    return first, _of_second(config, first, second)


CLEAR = {
    "smoothcache": "call disable() and enable() of its helper before every image",
    "diffusers": "clear what is kept, and name the call, before every image, as the snippet of an export does",
}
"""What to do about it, by engine."""


def _cleared(config: Config, pipeline: Any, call: dict[str, Any]) -> Counted:
    try:
        with ENGINES[config.engine](pipeline, config.text):
            return _generated(pipeline, call)
    except EngineError:
        raise
    except Exception as error:
        raise EngineError(f"{type(pipeline).__name__} with it: {_said(error)}") from error


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _line(cached: list[int], uncached: list[int]) -> str:
    """`1`, `0` or `-` for each step."""
    return "".join("1" if now >= all_ else "0" if not now else "-" for now, all_ in zip(cached, uncached))


def _of_second(config: Config, first: Counted, second: Counted) -> list[str]:
    if first.by_step == second.by_step:
        return []
    calls = f"the first image makes {first.attention} calls of attention and the second {second.attention}"
    return [f"{calls}; {_clear(config)}"]


def _clear(config: Config) -> str:
    return CLEAR.get(config.engine, "it does not start anew with every image")


def _of_length(config: Config, steps: int) -> list[str]:
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


def _of_calls(config: Config, pipeline: Any, uncached: Counted) -> list[str]:
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


def _of_result(config: Config, pipeline: Any, cached: Counted, uncached: Counted, line: str) -> list[str]:
    """What the count shows."""
    found = [ADAPTIVE] if config.adaptive else []
    if cached.attention >= uncached.attention:
        found.append(f"it skips nothing{_why(config, pipeline)}")
    found += _of_last(config, line)
    if config.mask is not None and len(config.mask) == len(line):
        asked = "".join("1" if step else "0" for step in config.mask)
        if any((step == "1") != (made == "1") for step, made in zip(asked, line)):
            found.append(f"the file asks for {asked}, and {line} was computed")
    return [*found, *_unmatched(config, pipeline)]


def _of_last(config: Config, line: str) -> list[str]:
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


def _of_failure(config: Config) -> list[str]:
    if config.engine == "cache-dit" and isinstance(config.data.get("cache_type"), str):
        return ["leave out cache_type: cache-dit 1.5.3 refuses the string"]
    return []


def _only_read(config: Config, pipeline: Any, uncached: Counted, about: dict[str, Any], found: list[str]) -> Verdict:
    """What a plan or a schedule says, counted on the layers of the miniature; nothing is run."""
    steps = len(uncached.by_step)
    made = [0] * steps
    for layer, calls in uncached.by_layer.items():
        if layer in uncached.attention_layers:
            compute = _computes(config, layer, steps)
            made = [before + count * here for before, count, here in zip(made, calls, compute)]
    every = [sum(uncached.by_layer[layer][step] for layer in uncached.attention_layers) for step in range(steps)]
    line = _line(made, every)
    found += _of_last(config, line)
    if config.kind.startswith("plan"):
        found += _unknown_layers(config, uncached)
    about |= {"calls": sum(every)}
    return Verdict(**about, skipped=sum(every) - sum(made), steps=line, warnings=tuple(found), ran=False)


def _computes(config: Config, layer: str, steps: int) -> list[bool]:
    """Whether a layer is computed, by step; behind the end of what the file says it is."""
    said: tuple[bool, ...] = config.mask or ()
    if config.kind.startswith("plan"):
        plan = from_data(config.data)
        if plan.granularity != "step":
            said = plan.of_layer(layer) if layer in plan.types else ()
    return [*said[:steps], *[True] * (steps - len(said))]


def _unknown_layers(config: Config, uncached: Counted) -> list[str]:
    plan = from_data(config.data)
    idle = [layer for layer in plan.types if layer not in uncached.by_layer]
    if plan.granularity == "step" or not idle:
        return []
    return [f"{len(idle)} of {plural(len(plan.types), 'layer')} are not in this miniature, as {idle[0]}"]
