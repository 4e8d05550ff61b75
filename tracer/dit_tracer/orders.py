"""What one run was asked to be, and how it is planned and run: for the command, and for the runs of a study."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import click
from dit_formats.prompts import Request

from dit_tracer import runs
from dit_tracer.forecast import Forecast, forecast, missing_tasks
from dit_tracer.models import loading, schedulers
from dit_tracer.models.catalog import Model
from dit_tracer.ranks import Rank
from dit_tracer.recording.recorder import existing_trace
from dit_tracer.recording.settings import Sample, What
from dit_tracer.sharing import Outcome
from dit_tracer.stopping import Stopping
from dit_tracer.work import Work, plan


@dataclass(frozen=True)
class Order:
    """The options of `dit-trace run`, as values.

    Args:
        steps: None for the model's.
        arguments: Of the pipeline, beside the model's own.
        kinds: None for those of the model's family.
        step_pairs: None for all there will be.
        values: How many of each activation are kept, a quarter of that for text.
    """

    model: Model
    requests: list[Request]
    output: Path
    seeds: list[int] = field(default_factory=lambda: [42])
    limit: int | None = None
    steps: int | None = None
    scheduler: str | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    revision: str | None = None
    dtype: str | None = None
    device: str | None = None
    cpu_offload: str | None = None
    kinds: tuple[str, ...] | None = None
    attention: tuple[str, ...] = ()
    stack: bool = True
    boundaries: tuple[str, ...] = ()
    halves: bool = False
    step_pairs: tuple[tuple[int, int], ...] | None = ()
    values: int = 4096
    pilot: bool = False
    previous: str | None = None
    ignore_disk: bool = False
    time: bool = False

    @cached_property
    def work(self) -> Work:
        return plan(self.requests, self.seeds, self.limit)

    def missing(self) -> int:
        """How many prompts the trace does not hold by now; nothing is loaded."""
        return len(missing_tasks(existing_trace(self.output), self.work.tasks))

    def forecast(self) -> Forecast:
        """What the run would make; nothing is written."""
        call, other = self._call, self._other
        return forecast(
            self.model,
            lambda: self._load(Rank(), other),
            self.work,
            self.output,
            call=call,
            sample=self._sample,
            what=self._what,
            step_pairs=self.step_pairs,
            steps=self._steps,
            scheduler=other,
            dtype=self.dtype,
            device=self.device,
            previous=self.previous,
        )

    def run(self, rank: Rank, stopping: Stopping, quiet: bool) -> Outcome:
        """Trace what is missing."""
        call, other = self._call, self._other
        return runs.run(
            lambda: self._load(rank, other),
            self.work,
            self.output,
            model=self.model.name,
            call=call | ({"num_inference_steps": self.steps} if self.steps else {}),
            defaults={"num_inference_steps": self.model.steps},
            sample=self._sample,
            what=self._what,
            step_pairs=self.step_pairs,
            previous=self.previous,
            pilot=self.pilot,
            ignore_disk=self.ignore_disk,
            release=True,
            time=self.time,
            quiet=quiet,
            rank=rank,
            stopping=stopping,
        )

    @property
    def _steps(self) -> int:
        return self.steps or self.model.steps

    @property
    def _other(self) -> schedulers.Choice | None:
        return schedulers.find(self.scheduler) if self.scheduler else None

    @property
    def _call(self) -> dict[str, Any]:
        _refuse_two_values(self.arguments, self.work.shared)
        return self.model.call | self.arguments

    @property
    def _sample(self) -> Sample:
        return Sample(latent=self.values, text=-(-self.values // 4))

    @property
    def _what(self) -> What:
        return What(self.kinds, self.stack, boundaries=self.boundaries, halves=self.halves, attention=self.attention)

    def _load(self, rank: Rank, other: schedulers.Choice | None) -> Any:
        pipeline = loading.load(
            self.model, self.dtype, self.device, rank.local, revision=self.revision, cpu_offload=self.cpu_offload
        )
        if other:
            schedulers.replace(pipeline, other, self._steps)
        if rank.leads:
            given = {"steps": self.steps, "dtype": self.dtype or pipeline.device.type == "cpu"}
            _announce(self.model, _changed(self._call | self.work.shared, self.model, **given))
        return pipeline


def values_kept(sample: int | None, stats_only: bool, pilot: bool) -> int:
    """How many values of an activation are kept, by default."""
    return 0 if stats_only else sample if sample is not None else 1024 if pilot else 4096


def _announce(model: Model, changed: set[str]) -> None:
    """Say before anything runs what a reader of the numbers has to know about the model.

    Args:
        changed: Settings, in the words of `Model.paper`, that the command set itself.
    """
    if model.random_weights:
        click.echo(f"{model.name} has RANDOM WEIGHTS: good for trying options, its numbers mean nothing", err=True)
    kept = [key for key in model.paper if key not in changed and key in model.card]
    other = [key for key in kept if model.paper[key] != model.card[key]]
    if other:
        ours, theirs = (", ".join(f"{key} {said[key]}" for key in other) for said in (model.paper, model.card))
        click.echo(f"{model.name}: as in the paper: {ours}; the model card says {theirs}", err=True)


def _changed(call: dict[str, Any], model: Model, **given: Any) -> set[str]:
    """Which settings of the paper are not used, because something else was given."""
    words = {"height": "size", "width": "size", "num_frames": "frames", "video_length": "frames"}
    words[model.guidance] = "guidance"
    names = {words[name] for name in words if name in call and call[name] != model.call.get(name)}
    return names | {name for name, value in given.items() if value}


def _refuse_two_values(asked: dict[str, Any], shared: dict[str, Any]) -> None:
    for name in asked.keys() & shared.keys():
        if asked[name] != shared[name]:
            raise click.UsageError(f"{name} is {asked[name]} in an option and {shared[name]} in the prompts; give one")
