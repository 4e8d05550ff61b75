"""What a model's networks hand over while they generate: every activation with its size, no numbers.

The seven at full size are sketched without their weights, on the meta device; everything else by really running a step
or two.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from dit_formats.schema import STACK, Layer
from torch import Tensor, nn

from dit_tracer.calls import generate, subject
from dit_tracer.models import fullsize
from dit_tracer.models.catalog import Model
from dit_tracer.models.schedulers import num_steps
from dit_tracer.recording.call import arguments, is_unguided, longest_text
from dit_tracer.recording.capture import Capture
from dit_tracer.recording.clock import Clock
from dit_tracer.recording.generation import Key
from dit_tracer.recording.settings import What
from dit_tracer.recording.sites import family_of, find_networks
from dit_tracer.recording.stack import Stack
from dit_tracer.work import Task

FEW = 2
"""Steps that show what a network hands over; where there are two networks, one more."""


@dataclass
class Activation:
    """One activation of a step, in one branch.

    Args:
        tokens: Of one image, over all frames; of texts, as many as a prompt may have.
        present: Of these, as many as there were.
        seen: Steps in which it was handed over.
    """

    tokens: int
    present: int
    channels: int
    dtype: torch.dtype
    seen: set[int] = field(default_factory=set)

    @property
    def size(self) -> int:
        return self.tokens * self.channels

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize


@dataclass(frozen=True)
class Sketch:
    """All activations of a generation, by stream, kind and layer, and by branch.

    Args:
        layers: As a trace lists them, in the order in which they ran.
        steps: How many a generation makes.
        seen: In how many of them this was seen.
        configs: Configurations of the networks, by name.
    """

    layers: tuple[Layer, ...]
    kinds: tuple[str, ...]
    activations: dict[Key, dict[str, Activation]]
    steps: int
    seen: int
    configs: dict[str, Any]

    @property
    def streams(self) -> tuple[str, ...]:
        return tuple(sorted({stream for stream, _, _ in self.activations}))

    @property
    def branches(self) -> tuple[str, ...]:
        return tuple(sorted({branch for found in self.activations.values() for branch in found}))

    @property
    def step_nbytes(self) -> int:
        """Bytes of all activations of one step, as many as exact changes keep of the step before."""
        return sum(one.nbytes for found in self.activations.values() for one in found.values())

    @property
    def largest_nbytes(self) -> int:
        return max(one.nbytes for found in self.activations.values() for one in found.values())


@contextmanager
def watched(
    networks: dict[str, nn.Module], scheduler: Any, what: What, sink: Callable[..., None]
) -> Iterator[tuple[Clock, Capture]]:
    """While the block runs, `sink(key, tensor)` gets every activation, as `recording.capture.Sink` describes them."""
    clock = Clock(SimpleNamespace(scheduler=scheduler or FlowMatchEulerDiscreteScheduler()), networks)
    capture = Capture(
        networks,
        clock,
        lambda layer, stream, kind, tensor, lengths: sink((stream, kind, layer), tensor),
        what.kinds_for(networks),
        what.attention,
    )
    with ExitStack() as stack:
        stack.enter_context(clock)
        stack.enter_context(capture)
        if what.stack:
            states = Stack(networks, capture, clock, lambda site, x: sink((STACK, "x", site), x), what.boundaries)
            stack.enter_context(states)
        stack.enter_context(torch.no_grad())
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # of the libraries, about themselves
        yield clock, capture


def sketch(
    networks: dict[str, nn.Module],
    run: Callable[[], None],
    what: What,
    steps: int,
    scheduler: Any = None,
    text_tokens: int = 0,
    unguided: bool = False,
) -> Sketch:
    """What the networks hand over when `run` runs them.

    Args:
        text_tokens: As many as a prompt may have.
        unguided: Whether a call that looks like two guidance halves is none.
    """
    found: dict[Key, dict[str, Activation]] = {}

    def note(key: Key, tensor: Tensor) -> None:
        folds = len(tensor) // clock.batch if len(tensor) % clock.batch == 0 else 1
        tokens, heads = tensor.shape[-2], tensor.shape[1] if tensor.ndim == 4 else 1
        longest = max(tokens, text_tokens) if key[0] == "text" else tokens
        one = Activation(folds * longest, folds * tokens, heads * tensor.shape[-1], tensor.dtype)
        for branch in clock.branches:
            found.setdefault(key, {}).setdefault(branch, one).seen.add(clock.step)

    with watched(networks, scheduler, what, note) as (clock, capture):
        clock.unguided = unguided
        run()
    layers = tuple(Layer(site.name, site.type, site.heads) for site in capture.fired.values())
    configs = {name: dict(getattr(network, "config", {})) for name, network in networks.items()}
    return Sketch(layers, what.kinds_for(networks), found, steps, max(clock.step, 1), configs)


def of_the_seven(model: Model, call: dict[str, Any], what: What, steps: int, dtype: str = "float32") -> Sketch:
    """One of the seven at full size, called with these arguments; nothing is loaded."""
    networks = fullsize.meta_transformers(model.name)
    for network in networks.values():
        nn.Module.to(network, getattr(torch, dtype))
    given = fullsize.probe(model.name, call, getattr(torch, dtype))
    known = max(family_of(network).text_tokens for network in networks.values())
    text = call.get("max_sequence_length") or known
    with fullsize.on_meta():
        return sketch(networks, lambda: networks["transformer"](**given), what, steps, text_tokens=text)


def of_pipeline(pipeline: Any, call: dict[str, Any], what: What, task: Task) -> Sketch:
    """A loaded pipeline, by its first steps with one prompt."""
    networks = find_networks(pipeline)
    given = arguments(pipeline, (), call | subject(pipeline, task.text))
    asked = given.get("num_inference_steps") or FEW
    few = {"num_inference_steps": min(asked, FEW + (len(networks) > 1))} if "num_inference_steps" in given else {}
    short = {name: value for name, value in call.items() if name not in ("sigmas", "timesteps")} | few
    try:
        return sketch(
            networks,
            lambda: generate(pipeline, task, short),
            what,
            num_steps(pipeline, asked) or asked,
            pipeline.scheduler,
            longest_text(pipeline, networks, given),
            is_unguided(given),
        )
    finally:
        if hasattr(pipeline, "maybe_free_model_hooks"):
            pipeline.maybe_free_model_hooks()
