"""Records prompts into a trace: ties clock, capture, statistics and sample together, and hands shards to the writer."""

from __future__ import annotations

import functools
import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from dit_formats.errors import ConflictError, PresentError, TraceError
from dit_formats.reader import Trace, open_trace, shard_paths
from dit_formats.schema import Layer, Prompt, Run, Shard, told_differences
from dit_formats.writer import clear_failure, write_failure, write_shard
from torch import Tensor

from dit_tracer.recording.capture import Capture, Site, find_transformers
from dit_tracer.recording.clock import Clock
from dit_tracer.recording.generation import Generation, Places, shapes_of
from dit_tracer.recording.history import History
from dit_tracer.recording.patching import around
from dit_tracer.recording.settings import Sample, call_settings, describe, provenance
from dit_tracer.recording.statistics import step_sums, transition_sums


def record(pipeline: Any, path: str | Path, *, model: str | None = None, sample: Sample | None = None) -> Recorder:
    """A recorder of `pipeline` into the trace at `path`, new or of the same settings; use it in a `with` block.

    Args:
        pipeline: Any diffusers pipeline with a transformer. It computes what it would compute anyway, to the bit.
        path: Folder of the trace; made when the first prompt is done.
        model: Name to give the model; the pipeline's own by default.
        sample: How much to keep of the activations themselves.

    Raises:
        TraceError: There is something else at `path`, or a trace with other settings.

    Example:
        with dit_tracer.record(pipe, "flux.trace") as recorder:
            with recorder.prompt(text, seed=42):
                pipe(text, generator=torch.Generator().manual_seed(42))
    """
    name = model or Path(str(getattr(pipeline, "name_or_path", "") or type(pipeline).__name__)).name
    return Recorder(pipeline, Path(path), name, sample or Sample(), existing_trace(Path(path)))


