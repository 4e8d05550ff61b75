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
from dit_tracer.counting import counting
from dit_tracer.recording.patching import around
from dit_tracer.recording.sites import find_networks
from dit_tracer.replay.quality import Made
from dit_tracer.work import Task


def made(pipeline: Any, task: Task, call: dict[str, Any]) -> Made:
    """One generation, timed from the first call of a network to the end of the last step."""
    watch = _Watch()
    scheduler = pipeline.scheduler
    with ExitStack() as undo:
        undo.enter_context(around(type(scheduler), "step", scheduler, watch.on_step))
        for network in find_networks(pipeline).values():
            undo.callback(network.register_forward_pre_hook(watch.on_network).remove)
        undo.enter_context(torch.no_grad())
        undo.enter_context(_quiet())
        output = pipeline(**_arguments(pipeline, task, call))
    pictures = _pictures(output[0] if isinstance(output, tuple) else next(iter(output.values())))
    return Made(watch.latents.detach().double().cpu().numpy(), pictures, watch.ended - watch.began)


def evaluations(pipeline: Any, task: Task, call: dict[str, Any]) -> int:
    """Evaluations of attention layers and feed-forward networks in one generation, those really computed."""
    with counting(pipeline) as counted, torch.no_grad(), _quiet():
        pipeline(**_arguments(pipeline, task, call))
    return sum(sum(steps) for steps in counted.by_layer.values())


class _Watch:
    """When a generation began and ended, and what its last step gave."""

    def __init__(self) -> None:
        self.began = self.ended = 0.0
        self.latents: Any = None

    def on_network(self, network: nn.Module, args: Any) -> None:
        self.began = self.began or _now()

    def on_step(self, step: Any, *args: Any, **kwargs: Any) -> Any:
        result = step(*args, **kwargs)
        self.latents, self.ended = result[0], _now()
        return result


def _now() -> float:
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
