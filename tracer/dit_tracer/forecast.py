"""Says before a run what it would record, how many bytes that takes, and whether there is room for it."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from dit_formats.console import harmless, plural
from dit_formats.errors import ConflictError
from dit_formats.reader import Trace
from dit_formats.schema import told_differences

from dit_tracer import memory
from dit_tracer.calls import check, parameters, varying
from dit_tracer.models import schedulers
from dit_tracer.models.catalog import SEVEN, Model
from dit_tracer.models.fullsize import config
from dit_tracer.models.sketch import Sketch, of_pipeline, of_the_seven
from dit_tracer.progress import size as told_bytes
from dit_tracer.recording.call import arguments, call_settings
from dit_tracer.recording.recorder import Recorder, existing_trace
from dit_tracer.recording.settings import Sample, What, describe
from dit_tracer.recording.sites import UnsupportedError, find_networks
from dit_tracer.sizes import Size, size_of
from dit_tracer.work import Task, Work


class DiskError(OSError):
    """The disk has no room for what a run would write."""


@dataclass(frozen=True)
class Forecast:
    """What a run would make.

    Args:
        present: How many of the prompts the trace holds already.
        device: Where the networks would compute.
        free_device: Free bytes there; None where that is the host's memory.
    """

    path: Path
    sketch: Sketch
    what: What
    sample: Sample
    size: Size
    prompts: int
    present: int
    device: str
    free_device: int | None
    free_host: int
    free_disk: int

    @property
    def missing(self) -> int:
        return self.prompts - self.present

    @property
    def step_before(self) -> tuple[int, int]:
        return memory.kept(self.sketch, self.what.previous)

    def as_json(self) -> dict[str, Any]:
        on_device, on_host = self.step_before
        size = self.size
        return {
            "trace": str(self.path),
            "layers": dict(Counter(layer.type for layer in self.sketch.layers)),
            "kinds": self.sketch.kinds,
            "streams": self.sketch.streams,
            "branches": self.sketch.branches,
            "steps": self.sketch.steps,
            "sample": {stream: self.sample.size(stream) for stream in self.sketch.streams},
            "prompts": self.prompts,
            "present": self.present,
            "bytes_per_prompt": {"arrays": size.arrays, "file": size.file},
            "bytes": {"arrays": self.prompts * size.arrays, "file": self.prompts * size.file},
            "previous_step": {"kept": self.what.previous, "device": on_device, "host": on_host},
            "waiting": size.waiting,
            "device": self.device,
            "free": {"device": self.free_device, "host": self.free_host, "disk": self.free_disk},
        }

    def lines(self) -> list[str]:
        """The same for people."""
        found, size = self.sketch, self.size
        types = Counter(layer.type for layer in found.layers)
        told = ", ".join(f"{count} {kind}" for kind, count in types.items())
        values = ", ".join(f"{self.sample.size(stream)} {stream}" for stream in found.streams)
        on_device, on_host = self.step_before
        waiting = f", {told_bytes(on_host)} for the step before" if on_host else ""
        free, place = self.free_device, " of another machine" if elsewhere(self.device) else ""
        weights = "" if free is None else f", {told_bytes(free)} free for that and for what is not loaded yet"
        rows = [
            ("layers", f"{len(found.layers)} ({told}), {plural(found.steps, 'step')}, {', '.join(found.branches)}"),
            ("kinds", f"{', '.join(found.kinds)} of {', '.join(found.streams)}"),
            ("sample", f"{values} values of each" if self.sample.latent else "none; statistics only"),
            ("per prompt", f"{told_bytes(size.arrays)}, {told_bytes(size.file)} on disk"),
            (
                plural(self.prompts, "prompt"),
                f"{told_bytes(self.prompts * size.arrays)}, {told_bytes(self.prompts * size.file)} on disk"
                + (f"; {self.present} are there already" if self.present else ""),
            ),
            ("step before", f"{told_bytes(found.step_nbytes)} a step; kept: {KEPT[self.what.previous]}"),
            ("host", f"{told_bytes(size.waiting)} for a prompt that waits{waiting}, {told_bytes(self.free_host)} free"),
            ("device", f"{self.device}{place}, {told_bytes(on_device)} for the step before{weights}"),
            ("disk", f"{told_bytes(self.missing * size.file)} to write, {told_bytes(self.free_disk)} free"),
        ]  # fmt: skip
        width = max(len(name) for name, _ in rows)
        return [harmless(f"{name:{width}}  {text}") for name, text in rows]


KEPT = {
    "device": "whole, where it is computed",
    "host": "whole, in pinned memory of the host",
    "subset": "in part, 2^18 values of each activation, so that changes are estimates",
}


def forecast(
    model: Model,
    load: Callable[[], Any],
    work: Work,
    path: Path,
    *,
    call: dict[str, Any],
    sample: Sample,
    what: What,
    step_pairs: tuple[tuple[int, int], ...] | None,
    steps: int,
    scheduler: schedulers.Choice | None,
    dtype: str | None,
    device: str | None,
    previous: str | None,
) -> Forecast:
    """What a run with these options would make. Nothing is written, and of the seven nothing is loaded.

    Raises:
        TraceError: There is something else at `path`, or a trace of other settings.
        LookupError: The pipeline does not take these arguments.
    """
    before = existing_trace(path)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if model.name in SEVEN and model.pipeline:  # a folder may have that name too
        steps = schedulers.count(scheduler, steps) if scheduler else steps
        what = replace(what, step_pairs=tuple(combinations(range(steps), 2)) if step_pairs is None else step_pairs)
        dtype = dtype or ("float32" if device == "cpu" else model.dtype or "bfloat16")
        sketch, settings = of_the_seven(model, call | work.shared, what, steps, dtype), None
        if before:
            _refuse_other_sizes(before, path, {"model": model.name, "steps": steps, "sample": sample.as_settings()})
    else:
        pipeline = load()
        known = parameters(pipeline)
        call = ({"num_inference_steps": steps} if "num_inference_steps" in known else {}) | call | work.shared
        check(pipeline, call, work)
        made = schedulers.num_steps(pipeline, steps) or steps
        what = replace(what, step_pairs=tuple(combinations(range(made), 2)) if step_pairs is None else step_pairs)
        sketch = of_pipeline(pipeline, call, what, work.tasks[0])
        settings = _settings(pipeline, model.name, sample, what, call)
        if before:
            held = replace(what, previous=previous or held_previous(before))
            make = partial(Recorder, pipeline, path, model.name, before=before, what=held)
            make(_as_held(sample, before)).expect(varying(pipeline, work), **call)
        device = str(getattr(pipeline, "_execution_device", None) or pipeline.device)
    chosen = _previous(sketch, what, previous, before, device)
    return Forecast(
        path,
        sketch,
        replace(what, previous=chosen),
        sample,
        size_of(sketch, what, sample, settings),
        len(work.tasks),
        len(work.tasks) - len(missing_tasks(before, work.tasks)),
        device,
        memory.free_on_device(device),
        memory.free_on_host(),
        free_disk(path),
    )


def first_steps(model: str, pipeline: Any, call: dict[str, Any], what: What, task: Task) -> Sketch | None:
    """What the first steps of a loaded pipeline hand over; None if they fail, which its first prompt will say."""
    try:
        network, *further = find_networks(pipeline).values()
        if model in SEVEN and not further and _is_published(model, network):
            steps = schedulers.num_steps(pipeline, call["num_inference_steps"]) or call["num_inference_steps"]
            return of_the_seven(SEVEN[model], call, what, steps, str(network.dtype).removeprefix("torch."))
        return of_pipeline(pipeline, call, what, task)
    except (RuntimeError, ValueError, TypeError, AttributeError, LookupError, MemoryError, UnsupportedError):
        return None


def settled(sketch: Sketch, what: What, previous: str | None, before: Trace | None, device: Any) -> tuple[What, str]:
    """`what` with the place of the step before, and a line that says where and why."""
    chosen = _previous(sketch, what, previous, before, device)
    free = memory.free_on_device(device)
    told = f"{told_bytes(free)} free on {device}, " if free is not None else ""
    room = f"{told}{told_bytes(memory.free_on_host())} free on the host"
    return replace(what, previous=chosen), (
        f"to measure changes, {told_bytes(sketch.step_nbytes)} of the step before are kept {KEPT[chosen]} ({room})"
    )


def held_previous(before: Trace | None) -> str:
    """Where the step before was kept for the trace at hand, as far as it decides numbers."""
    recorded = before.run.settings.get("recorded") if before else None
    transitions = recorded.get("transitions") if isinstance(recorded, dict) else None
    return "subset" if str(transitions).startswith("subset") else "device"


def elsewhere(device: Any) -> bool:
    """Whether a run is planned for a GPU that is not here."""
    return torch.device(device).type == "cuda" and not torch.cuda.is_available()


def refuse_full_disk(path: Path, size: Size, missing: int) -> None:
    """Raises:
    DiskError: What is missing takes more than is free.
    """
    need, free = missing * size.file, free_disk(path)
    if need > free:
        raise DiskError(
            f"{path}: {plural(missing, 'prompt')} would take about {told_bytes(need)}, and {told_bytes(free)} are "
            "free; give another output, fewer prompts or a smaller --sample, or start anyway with --ignore-disk"
        )


def missing_tasks(before: Trace | None, tasks: list[Task]) -> list[Task]:
    """Those of the tasks that a trace does not hold."""
    held = {prompt.key for prompt in before.prompts} if before else set()
    return [task for task in tasks if (task.text, task.seed, 0) not in held]


def free_disk(path: Path) -> int:
    """Free bytes where the output would be."""
    folder = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
    return shutil.disk_usage(folder).free


def _is_published(model: str, network: Any) -> bool:
    """Whether this is the network that can be sketched without running it."""
    published = {name: value for name, value in config(model).items() if not name.startswith("_")}
    return all(network.config.get(name) == value for name, value in published.items())


def _settings(pipeline: Any, model: str, sample: Sample, what: What, call: dict[str, Any]) -> dict[str, Any]:
    """About what a trace will say of this run."""
    networks = find_networks(pipeline)
    recorded = what.as_settings(what.kinds_for(networks))
    given = call_settings(arguments(pipeline, (), call))
    return describe(pipeline, networks, model, sample) | {"recorded": recorded, "call": given}


def _as_held(sample: Sample, before: Trace) -> Sample:
    """The sample with the pilot of the trace at hand, for what another would give is not known yet."""
    held = before.run.settings.get("sample")
    return replace(sample, pilot=str(held.get("pilot") or "") if isinstance(held, dict) else "")


def _refuse_other_sizes(before: Trace, path: Path, asked: dict[str, Any]) -> None:
    """Refuse what the run would be refused for, as far as that is known without the pipeline.

    Raises:
        ConflictError: The trace was made with other settings.
    """
    found = {"model": before.run.settings.get("model"), "steps": before.num_steps}
    told = told_differences(found | {"sample": before.run.settings.get("sample")}, asked)
    if told:
        raise ConflictError(f"{path}: made with other settings ({told}); trace into another folder")


def _previous(sketch: Sketch, what: What, asked: str | None, before: Trace | None, device: Any) -> str:
    """Where the step before is kept: as asked; else as memory allows, and as the trace at hand was made."""
    if asked:
        return asked
    if held_previous(before) == "subset":
        return "subset"
    if elsewhere(device):
        return "device"
    exact = what.halves or before is not None
    own = memory.own_work(sketch) + memory.anchors(sketch, what)
    return memory.choose(sketch.step_nbytes, own, memory.free_on_device(device), memory.free_on_host(), exact)