class Recorder:
    """Records generations of a pipeline; made by `record`.

    Args:
        before: The trace that is at `path` already, as `existing_trace` gives it.
        num_prompts: How many prompts the trace is meant to have.
    """

    def __init__(
        self,
        pipeline: Any,
        path: Path,
        model: str,
        sample: Sample,
        before: Trace | None,
        num_prompts: int | None = None,
    ) -> None:
        self.path = path
        self._pipeline = pipeline
        self._num_prompts = num_prompts
        transformers = find_transformers(pipeline)
        self._clock = Clock(pipeline, transformers)
        self._capture = Capture(transformers, self._clock, self._on_activation)
        self._settings = describe(pipeline, transformers, model, sample)
        self._sample = sample
        self._layers: dict[str, Site] = {}
        self._history = History()
        self._generation: Generation | None = None
        self._entered = self._finished = False
        prompts = before.prompts if before else ()
        self._keys = {prompt.key for prompt in prompts}
        self._next = 1 + max((prompt.index for prompt in prompts), default=-1)
        self._shape: tuple[Any, ...] | None = None
        self._places = Places(sample, shapes_of(before) if before else None)
        if before:
            found = before.run.settings
            self._shape = before.layers, tuple(before.timesteps), tuple(before.sigmas)
            self._refuse_other(found, {"call": found.get("call"), **self._settings})
            self._settings["call"] = found.get("call")

    def __enter__(self) -> Recorder:
        with ExitStack() as undo:
            undo.enter_context(self._clock)
            undo.enter_context(self._capture)
            undo.enter_context(around(type(self._pipeline), "__call__", self._pipeline, self._on_generate))
            self._undo = undo.pop_all()
        self._entered = True
        return self

    def __exit__(self, *error: object) -> None:
        self._entered = False
        self._undo.close()

    def expect(self, **call: Any) -> None:
        """Refuse now what calling the pipeline with these arguments would be refused for.

        Raises:
            ConflictError: The trace was made with other arguments.
        """
        generate = functools.partial(type(self._pipeline).__call__, self._pipeline)
        self._accept_call(call_settings(generate, (), call))

    def has(self, text: str, seed: int = 0, image: int = 0) -> bool:
        """Whether the trace holds this prompt already."""
        return (text, seed, image) in self._keys

    @contextmanager
    def prompt(self, text: str, seed: int = 0, index: int | None = None) -> Iterator[None]:
        """Record the one generation made in this block under `text` and `seed`.

        Should the block fail, a note says why, and the trace stays as it was.

        Raises:
            PresentError: The trace holds this prompt already.
            TraceError: The block made no generation, or one that does not fit the trace.
        """
        if not self._entered or self._generation is not None:
            raise TraceError("prompts are recorded one at a time, inside `with dit_tracer.record(...) as recorder`")
        if self.has(text, seed):
            raise PresentError(f"{self.path}: holds this prompt with seed {seed} already ({text!r}); ask has() first")
        prompt = Prompt(self._next if index is None else index, text, seed)
        self._clock.reset()
        self._capture.reset()
        self._finished = False
        self._generation = Generation()
        try:
            yield
            self._write(prompt, self._generation)
        except (ConflictError, OSError):
            raise  # not the prompt's fault: another process was faster, the settings are other, the disk is full
        except Exception:
            self.path.mkdir(parents=True, exist_ok=True)
            write_failure(self.path, prompt, traceback.format_exc())
            raise
        finally:
            self._generation = None
            self._history.clear()
            if self._shape is None:  # nothing is in the trace yet that the next prompt would have to fit
                self._layers, self._places = {}, Places(self._sample)
                self._settings.pop("call", None)

    # While a generation runs

    def _on_generate(self, generate: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self._generation is not None:
            if self._clock.step:
                raise TraceError("one generation per prompt: open another `with recorder.prompt(...)` for the next")
            if self._pipeline.scheduler is not self._clock.scheduler:
                raise ConflictError(
                    "the scheduler was replaced after recording began; replace it before, for a new trace"
                )
            self._accept_call(call_settings(generate, args, kwargs))
        result = generate(*args, **kwargs)
        self._finished = not getattr(self._pipeline, "interrupt", False)
        return result

    def _on_activation(self, site: Site, stream: str, kind: str, tensor: Tensor) -> None:
        if self._generation is None:
            return
        self._layers.setdefault(site.name, site)
        key, step, branches = (stream, kind, site.name), self._clock.step, self._clock.branches
        series = [self._generation.series(key, branch, tensor.dtype) for branch in branches]
        if step in series[0].step_sums:
            return  # a further call within the step, as skip-layer guidance makes: the first one counts
        x = _grouped(tensor.detach(), self._clock.batch)
        previous = self._history.swap((key, branches), step, x)
        sums, sample = step_sums(x), x[(slice(None), *self._places(key, x).index)]
        changes = transition_sums(previous, x) if previous is not None else None
        images = len(x) // len(branches)
        for place, one in enumerate(series):
            part = slice(place * images, (place + 1) * images)
            one.step_sums[step], one.samples[step] = sums[part], sample[part]
            if changes is not None:
                one.transition_sums[step - 1] = changes[part]

    # When it is done

    def _write(self, prompt: Prompt, generation: Generation) -> None:
        if not generation.num_images:
            raise TraceError("nothing was recorded: call the pipeline inside `with recorder.prompt(...)`")
        if not self._finished:
            raise TraceError(f"the generation stopped after {self._clock.step} steps; it was not recorded")
        layers = tuple(Layer(site.name, site.type, site.heads) for site in self._layers.values())
        timesteps, sigmas = np.array(self._clock.timesteps), np.array(self._clock.sigmas)
        self._refuse_other_shape(layers, timesteps, sigmas)
        run = Run(self._settings, provenance(self._num_prompts, str(self._pipeline.device)))
        self.path.mkdir(parents=True, exist_ok=True)
        for image in range(generation.num_images):
            one = Prompt(prompt.index + image, prompt.text, prompt.seed, image)
            streams = generation.streams(image, list(self._layers), len(timesteps), self._places)
            write_shard(self.path, Shard(run, (one,), layers, timesteps, sigmas, streams))
            clear_failure(self.path, one)
            self._keys.add(one.key)
            self._next = max(self._next, one.index + 1)

    def _accept_call(self, call: dict[str, Any]) -> None:
        """All prompts of a trace are generated with the same arguments."""
        self._refuse_other({"call": self._settings.setdefault("call", call)}, {"call": call})

    def _refuse_other(self, found: dict[str, Any], asked: dict[str, Any]) -> None:
        """The trace at hand must have been made with the same settings."""
        told = told_differences(found, asked)
        if told:
            raise ConflictError(f"{self.path}: made with other settings ({told}); trace into another folder")

    def _refuse_other_shape(self, layers: tuple[Layer, ...], timesteps: Any, sigmas: Any) -> None:
        """All prompts of a trace run through the same layers and steps."""
        shape = layers, tuple(timesteps), tuple(sigmas)
        self._shape = self._shape or shape
        for name, old, new in zip(("layers", "timesteps", "sigmas"), self._shape, shape):
            if old != new:
                raise ConflictError(f"{self.path}: this generation has other {name} than those before; trace it apart")


def existing_trace(path: Path) -> Trace | None:
    """The trace that is at `path` already, if any.

    Raises:
        ConflictError: There is something else.
    """
    if not path.exists():
        return None
    if not path.is_dir():
        raise ConflictError(f"{path}: exists and is not a trace; give another output")
    if shard_paths(path):
        return open_trace(path)
    strangers = [name for name in os.listdir(path) if not name.startswith(".") and not name.endswith(".failed")]
    if strangers:
        raise ConflictError(f"{path}: a folder with other things in it ({strangers[0]}); give another output")
    return None


def _grouped(tensor: Tensor, batch: int) -> Tensor:
    """A view (group, fold, head, token, channel); models fold frames or places into the batch, group is the rest."""
    if tensor.ndim == 3:
        tensor = tensor.unsqueeze(1)
    return tensor.unflatten(0, (batch, -1))
