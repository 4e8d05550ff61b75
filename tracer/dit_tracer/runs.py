"""Runs a pipeline over many prompts and records each; a run that was stopped goes on where it was."""

from __future__ import annotations

import inspect
import json
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import load_image
from dit_formats.errors import PresentError
from dit_formats.prompts import Request
from dit_formats.schema import Prompt
from PIL import Image

from dit_tracer.models.schedulers import num_steps
from dit_tracer.progress import progress
from dit_tracer.recording.recorder import Recorder, existing_trace
from dit_tracer.recording.settings import Sample, What

OURS = {"self", "prompt", "class_labels", "generator", "num_inference_steps", "output_type", "return_dict"}
"""Arguments of a pipeline that a run gives itself."""


@dataclass
class Outcome:
    """How many prompts a run traced, how many were there before, and what each failed one said."""

    traced: int = 0
    present: int = 0
    failures: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Task:
    """One generation to make: a text, a seed, and arguments of the pipeline that hold for this one."""

    text: str
    seed: int
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Work:
    """All generations of a run.

    Args:
        shared: Arguments that the prompts came with and that are the same for all; they are settings of the trace.
        varies: Names of those that differ from one prompt to the next.
    """

    tasks: list[Task]
    shared: dict[str, Any] = field(default_factory=dict)
    varies: tuple[str, ...] = ()


def plan(requests: list[Request], seeds: list[int], limit: int | None = None) -> Work:
    """The first `limit` prompts with each of the seeds, but for a prompt that brings its own.

    What a prompt may change is a text, a picture, a list. Numbers decide what a trace is made of (how many tokens, how
    much guidance), so they must be given with every prompt, and be equal. This looks at all prompts, also those beyond
    the limit: raising it later goes on with the same trace.

    Raises:
        LookupError: Numbers differ; or one text with one seed comes twice, with other arguments.
    """
    names = sorted({name for request in requests for name in request.arguments} - {"seed"})
    shared = {name: _only([r.arguments.get(name) for r in requests], name) for name in names if _fixed(requests, name)}
    varies = tuple(name for name in names if name not in shared)
    distinct: dict[str, Request] = {}
    for request in requests:
        distinct.setdefault(json.dumps([request.text, request.arguments], sort_keys=True), request)
    tasks: dict[tuple[str, int], Task] = {}
    for request in list(distinct.values())[:limit]:
        for seed in [_seed(request.arguments["seed"])] if "seed" in request.arguments else seeds:
            task = Task(request.text, seed, {name: v for name, v in request.arguments.items() if name in varies})
            if tasks.setdefault((task.text, seed), task) != task:
                raise LookupError(
                    f"{task.text!r} with seed {seed} comes twice, with other arguments; a trace tells prompts apart by "
                    "text and seed, so give one of the lines another seed"
                )
    return Work(list(tasks.values()), shared, varies)


def run(
    load: Callable[[], Any],
    work: Work,
    path: Path,
    *,
    model: str,
    call: dict[str, Any],
    sample: Sample,
    what: What,
    step_pairs: tuple[tuple[int, int], ...] | None = (),
    defaults: dict[str, Any] | None = None,
    quiet: bool = False,
) -> Outcome:
    """Trace every prompt that the trace at `path` does not hold yet; one that fails leaves a note, and the run goes on.

    Args:
        load: Gives the pipeline; called once it is known that the trace can be written.
        call: Arguments of the pipeline beside prompt and generator.
        step_pairs: Of which to record dot products; None for all there are, which only the loaded scheduler knows.
        defaults: Further arguments, left out where the pipeline does not know them.

    Raises:
        TraceError: There is something else at `path`, or a trace of other settings.
        LookupError: The pipeline does not take these arguments.
    """
    before = existing_trace(path)
    pipeline = load()
    known = _parameters(pipeline)
    call = {name: value for name, value in (defaults or {}).items() if name in known} | call | work.shared
    _check(pipeline, call, work)
    what = replace(what, step_pairs=_pairs(step_pairs, pipeline, call.get("num_inference_steps", 0)))
    varies = _varying(pipeline, work)
    outcome = Outcome()
    with Recorder(pipeline, path, model, sample, before, num_prompts=len(work.tasks), what=what) as recorder:
        if not varies:
            recorder.expect(prompt="", **call)
        missing = [(i, task) for i, task in enumerate(work.tasks) if not recorder.has(task.text, task.seed)]
        outcome.present = len(work.tasks) - len(missing)
        for index, task in progress(f"tracing {model}", quiet)(missing):
            if (path / f"{Prompt(index, task.text, task.seed).stem}.h5").exists():
                outcome.present += 1  # another run in this folder was faster
                continue
            try:
                with recorder.prompt(task.text, task.seed, index, varies=varies):
                    _generate(pipeline, task, call)
                outcome.traced += 1
            except PresentError:
                outcome.present += 1
            except (RuntimeError, ValueError, TypeError) as error:
                reason = " ".join(str(error).split())[:200] or type(error).__name__
                note = f"{path} has a note; the same command tries again"
                outcome.failures.append(f"{task.text!r} failed: {reason}; {note}")
                if not outcome.traced + outcome.present:
                    break  # what the very first prompt cannot do, the others can hardly
    return outcome


