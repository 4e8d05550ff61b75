"""Runs a pipeline over many prompts and records each; a run that was stopped goes on where it was."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from dit_formats.errors import PresentError
from dit_formats.schema import Prompt

from dit_tracer.progress import progress
from dit_tracer.recording.recorder import Recorder, existing_trace
from dit_tracer.recording.settings import Sample


@dataclass
class Outcome:
    """How many prompts a run traced, how many were there before, and what each failed one said."""

    traced: int = 0
    present: int = 0
    failures: list[str] = field(default_factory=list)


def run(
    load: Callable[[], Any],
    prompts: list[str],
    path: Path,
    *,
    model: str,
    seed: int,
    call: dict[str, Any],
    sample: Sample,
    quiet: bool = False,
) -> Outcome:
    """Trace every prompt that the trace at `path` does not hold yet; one that fails leaves a note, and the run goes on.

    Args:
        load: Gives the pipeline; called once it is known that the trace can be written.
        call: Arguments of the pipeline beside prompt and generator.

    Raises:
        TraceError: There is something else at `path`, or a trace of other settings.
    """
    before = existing_trace(path)
    pipeline = load()
    _check_arguments(pipeline, call)
    outcome = Outcome()
    with Recorder(pipeline, path, model, sample, before, num_prompts=len(prompts)) as recorder:
        recorder.expect(prompt="", **call)
        missing = [(index, text) for index, text in enumerate(prompts) if not recorder.has(text, seed)]
        outcome.present = len(prompts) - len(missing)
        for index, text in progress(f"tracing {model}", quiet)(missing):
            if (path / f"{Prompt(index, text, seed).stem}.h5").exists():
                outcome.present += 1  # another run in this folder was faster
                continue
            generator = torch.Generator("cpu").manual_seed(seed)
            try:
                with recorder.prompt(text, seed, index):
                    pipeline(prompt=text, generator=generator, output_type="latent", **call)
                outcome.traced += 1
            except PresentError:
                outcome.present += 1
            except (RuntimeError, ValueError, TypeError) as error:
                reason = " ".join(str(error).split())[:200] or type(error).__name__
                outcome.failures.append(f"{text!r} failed: {reason}; {path} has a note; the same command tries again")
                if not outcome.traced + outcome.present:
                    break  # what the very first prompt cannot do, the others can hardly
    return outcome


def _check_arguments(pipeline: Any, call: dict[str, Any]) -> None:
    known = list(inspect.signature(type(pipeline).__call__).parameters)[1:]
    if call.get("num_images_per_prompt", 1) != 1:
        raise LookupError("num_images_per_prompt: give 1; several images of a prompt are runs with other seeds")
    for name in call:
        if name not in known:
            what = f"{type(pipeline).__name__} has no argument {name!r}"
            raise LookupError(f"{what}; it has {', '.join(known)}")
