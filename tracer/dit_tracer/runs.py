"""Runs a pipeline over many prompts and records each; a run that was stopped goes on where it was."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

from dit_formats.errors import ConflictError, PresentError
from dit_formats.schema import Prompt, Timing, told_differences

from dit_tracer.calls import check, generate, opened, parameters, subject, varying
from dit_tracer.encoders import encode_once
from dit_tracer.models.schedulers import num_steps
from dit_tracer.progress import progress
from dit_tracer.recording.call import arguments, own_arguments
from dit_tracer.recording.recorder import Recorder, existing_trace
from dit_tracer.recording.settings import Sample, What
from dit_tracer.recording.timing import timed
from dit_tracer.work import Task, Work


@dataclass
class Outcome:
    """How many prompts a run traced, how many were there before, and what each failed one said."""

    traced: int = 0
    present: int = 0
    failures: list[str] = field(default_factory=list)


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
    release: bool = False,
    time: bool = False,
    quiet: bool = False,
) -> Outcome:
    """Trace every prompt that the trace at `path` does not hold yet; one that fails leaves a note, and the run goes on.

    Args:
        load: Gives the pipeline; called once it is known that the trace can be written.
        call: Arguments of the pipeline beside prompt and generator.
        step_pairs: Of which to record dot products; None for all there are, which only the loaded scheduler knows.
        defaults: Further arguments, left out where the pipeline does not know them.
        release: Whether the pipeline is for this run alone, so that its text encoders may go when all is encoded.
        time: Whether to time a generation of the first prompt, not recorded, before; unless the trace has a timing.

    Raises:
        TraceError: There is something else at `path`, or a trace of other settings.
        LookupError: The pipeline does not take these arguments.
    """
    before = existing_trace(path)
    pipeline = load()
    known = parameters(pipeline)
    call = {name: value for name, value in (defaults or {}).items() if name in known} | call | work.shared
    check(pipeline, call, work)
    what = replace(what, step_pairs=_pairs(step_pairs, pipeline, call.get("num_inference_steps", 0)))
    varies = varying(pipeline, work)
    outcome = Outcome()
    held = {(prompt.text, prompt.seed) for prompt in before.prompts} if before else set()
    tasks = [task for task in work.tasks if (task.text, task.seed) not in held]
    if release:
        encode_once(pipeline, tasks, call)
    recorder = Recorder(pipeline, path, model, sample, before, num_prompts=len(work.tasks), what=what)
    recorder.expect(varies, **call)
    if time and tasks and not (before and before.timing):
        recorder.timing = _timing(pipeline, tasks[0], call, what)
    with recorder:
        taken, missing = recorder.indices, []
        for index, task in enumerate(work.tasks):
            if recorder.has(task.text, task.seed):
                _refuse_other_arguments(recorder, pipeline, task, call, varies)
            else:
                missing.append((_free(index, taken, len(work.tasks)), task))
        outcome.present = len(work.tasks) - len(missing)
        for index, task in progress(f"tracing {model}", quiet)(missing):
            if (path / f"{Prompt(index, task.text, task.seed).stem}.h5").exists():
                outcome.present += 1  # another run in this folder was faster
                continue
            try:
                with recorder.prompt(task.text, task.seed, index, varies=varies):
                    generate(pipeline, task, call)
                outcome.traced += 1
            except PresentError:
                outcome.present += 1
            except (RuntimeError, ValueError, TypeError, AttributeError, LookupError) as error:
                reason = " ".join(str(error).split())[:200] or type(error).__name__
                note = f"{path} has a note; the same command tries again"
                outcome.failures.append(f"{task.text!r} failed: {reason}; {note}")
                if not outcome.traced + outcome.present:
                    break  # what the very first prompt cannot do, the others can hardly
    return outcome


def _timing(pipeline: Any, task: Task, call: dict[str, Any], what: What) -> Timing | None:
    try:
        return timed(pipeline, partial(generate, pipeline, task, call), what)
    except (RuntimeError, ValueError, TypeError, AttributeError):
        return None  # what this fails of, tracing the same prompt will tell


def _free(index: int, taken: set[int], count: int) -> int:
    """The place of a task in the trace, by the list alone: two processes with one list agree on it."""
    while index in taken:
        index += count
    return index


def _refuse_other_arguments(
    recorder: Recorder, pipeline: Any, task: Task, call: dict[str, Any], varies: tuple[str, ...]
) -> None:
    """A prompt that the trace holds must have been made with the arguments that it would be made with now."""
    held = recorder.own_arguments(task.text, task.seed)
    if held is None:
        return  # a trace of an older version does not say
    try:
        given = call | opened(pipeline, task.arguments) | subject(pipeline, task.text)
    except ValueError as error:
        raise LookupError(str(error)) from error
    asked = own_arguments(arguments(pipeline, (), given), varies)
    told = told_differences(held, asked)
    if told:
        raise ConflictError(f"{recorder.path}: {task.text!r} was traced with other arguments ({told}); trace it apart")


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
