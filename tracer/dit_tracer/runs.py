"""Runs a pipeline over many prompts and records each; a run that was stopped goes on where it was."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import combinations
from pathlib import Path
from typing import Any

from dit_formats.errors import ConflictError
from dit_formats.reader import Trace
from dit_formats.schema import Prompt, Run, Timing, told_differences

from dit_tracer.calls import check, generate, opened, parameters, subject, varying
from dit_tracer.claims import Claims
from dit_tracer.encoders import encode_once
from dit_tracer.forecast import first_steps, held_previous, missing_tasks, refuse_full_disk, settled
from dit_tracer.models.schedulers import num_steps
from dit_tracer.pilot import fly, withdrawn
from dit_tracer.pilot import settled as settled_pilot
from dit_tracer.progress import Progress
from dit_tracer.ranks import Rank
from dit_tracer.recording.call import arguments, call_settings, own_arguments
from dit_tracer.recording.generation import Key
from dit_tracer.recording.recorder import Recorder, existing_trace
from dit_tracer.recording.sampling import Positions
from dit_tracer.recording.settings import Sample, What, describe
from dit_tracer.recording.sites import find_networks
from dit_tracer.recording.timing import timed
from dit_tracer.shards import Shards
from dit_tracer.sharing import Outcome, Sharing
from dit_tracer.sizes import size_of
from dit_tracer.stopping import Stopped, Stopping
from dit_tracer.work import Task, Work


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
    previous: str | None = None,
    pilot: bool = False,
    ignore_disk: bool = False,
    quiet: bool = False,
    rank: Rank | None = None,
    stopping: Stopping | None = None,
) -> Outcome:
    """Trace every prompt that the trace at `path` does not hold yet; one that fails leaves a note, and the run goes on.

    Several processes may do the same in one folder at once; each then does a part.

    Args:
        load: Gives the pipeline; called once it is known that the trace can be written.
        call: Arguments of the pipeline beside prompt and generator.
        step_pairs: Of which to record dot products; None for all there are, which only the loaded scheduler knows.
        defaults: Further arguments, left out where the pipeline does not know them.
        release: Whether the pipeline is for this run alone, so that its text encoders may go when all is encoded.
        time: Whether to time a generation of the first prompt, not recorded, before; unless the trace has a timing.
        previous: Where to keep the step before, one of `recording.history.PREVIOUS`; None for what memory allows.
        pilot: Allot the sample to channels by one more generation of the first prompt.
        ignore_disk: Start also where the disk has less room than the trace is expected to need.
        rank: Which of several processes with this command this is.
        stopping: Ends the run early; what is finished is kept.

    Raises:
        TraceError: There is something else at `path`, or a trace of other settings.
        LookupError: The pipeline does not take these arguments.
        DiskError: There is no room on the disk.
    """
    rank, stopping = rank or Rank(), stopping or Stopping()
    before = existing_trace(path)
    pipeline = load()
    known = parameters(pipeline)
    call = {name: value for name, value in (defaults or {}).items() if name in known} | call | work.shared
    check(pipeline, call, work)
    what = replace(what, step_pairs=_pairs(step_pairs, pipeline, call.get("num_inference_steps", 0)))
    job = _Job(pipeline, path, model, before, work, call, sample, what)
    job, told = _prepared(job, rank, previous, pilot, release, ignore_disk)
    with Claims(path) as claims, withdrawn(path, claims):
        recorder = (_with_pilot(job) if pilot else job).recorder()
        asked = _missing(job, recorder, rank)
        outcome = Outcome(present=len(work.tasks) - len(asked))
        if not asked:
            return outcome
        if told and rank.leads and not quiet:
            print(told, file=sys.stderr)
        if time and rank.leads and not (before and before.timing):
            recorder.timing = _timing(job, asked[0][1])
        progress = Progress(f"tracing {model}", Shards(path), work.prompts, quiet or not rank.leads)
        sharing = Sharing(recorder, _recording(job, recorder), claims, stopping, outcome, founded=before is not None)
        _trace(sharing, recorder, asked, progress, stopping)
        beaten = recorder.beaten  # shards that found their name taken when they were written
        outcome.traced, outcome.present = outcome.traced - beaten, outcome.present + beaten
        outcome.stopped = stopping.reason if sharing.left(asked) else None
        if rank.tied and not stopping.signalled and (outcome.failures or outcome.stopped):
            claims.wait_for_others(lambda: stopping.signalled)  # the launcher would end them
    return outcome


@dataclass(frozen=True)
class _Job:
    """A loaded pipeline, and what is to be traced with it.

    Args:
        before: The trace that is at `path` already.
        call: Arguments of the pipeline that are the same for all prompts.
        chosen: Shapes and positions of activations, by a pilot, for a trace that has none yet.
    """

    pipeline: Any
    path: Path
    model: str
    before: Trace | None
    work: Work
    call: dict[str, Any]
    sample: Sample
    what: What
    chosen: tuple[dict[Key, tuple[int, int]], dict[Key, Positions]] | None = None

    @cached_property
    def varies(self) -> tuple[str, ...]:
        """Arguments in which prompts may differ."""
        return varying(self.pipeline, self.work)

    def holding(self, previous: str | None) -> _Job:
        """With the step before kept as asked, or else as the trace at hand has it."""
        return replace(self, what=replace(self.what, previous=previous or held_previous(self.before)))

    def recorder(self) -> Recorder:
        """A recorder of the pipeline; refuses settings that are not those of the trace at hand."""
        prompts = len(self.work.tasks)
        made = Recorder(self.pipeline, self.path, self.model, self.sample, self.before, prompts, self.what, self.chosen)
        made.expect(self.varies, **self.call)
        return made


def _prepared(
    job: _Job, rank: Rank, previous: str | None, pilot: bool, release: bool, ignore_disk: bool
) -> tuple[_Job, str]:
    """The job with its texts encoded and the place of the step before settled, and a line that says where and why."""
    before, tasks = job.before, job.work.tasks
    missing = missing_tasks(before, tasks)
    if not missing:
        return job.holding(previous), ""
    share = missing_tasks(before, tasks[rank.rank :: rank.count]) or missing[:1]
    if before:  # what would be refused is refused before the long preparations
        (_with_pilot(job) if pilot else job).holding(previous).recorder()
    if release:
        encode_once(job.pipeline, share, job.call, others=rank.count > 1)
    sketch = first_steps(job.model, job.pipeline, job.call, job.what, share[0])
    if not sketch:
        return job.holding(previous), ""
    if not ignore_disk:
        refuse_full_disk(job.path, size_of(sketch, job.what, job.sample), len(missing))
    device = getattr(job.pipeline, "_execution_device", job.pipeline.device)
    what, told = settled(sketch, job.what, previous, before, device)
    return replace(job, what=what), told


def _with_pilot(job: _Job) -> _Job:
    """The sample as a pilot allots it, and for a new trace shapes and positions; others have them in their shards."""
    if job.before:
        held = job.before.run.settings.get("sample", {})
        name = str(held.get("pilot") or "new") if isinstance(held, dict) else "new"
        return replace(job, sample=replace(job.sample, pilot=name))
    pipeline, networks = job.pipeline, find_networks(job.pipeline)
    asked = describe(pipeline, networks, job.model, job.sample)
    asked |= {"recorded": job.what.as_settings(job.what.kinds_for(networks))}
    whose = Run(asked | {"call": call_settings(arguments(pipeline, (), job.call))}, {}).signature
    first = job.work.tasks[0]
    found = settled_pilot(job.path, whose, job.sample, lambda: fly(pipeline, job.call, job.what, first))
    sample = replace(job.sample, pilot=found.hash)
    return replace(job, sample=sample, chosen=(found.shapes, found.positions(sample.seed)))


def _timing(job: _Job, task: Task) -> Timing | None:
    try:
        return timed(job.pipeline, partial(generate, job.pipeline, task, job.call), job.what)
    except (RuntimeError, ValueError, TypeError, AttributeError):
        return None  # what this fails of, tracing the same prompt will tell


def _recording(job: _Job, recorder: Recorder) -> Callable[[Prompt, Task, Callable[[], None]], None]:
    """What records the generation of a task, as `Sharing` has it."""

    def record(prompt: Prompt, task: Task, settle: Callable[[], None]) -> None:
        with recorder.prompt(task.text, task.seed, prompt.index, varies=job.varies):
            generate(job.pipeline, task, job.call)
            settle()

    return record


def _trace(
    sharing: Sharing, recorder: Recorder, asked: list[tuple[Prompt, Task]], progress: Progress, stopping: Stopping
) -> None:
    """Trace what is asked for until all is done or the run is to stop, and write to the end."""
    try:
        with progress, recorder:  # which writes to the end before the last line is said
            sharing.trace(asked)
            stopping.close()
    except Stopped:
        pass


def _missing(job: _Job, recorder: Recorder, rank: Rank) -> list[tuple[Prompt, Task]]:
    """What the trace does not hold, in the order of this process."""
    missing = {}
    for place, task in enumerate(job.work.tasks):
        if recorder.has(task.text, task.seed):
            _refuse_other_arguments(job, recorder, task)
        else:
            missing[place] = task
    taken, count = recorder.indices, len(job.work.tasks)
    return [
        (Prompt(_free(place, taken, count), missing[place].text, missing[place].seed), missing[place])
        for place in rank.order(count)
        if place in missing
    ]


def _free(index: int, taken: set[int], count: int) -> int:
    """The place of a task in the trace, by the list alone: two processes with one list agree on it."""
    while index in taken:
        index += count
    return index


def _refuse_other_arguments(job: _Job, recorder: Recorder, task: Task) -> None:
    """A prompt that the trace holds must have been made with the arguments that it would be made with now."""
    held = recorder.own_arguments(task.text, task.seed)
    if held is None:
        return  # a trace of an older version does not say
    try:
        given = job.call | opened(job.pipeline, task.arguments) | subject(job.pipeline, task.text)
    except ValueError as error:
        raise LookupError(str(error)) from error
    asked = own_arguments(arguments(job.pipeline, (), given), job.varies)
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
