"""What a configuration of a cache would really skip, found out on a model in miniature, and the traps it steps into."""

from __future__ import annotations

import json
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
from dit_tracer.traps import clearing, of_calls, of_failure, of_last, of_length, of_plan, of_result, of_second
from dit_tracer.work import Task

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
    found = [*of_length(config, count), *of_calls(config, pipeline, uncached)]
    if not config.engine:
        return _only_read(config, pipeline, uncached, about, found)
    try:
        cached, further = _tried(config, pipeline, call)
    except EngineError as error:
        return Verdict(**about, skipped=0, steps="", warnings=(*found, *of_failure(config)), failed=str(error))
    line = _line(cached.by_step, uncached.by_step)
    found += [*further, *of_result(config, pipeline, cached, uncached, line)]
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
        return _cleared(config, pipeline, call), [f"it fails as it is ({_said(error)}); {clearing(config)}"]
    return first, of_second(config, first, second)


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
    found += of_last(config, line)
    if config.kind.startswith("plan"):
        found += of_plan(config, pipeline, uncached)
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
