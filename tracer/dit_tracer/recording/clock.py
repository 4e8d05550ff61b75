"""Knows which step and which guidance branch is being computed."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dit_tracer.recording.families import Family, Parts
from dit_tracer.recording.patching import around
from dit_tracer.recording.sites import UnsupportedError, family_of

HALVES = (("uncond", "cond"),)
"""Order of the parts in the pipelines of diffusers that run several in one batch."""


class Clock:
    """The place in the denoising loop of `pipeline`, kept up to date within a `with` block.

    A step ends when the pipeline calls its scheduler, if it called a network before. Within a step every call of a
    network has branches: the name given to `cache_context`; else, if the batch is larger than the images to be made,
    one for each part; else `cond` for the first call, and `uncond` for a second one of the same shape.
    """

    def __init__(self, pipeline: Any, networks: dict[str, nn.Module]) -> None:
        self._pipeline = pipeline
        self._names = {network: name for name, network in networks.items()}
        self._parameters = {n: list(inspect.signature(type(n).forward).parameters)[1:] for n in networks.values()}
        self._undo = ExitStack()
        self.on_step: Callable[[], None] | None = None
        """Called when a step has ended."""
        self.reset()

    def reset(self) -> None:
        """Back to the first step of a new generation."""
        self._levels: list[Callable[[], float]] = []
        self.network = ""
        self.branches: tuple[str, ...] = ()
        self.batch = 0
        self.latents: Any = None
        self.images = 1
        """Images that the generation makes at once; a larger batch holds guidance halves."""
        self.unguided = False
        self._timesteps: list[Any] = []
        self._given: dict[str, Any] = {}
        self._context: str | None = None
        self._calls = 0
        self._first: Any = None

    @property
    def step(self) -> int:
        return len(self._timesteps)

    @property
    def timesteps(self) -> list[float]:
        """Timestep of every step that was made; read when they are done, for it makes a GPU wait."""
        return [float(torch.as_tensor(t).flatten()[0]) for t in self._timesteps]

    @property
    def sigmas(self) -> list[float]:
        """Noise level of every step that was made; read when they are done."""
        return [level() for level in self._levels]

    def __enter__(self) -> Clock:
        self.scheduler = scheduler = self._pipeline.scheduler
        self._step_signature = inspect.signature(type(scheduler).step)  # the timestep is not everywhere the second
        with ExitStack() as undo:
            undo.enter_context(around(type(scheduler), "step", scheduler, self._on_step))
            for network in self._names:
                undo.callback(network.register_forward_pre_hook(self._on_call, with_kwargs=True).remove)
                if hasattr(network, "cache_context"):
                    undo.enter_context(around(type(network), "cache_context", network, self._on_context))
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._undo.close()

    def parts(self, family: Family, tokens: int) -> Parts | None:
        """How the tokens of a sequence line up that the network joined before its layers, as its row tells."""
        if family.parts is None:
            return None
        if tokens not in self._parts:  # asked once a call: counting a mask makes a GPU wait
            self._parts[tokens] = family.parts(self._given, tokens)
        return self._parts[tokens]

    def _refuse_doubt(self, latents: Any) -> None:
        """Some pipelines make one video whatever they are asked for, and what looks like two is one in both halves."""
        if len(latents) % 2 or self.step or self.unguided:
            return
        if _halves_alike(latents):
            raise UnsupportedError(
                "two images from one noise, or both guidance halves of one: that cannot be told apart; make one image "
                "of a prompt at a time, or give each a noise of its own"
            )

    def _on_step(self, step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        timestep = self._step_signature.bind_partial(None, *args, **kwargs).arguments.get("timestep", float("nan"))
        result = step(*args, **kwargs)
        if not self._calls:
            return result  # Cosmos asks twice what comes of one prediction
        timestep = timestep.clone() if isinstance(timestep, Tensor) else timestep
        self._levels.append(noise_level(self.scheduler, timestep))
        self._timesteps.append(timestep)
        self._calls = 0
        if self.on_step is not None:
            self.on_step()
        return result

    @contextmanager
    def _on_context(self, context: Callable[..., Any], name: str, **kwargs: Any) -> Iterator[None]:
        self._context = name
        try:
            with context(name, **kwargs):
                yield
        finally:
            self._context = None

    def _on_call(self, network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._given = dict(zip(self._parameters[network], args)) | kwargs
        if getattr(self._pipeline, "do_perturbed_attention_guidance", False):
            raise UnsupportedError(
                "perturbed-attention guidance runs some layers on a part of the batch; trace with pag_scale=0"
            )
        named = self._given.get("hidden_states")
        latents = named if named is not None else next(v for v in self._given.values() if isinstance(v, (Tensor, list)))
        self._parts: dict[int, Parts] = {}
        self.network = self._names[network]
        self.batch, self.latents = len(latents), latents
        self.branches = self._branches(family_of(network), latents)
        if self._calls == 0:
            self._first = self.network, _shapes(latents)
        self._calls += 1

    def _branches(self, family: Family, latents: Any) -> tuple[str, ...]:
        if self._context is not None and not self._context.startswith("cond_"):
            return (self._context.removeprefix("pred_"),)
        if self.network.startswith("uncond"):
            return ("uncond",)
        if self._calls:
            alike = self.network == self._first[0] and _shapes(latents) == self._first[1]
            known = alike and self._calls < len(family.calls)
            return (family.calls[self._calls] if known else f"call{self._calls}",)
        if len(latents) % self.images:
            what = f"a batch of {len(latents)} for {self.images} images of a prompt"
            raise UnsupportedError(f"{what}; it is not known whose")
        parts = len(latents) // self.images
        if parts == 1:
            self._refuse_doubt(latents)
            return family.calls[:1]
        unnamed = tuple(f"part{part}" for part in range(parts))
        return next(names for names in (*family.halves, *HALVES, unnamed) if len(names) == parts)


def _halves_alike(latents: Any) -> bool:
    half = len(latents) // 2
    both = zip(latents[:half], latents[half:])
    return all(isinstance(one, Tensor) and one.shape == other.shape and torch.equal(one, other) for one, other in both)


def _shapes(latents: Any) -> list[Any]:
    """Shapes of the elements of a batch."""
    return [_shapes(one) if isinstance(one, (list, tuple)) else getattr(one, "shape", None) for one in latents]


def noise_level(scheduler: Any, timestep: Any) -> Callable[[], float]:
    """Gives the sigma of the step that the scheduler has just made, when asked; looking at once would make a GPU wait.

    The flow's noise level, or sqrt((1 - a) / a) with a the cumulative alpha, infinite where nothing of the signal is
    left; NaN where a scheduler tells neither.
    """
    sigmas, index = getattr(scheduler, "sigmas", None), getattr(scheduler, "step_index", None)
    if sigmas is not None and index is not None:
        sigma = sigmas[index - 1]
        return lambda: float(sigma)
    alphas = getattr(scheduler, "alphas_cumprod", None)
    if alphas is None:
        return lambda: float("nan")

    def of_alpha() -> float:
        alpha = float(alphas[int(timestep)])
        return ((1 - alpha) / alpha) ** 0.5 if alpha else float("inf")

    return of_alpha
