"""Records prompts into a trace: ties clock, capture, statistics and sample together, and hands shards to the writer."""

from __future__ import annotations

import functools
import json
import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from dit_formats.console import plural
from dit_formats.errors import ConflictError, PresentError, TraceError
from dit_formats.reader import Trace, open_trace, shard_paths
from dit_formats.schema import STACK, Layer, Prompt, Run, Shard, Timing, told_differences
from dit_formats.writer import clear_failure, write_failure, write_shard
from numpy.typing import NDArray

from dit_tracer.recording.call import arguments, call_settings, images_of, is_unguided, longest_text, own_arguments
from dit_tracer.recording.capture import Capture
from dit_tracer.recording.clock import Clock
from dit_tracer.recording.generation import Generation, Key, Places, positions_of, shapes_of
from dit_tracer.recording.meter import Meter
from dit_tracer.recording.patching import around
from dit_tracer.recording.sampling import Positions
from dit_tracer.recording.settings import (
    Sample,
    What,
    adapter_scales,
    comparable,
    count_parameters,
    describe,
    guider_of,
    networks_now,
    provenance,
)
from dit_tracer.recording.sites import OVERFLOW, NonFiniteError, UnsupportedError, family_of, find_networks
from dit_tracer.recording.stack import Stack
from dit_tracer.recording.writing import Background


def record(
    pipeline: Any,
    path: str | Path,
    *,
    model: str | None = None,
    sample: Sample | None = None,
    what: What | None = None,
    **options: Any,
) -> Recorder:
    """A recorder of `pipeline` into the trace at `path`, new or of the same settings; use it in a `with` block.

    Args:
        pipeline: Any diffusers pipeline with a transformer. It computes what it would compute anyway, to the bit.
        path: Folder of the trace; made when the first prompt is done.
        model: Name to give the model; the pipeline's own by default.
        sample: How much to keep of the activations themselves.
        what: What to record; its fields may also be given here by name, as `kinds=("k", "v", "a", "f")` or, for a
            network whose attention modules are not of diffusers' classes, `attention=["blocks.*.attn"]`.

    Raises:
        TraceError: There is something else at `path`, or a trace with other settings.
        UnsupportedError: The pipeline has no attention modules that are known; the message shows what it has.

    Example:
        with dit_tracer.record(pipe, "flux.trace") as recorder:
            with recorder.prompt(text, seed=42):
                pipe(text, generator=torch.Generator().manual_seed(42))
    """
    name = model or Path(str(getattr(pipeline, "name_or_path", "") or type(pipeline).__name__)).name
    named = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    what = replace(what or What(), **named)
    return Recorder(pipeline, Path(path), name, sample or Sample(), existing_trace(Path(path)), what=what)