def _generate(pipeline: Any, task: Task, call: dict[str, Any]) -> None:
    """Call the pipeline for one prompt, with as much of what we give as it knows."""
    ours = {"generator": torch.Generator("cpu").manual_seed(task.seed), "output_type": "latent"}
    known = _parameters(pipeline)
    if "generator" not in known:
        torch.manual_seed(task.seed)
    given = call | _opened(pipeline, task.arguments) | {name: v for name, v in ours.items() if name in known}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the libraries, about themselves
        pipeline(**_subject(pipeline, task.text), **given)


def _pairs(asked: tuple[tuple[int, int], ...] | None, pipeline: Any, steps: int) -> tuple[tuple[int, int], ...]:
    """The pairs of steps. A scheduler may make more steps than it is asked for; where nobody knows, none is refused."""
    if asked == ():
        return ()
    known = num_steps(pipeline, steps)
    if asked is None:
        return tuple(combinations(range(known or steps), 2))
    last = max(late for _, late in asked)
    if known is not None and last >= known:
        raise LookupError(f"--step-pairs names step {last}, and there are steps 0 to {known - 1}")
    return asked


# What a pipeline is called with


def _parameters(pipeline: Any) -> dict[str, inspect.Parameter]:
    return dict(list(inspect.signature(type(pipeline).__call__).parameters.items())[1:])


def _subject(pipeline: Any, text: str) -> dict[str, Any]:
    """The argument that says what to draw: a prompt, or the number (or name) of a class."""
    known = _parameters(pipeline)
    if "prompt" in known:
        return {"prompt": text}
    if "class_labels" not in known:
        raise LookupError(
            f"{type(pipeline).__name__} takes neither prompt nor class_labels; call it yourself under dit_tracer.record"
        )
    if text.strip().isdecimal():
        return {"class_labels": [int(text)]}
    try:
        return {"class_labels": pipeline.get_label_ids([text])}
    except (AttributeError, ValueError):
        raise LookupError(
            f"{type(pipeline).__name__} draws classes, not texts; {text!r} is none, give its number"
        ) from None


def _varying(pipeline: Any, work: Work) -> tuple[str, ...]:
    """Names of the arguments that prompts may differ in within a trace, beside the prompt itself."""
    return (*work.varies, *(() if "prompt" in _parameters(pipeline) else ("class_labels",)))


def _check(pipeline: Any, call: dict[str, Any], work: Work) -> None:
    """Refuse now what calling the pipeline would be refused for, after the first prompt or the hundredth."""
    for name in ("num_images_per_prompt", "num_videos_per_prompt"):
        if call.get(name, 1) != 1:
            raise LookupError(f"{name}: give 1; several images of a prompt are runs with other seeds")
    kind, known = type(pipeline).__name__, _parameters(pipeline)
    for name in [*call, *work.varies]:
        if name not in known:
            raise LookupError(f"{kind} has no argument {name!r}; it has {', '.join(known)}")
    for name in work.varies + tuple(work.shared):
        if name in OURS:
            raise LookupError(f"a line of prompts may not set {name}; the options of dit-trace run do")
    for task in work.tasks:
        subject = _subject(pipeline, task.text)
        _needs(kind, known, {*subject, *call, *task.arguments, *OURS})
        for picture in _pictures(pipeline, task.arguments).values():
            _check_picture(picture)


def _needs(kind: str, known: dict[str, inspect.Parameter], given: Iterable[str]) -> None:
    for parameter in known.values():
        if parameter.default is parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD:
            if parameter.name not in given:
                raise LookupError(
                    f"{kind} needs {parameter.name}; give it with --pipeline-kwargs, or with each prompt in a .jsonl"
                )


def _pictures(pipeline: Any, arguments: dict[str, Any]) -> dict[str, str]:
    """Arguments that are names of files where the pipeline takes a picture."""
    known = _parameters(pipeline)
    return {
        name: value
        for name, value in arguments.items()
        if isinstance(value, str) and ("Image" in str(known[name].annotation) or "image" in name)
    }


def _check_picture(path: str) -> None:
    try:
        with Image.open(path):
            pass
    except OSError as error:
        reason = error.strerror.lower() if error.strerror else "it cannot be read as one"
        raise LookupError(f"{path}: no picture ({reason}); give the path of a .png or .jpg file") from None


def _opened(pipeline: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments with pictures in place of their names."""
    try:
        return arguments | {name: load_image(path) for name, path in _pictures(pipeline, arguments).items()}
    except OSError as error:
        raise ValueError(f"a picture of this prompt is damaged ({error})") from error


# What prompts bring along


def _fixed(requests: list[Request], name: str) -> bool:
    """Whether this argument is a number wherever it is given."""
    values = [request.arguments[name] for request in requests if name in request.arguments]
    return all(isinstance(value, (bool, int, float)) for value in values)


def _only(values: list[Any], name: str) -> Any:
    """The one value that all of them are."""
    different = sorted({json.dumps(value) for value in values}, key=lambda text: (len(text), text))
    if len(different) > 1:
        found = " and ".join("none" if text == "null" else text for text in different[:2])
        raise LookupError(
            f"prompts differ in {name} ({found}), which must be one for all prompts of a trace; trace them apart"
        )
    return values[0]


def _seed(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
        raise LookupError(f"a line of prompts gives the seed {value!r}; give a number from 0 to {2**63 - 1}")
    return value
