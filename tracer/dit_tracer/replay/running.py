"""Makes one generation and keeps what is compared: final latents, pictures, seconds, evaluations computed."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dit_tracer.calls import opened, parameters, subject
from dit_tracer.recording.backend import eager, intercepted, native
from dit_tracer.recording.patching import around
from dit_tracer.recording.sites import find_attention, find_feed_forward, find_networks
from dit_tracer.replay.quality import Made
from dit_tracer.work import Task


class Watched:
    """Within a `with` block, a pipeline that tells what a generation computed and how long it took."""

    def __init__(self, pipeline: Any) -> None:
        self.pipeline = pipeline
        self._networks = find_networks(pipeline)
        attention = find_attention(self._networks)
        self._attention = [site.module for site in attention]
        self._feed_forward = [site.module for site in find_feed_forward(self._networks, attention)]

    def __enter__(self) -> Watched:
        with ExitStack() as undo:
            undo.enter_context(eager())
            undo.enter_context(native(self._attention))
            undo.enter_context(intercepted(self._on_attention))
            for network in self._networks.values():
                undo.callback(network.register_forward_pre_hook(self._on_network).remove)
            for module in self._feed_forward:
                undo.callback(_first_linear(module).register_forward_hook(self._on_feed_forward).remove)
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._undo.close()

    def make(self, task: Task, call: dict[str, Any]) -> Made:
        """One generation."""
        self._began = self._ended = 0.0
        self._latents: Any = None
        self.attention = self.feed_forward = 0
        scheduler = self.pipeline.scheduler
        with around(type(scheduler), "step", scheduler, self._on_step), torch.no_grad(), _quiet():
            output = self.pipeline(**_arguments(self.pipeline, task, call))
        pictures = _pictures(output[0] if isinstance(output, tuple) else next(iter(output.values())))
        latents = self._latents.detach().double().cpu().numpy()
        return Made(latents, pictures, self._ended - self._began, self.attention, self.feed_forward)

    def _on_network(self, network: nn.Module, args: Any) -> None:
        if not self._began:
            self._began = self._now()

    def _on_step(self, step: Any, *args: Any, **kwargs: Any) -> Any:
        result = step(*args, **kwargs)
        self._latents = result[0]
        self._ended = self._now()
        return result

    def _on_attention(self, *tensors: Tensor) -> None:
        self.attention += bool(self._began)  # text encoders come before

    def _on_feed_forward(self, module: nn.Module, args: Any, output: Any) -> None:
        self.feed_forward += 1

    def _now(self) -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()


def _arguments(pipeline: Any, task: Task, call: dict[str, Any]) -> dict[str, Any]:
    known = parameters(pipeline)
    ours: dict[str, Any] = {"output_type": "np", "generator": torch.Generator("cpu").manual_seed(task.seed)}
    if "generator" not in known:
        torch.manual_seed(task.seed)
    ours = {name: value for name, value in ours.items() if name in known}
    return subject(pipeline, task.text) | call | opened(pipeline, task.arguments) | ours


def _first_linear(module: nn.Module) -> nn.Module:
    """What tells that a feed-forward network was computed; its own hooks also run where an engine left it out."""
    return next((part for part in module.modules() if not list(part.children()) and list(part.parameters())), module)


def _pictures(output: Any) -> NDArray[np.float64]:
    """(picture, height, width, channel) in 0..1, of pictures or videos."""
    found = output.detach().cpu().numpy() if isinstance(output, Tensor) else np.asarray(output)
    return np.clip(found.reshape(-1, *found.shape[-3:]).astype(float), 0, 1)


@contextmanager
def _quiet() -> Iterator[None]:
    """Warnings of the libraries, about themselves."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