class Recorder:
    """Records generations of a pipeline; made by `record`.

    Shards are written in the background. What goes wrong there is raised by the next `prompt`, or by the end of the
    `with` block, which waits until everything is written.

    Args:
        before: The trace that is at `path` already, as `existing_trace` gives it.
        num_prompts: How many prompts the trace is meant to have.
        pilot: Shapes and positions of activations that a pilot chose, for a trace that has none yet.
    """

    def __init__(
        self,
        pipeline: Any,
        path: Path,
        model: str,
        sample: Sample,
        before: Trace | None,
        num_prompts: int | None = None,
        what: What | None = None,
        pilot: tuple[dict[Key, tuple[int, int]], dict[Key, Positions]] | None = None,
    ) -> None:
        self.path = path
        self._pipeline = pipeline
        self._num_prompts = num_prompts
        self._what = what = what or What()
        self._networks = networks = find_networks(pipeline)
        self._adapters = _scales(networks)
        self._parameters = count_parameters(networks)
        self._kinds = what.kinds_for(networks)
        self._clock = Clock(pipeline, networks)
        self._clock.on_step = self._on_step
        self._writer = Background()
        self._meter = Meter(self._clock, what)
        self._capture = Capture(networks, self._clock, self._meter.on_activation, self._kinds, what.attention)
        stack = functools.partial(Stack, networks, self._capture, self._clock, self._meter.on_state, what.boundaries)
        self._stack = stack() if what.stack else None
        self._settings = describe(pipeline, networks, model, sample) | {"recorded": what.as_settings(self._kinds)}
        self.timing: Timing | None = None
        """How long a generation takes; written with every prompt."""
        self._generation: Generation | None = None
        self._entered = self._finished = False
        prompts = before.prompts if before else ()
        self._keys = {prompt.key: prompt for prompt in prompts}
        self._next = 1 + max((prompt.index for prompt in prompts), default=-1)
        self._shape: tuple[Any, ...] | None = None
        shapes, chosen = (shapes_of(before), None) if before else pilot or ({}, None)
        if before and sample.pilot:
            chosen = positions_of(before)
        self._new_places = functools.partial(Places, sample, shapes, chosen=chosen)
        self._places = self._new_places()
        if before:
            found = before.run.settings
            self._shape = before.layers, before.timesteps, before.sigmas
            self._refuse_other(found, {"call": found.get("call"), **self._settings})
            self._settings["call"] = found.get("call")

    def __enter__(self) -> Recorder:
        with ExitStack() as undo:
            undo.enter_context(self._clock)
            undo.enter_context(self._capture)
            if self._stack is not None:
                undo.enter_context(self._stack)
            undo.enter_context(around(type(self._pipeline), "__call__", self._pipeline, self._on_generate))
            self._undo = undo.pop_all()
        self._entered = True
        return self

    def __exit__(self, *error: object) -> None:
        self._entered = False
        self._meter.close()
        try:
            self._undo.close()
        finally:
            self._writer.close()

    @property
    def beaten(self) -> int:
        """Prompts that were traced here for nothing, because another process had written them meanwhile."""
        return self._writer.beaten

    def flush(self) -> None:
        """Wait until every prompt so far is written.

        Raises:
            OSError: One could not be.
        """
        self._writer.flush()

    def expect(self, varies: tuple[str, ...] = (), **call: Any) -> None:
        """Refuse now what calling the pipeline with these arguments would be refused for.

        Args:
            varies: Arguments that need not be the same for all prompts, as for `prompt`.

        Raises:
            ConflictError: The trace was made with other arguments.
        """
        self._accept_call(call_settings(arguments(self._pipeline, (), call)), varies)

    def refuse_others(self, run: Run) -> None:
        """Refuse to add to a trace that is of other settings, by a shard that appeared after recording began.

        Raises:
            ConflictError: It was made with other settings.
        """
        self._refuse_other(run.settings, {"call": run.settings.get("call"), **self._settings})

    def has(self, text: str, seed: int = 0, image: int = 0) -> bool:
        """Whether the trace holds this prompt already."""
        return (text, seed, image) in self._keys

    @property
    def indices(self) -> set[int]:
        """Places in the list of prompts that are taken."""
        return {prompt.index for prompt in self._keys.values()}

    def own_arguments(self, text: str, seed: int = 0) -> dict[str, Any] | None:
        """What the trace says that was given with this prompt alone; None if it does not say."""
        own = self._keys[text, seed, 0].arguments
        return json.loads(own) if own else None

    @contextmanager
    def prompt(
        self, text: str, seed: int = 0, index: int | None = None, *, varies: tuple[str, ...] = ()
    ) -> Iterator[None]:
        """Record the one generation made in this block under `text` and `seed`.

        Should the block fail, a note says why, and the trace stays as it was.

        Args:
            varies: Arguments of the pipeline's call that belong to this prompt, as a negative prompt or an image, and
                need not be the same for all prompts of the trace.

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
        self._varies, self._own = varies, {}
        self._generation = Generation(self._kinds, self._what.step_pairs)
        self._meter.start(self._generation, self._places)
        try:
            yield
            self._finish(prompt, self._generation)
        except (ConflictError, OSError):
            raise  # not the prompt's fault: another process was faster, the settings are other, the disk is full
        except Exception:
            self.path.mkdir(parents=True, exist_ok=True)
            write_failure(self.path, prompt, traceback.format_exc())
            raise
        finally:
            self._generation = None
            self._meter.stop()
            self._capture.reset()
            if self._shape is None:  # nothing is in the trace yet that the next prompt would have to fit
                self._places = self._new_places()
                self._settings.pop("call", None)

    # While a generation runs

    def _on_step(self) -> None:
        if self._generation is not None:
            self._generation.flush()

    def _on_generate(self, generate: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self._generation is not None:
            given = arguments(self._pipeline, args, kwargs)
            if self._clock.step or isinstance(given.get("prompt"), (list, tuple)) and len(given["prompt"]) > 1:
                raise TraceError("one generation per prompt: open another `with recorder.prompt(...)` for the next")
            self._refuse_changes()
            self._accept_call(call_settings(given), self._varies)
            self._own = own_arguments(given, self._varies)
            self._places.text_tokens = longest_text(self._pipeline, self._networks, given)
            self._clock.unguided = is_unguided(given)
            self._clock.images = images_of(given, any(family_of(n).one_image for n in self._networks.values()))
        result = generate(*args, **kwargs)
        self._finished = not getattr(self._pipeline, "interrupt", False)
        return result

    def _refuse_changes(self) -> None:
        """What was looked at when recording began must still be there."""
        now = networks_now(self._pipeline, self._networks)
        changed = {
            "the scheduler": self._pipeline.scheduler is not self._clock.scheduler,
            "the transformer": find_networks(self._pipeline) != self._networks,
            "the strength of an adapter": _scales(self._networks) != self._adapters,
            "the weights or their precision": any(self._settings[name] != value for name, value in now.items()),
            "the guider": guider_of(self._pipeline) != self._settings["guider"],
        }
        for what in (name for name, differs in changed.items() if differs):
            raise ConflictError(f"{what} changed after recording began; change that before, for a new trace")
        if any(getattr(network, "is_cache_enabled", False) for network in self._networks.values()):
            raise UnsupportedError("a cache is enabled, which skips what is to be measured; disable_cache() first")

    # When it is done

    def _finish(self, prompt: Prompt, generation: Generation) -> None:
        """Check what was recorded and have it written."""
        if not generation.num_images:
            raise TraceError("nothing was recorded: call the pipeline inside `with recorder.prompt(...)`")
        if not self._finished:
            raise TraceError(f"the generation stopped after {self._clock.step} steps; it was not recorded")
        if not self._clock.step:
            raise UnsupportedError(
                f"{type(self._pipeline).__name__} never called the step of its scheduler (it may step copies of it); "
                "without steps there is nothing to compare, so it cannot be traced"
            )
        late = [pair for pair in self._what.step_pairs if max(pair) >= self._clock.step]
        if late:
            pair = "{}:{}".format(*late[0])
            raise TraceError(f"the pair of steps {pair} was asked for, and there are steps 0 to {self._clock.step - 1}")
        if self._capture.silent:
            few = ", ".join(self._capture.silent[:3]) + (", ..." if len(self._capture.silent) > 3 else "")
            raise UnsupportedError(
                f"{plural(len(self._capture.silent), 'layer')} never ran in this generation: {few}; "
                "choose the layers that do with attention=[...] (--attention)"
            )
        layers = tuple(Layer(site.name, site.type, site.heads) for site in self._capture.fired.values())
        timesteps, sigmas = np.array(self._clock.timesteps), np.array(self._clock.sigmas)
        self._refuse_other_shape(layers, timesteps, sigmas)
        generation.flush()
        self._refuse_nonfinite(generation)
        device = getattr(self._pipeline, "device", None) or next(self._capture.sites[0].module.parameters()).device
        run = Run(self._settings, provenance(self._num_prompts, str(device), self._parameters))
        self.path.mkdir(parents=True, exist_ok=True)
        own = json.dumps(self._own, ensure_ascii=False, sort_keys=True)
        images = [
            Prompt(prompt.index + image, prompt.text, prompt.seed, image, own) for image in range(generation.num_images)
        ]
        names, places, timing, path = list(self._capture.fired), self._places, self.timing, self.path

        def write() -> None:
            for image, one in enumerate(images):
                streams = generation.streams(image, names, len(timesteps), places)
                write_shard(path, Shard(run, (one,), layers, timesteps, sigmas, streams, timing))
                clear_failure(path, one)

        self._writer.submit(write)
        for one in images:
            self._keys[one.key] = one
            self._next = max(self._next, one.index + 1)

    def _refuse_nonfinite(self, generation: Generation) -> None:
        """What the network predicts must be finite; of values inside it, those that are not are counted."""
        whole = (STACK, "prediction") if self._what.stack else ("latent", list(self._capture.fired)[-1])
        found = generation.nonfinite(*whole)
        if found:
            step, layer = generation.nonfinite("latent") or found
            raise NonFiniteError(
                f"the prediction has values that are not finite from step {found[0]} on, layers from step {step} on, "
                f"first {layer}; {OVERFLOW}"
            )

    def _accept_call(self, call: dict[str, Any], varies: tuple[str, ...]) -> None:
        """All prompts of a trace are generated with the same arguments, but for those that belong to the prompt."""
        call = {name: value for name, value in call.items() if name not in varies}
        call |= {"varies": sorted(varies)} if varies else {}
        self._refuse_other({"call": self._settings.setdefault("call", call)}, {"call": call})

    def _refuse_other(self, found: dict[str, Any], asked: dict[str, Any]) -> None:
        """The trace at hand must have been made with the same settings."""
        told = told_differences(*comparable(found, asked))
        if told:
            raise ConflictError(f"{self.path}: made with other settings ({told}); trace into another folder")

    def _refuse_other_shape(self, layers: tuple[Layer, ...], timesteps: Any, sigmas: Any) -> None:
        """All prompts of a trace run through the same layers and steps."""
        shape = layers, timesteps, sigmas
        self._shape = self._shape or shape
        alike = layers == self._shape[0], *map(_equal, self._shape[1:], shape[1:])
        for name, same in zip(("layers", "timesteps", "sigmas"), alike):
            if not same:
                raise ConflictError(f"{self.path}: this generation has other {name} than those before; trace it apart")


def existing_trace(path: Path) -> Trace | None:
    """The trace that is at `path` already, if any.

    Raises:
        ConflictError: There is something else.
    """
    if not path.exists():
        return None
    if not path.is_dir():
        raise ConflictError(f"{path}: is a file, and a trace is written into a folder; give another output")
    if shard_paths(path):
        return open_trace(path)
    strangers = [name for name in os.listdir(path) if not name.startswith(".") and not name.endswith(".failed")]
    if strangers:
        raise ConflictError(f"{path}: a folder with other things in it ({strangers[0]}); give another output")
    return None


def _equal(one: NDArray[np.float64], other: NDArray[np.float64]) -> bool:
    return np.array_equal(one, other, equal_nan=True)


def _scales(networks: dict[str, Any]) -> list[str]:
    return [scale for network in networks.values() for scale in adapter_scales(network)]
