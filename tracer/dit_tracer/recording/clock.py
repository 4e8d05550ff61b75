"""Knows which step and which guidance branch is being computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dit_tracer.recording.patching import around

BATCHED = ("uncond", "cond")
"""Order of the halves in the pipelines of diffusers that run both in one batch."""


class Clock:
    """The place in the denoising loop of `pipeline`, kept up to date within a `with` block.

    A step ends when the pipeline calls its scheduler. Within a step every call of a transformer has branches: the name
    given to `cache_context`, both halves if the batch holds the same latents twice, else `cond`.
    """

    def __init__(self, pipeline: Any, transformers: dict[str, nn.Module]) -> None:
        self._pipeline = pipeline
        self._transformers = transformers
        self._undo = ExitStack()
        self.reset()

    def reset(self) -> None:
        """Back to the first step of a new generation."""
        self.timesteps: list[float] = []
        self.sigmas: list[float] = []
        self.branches: tuple[str, ...] = ()
        self.batch = 0
        self.text_tokens = 0
        self._context: str | None = None
        self._calls = 0
        self._doubled: bool | None = None

    @property
    def step(self) -> int:
        return len(self.timesteps)

    def __enter__(self) -> Clock:
        self.scheduler = scheduler = self._pipeline.scheduler
        with ExitStack() as undo:
            undo.enter_context(around(type(scheduler), "step", scheduler, self._on_step))
            for transformer in self._transformers.values():
                hook = transformer.register_forward_pre_hook(self._on_call, with_kwargs=True)
                undo.callback(hook.remove)
                if hasattr(transformer, "cache_context"):
                    undo.enter_context(around(type(transformer), "cache_context", transformer, self._on_context))
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._undo.close()

    def _on_step(self, step: Callable[..., Any], model_output: Tensor, timestep: Any, *args: Any, **kwargs: Any) -> Any:
        result = step(model_output, timestep, *args, **kwargs)
        self.sigmas.append(noise_level(self.scheduler, timestep))
        self.timesteps.append(float(timestep))
        self._calls = 0
        return result

    @contextmanager
    def _on_context(self, context: Callable[..., Any], name: str, **kwargs: Any) -> Iterator[None]:
        self._context = name
        try:
            with context(name, **kwargs):
                yield
        finally:
            self._context = None

    def _on_call(self, transformer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        latents = args[0] if args else kwargs["hidden_states"]
        text = kwargs.get("encoder_hidden_states")
        self.batch = latents.shape[0]
        self.text_tokens = text.shape[1] if isinstance(text, Tensor) else 0
        self.branches = self._branches(latents)
        self._calls += 1

    def _branches(self, latents: Tensor) -> tuple[str, ...]:
        if self._context not in (None, "cond_uncond"):
            return (str(self._context),)
        if self._doubled is None:  # asked once a prompt: comparing tensors makes a GPU wait
            half = len(latents) // 2
            self._doubled = len(latents) % 2 == 0 and torch.equal(latents[:half], latents[half:])
        if self._doubled:
            return BATCHED
        return ("cond",) if self._calls == 0 else (f"call{self._calls}",)


def noise_level(scheduler: Any, timestep: Any) -> float:
    """Sigma of the step that the scheduler has just made.

    The flow's noise level, or sqrt((1 - a) / a) with a the cumulative alpha; NaN where a scheduler tells neither.
    """
    sigmas, index = getattr(scheduler, "sigmas", None), getattr(scheduler, "step_index", None)
    if sigmas is not None and index is not None:
        return float(sigmas[index - 1])
    alphas = getattr(scheduler, "alphas_cumprod", None)
    if alphas is None:
        return float("nan")
    alpha = float(alphas[int(timestep)])
    return ((1 - alpha) / alpha) ** 0.5
