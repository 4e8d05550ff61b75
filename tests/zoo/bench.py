"""Runs a transformer of the zoo as its pipeline would, and keeps what its attention saw."""

from __future__ import annotations

import importlib
import pkgutil
from contextlib import contextmanager, nullcontext
from typing import Any

import diffusers.models.transformers
import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn

from zoo.case import Case


class Bench(DiffusionPipeline):
    """A denoising loop around one transformer: one call a step for both guidance halves, or one call for each."""

    def __init__(self, transformer: nn.Module, scheduler: FlowMatchEulerDiscreteScheduler) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler)

    @torch.no_grad()
    def __call__(self, case: Case, num_inference_steps: int = 2) -> list[Tensor]:
        self.scheduler.set_timesteps(num_inference_steps)
        predictions = []
        for t in self.scheduler.timesteps:
            for branches in [case.branches] if case.guidance == "batched" else [(b,) for b in case.branches]:
                named = self.transformer.cache_context(branches[0]) if self._names(case) else nullcontext()
                with named:
                    predictions.append(_tensor(self.transformer(**case.inputs(len(branches)))))
            self.scheduler.step(torch.zeros(1), t, torch.zeros(1))
        return predictions

    def _names(self, case: Case) -> bool:
        return case.contexts and case.guidance == "sequential"


def bench(case: Case) -> Bench:
    """The case's transformer in a pipeline, with weights from a fixed seed."""
    torch.manual_seed(0)
    network = transformer_class(case.transformer)(**case.config).eval()
    with torch.no_grad():
        for weight in network.parameters():  # what starts at zero would hide a difference between the halves
            weight += 0.05 * torch.randn(weight.shape)
    return Bench(network, FlowMatchEulerDiscreteScheduler())


def transformer_class(name: str) -> Any:
    """A transformer class of diffusers by name, whether it is exported or not."""
    package = diffusers.models.transformers
    for module in pkgutil.iter_modules(package.__path__):
        found = getattr(importlib.import_module(f"{package.__name__}.{module.name}"), name, None)
        if found is not None:
            return found
    raise LookupError(name)


@contextmanager
def attention_seen(network: nn.Module) -> Any:
    """K of every call of scaled dot-product attention, by the path of the innermost module with a `to_*` projection or
    a processor at work: path -> [K of (batch, head, token, channel)]."""
    seen: dict[str, list[Tensor]] = {}
    stack: list[str] = []
    original = torch.nn.functional.scaled_dot_product_attention

    def watched(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        for path in stack:
            seen.setdefault(path, []).append(key)
        return original(query, key, value, *args, **kwargs)

    handles = []
    for path, module in network.named_modules():
        handles.append(module.register_forward_pre_hook(lambda *_, path=path: stack.append(path)))
        handles.append(module.register_forward_hook(lambda *_: (stack.pop(), None)[1]))
    torch.nn.functional.scaled_dot_product_attention = watched
    try:
        yield seen
    finally:
        torch.nn.functional.scaled_dot_product_attention = original
        for handle in handles:
            handle.remove()


def _tensor(output: Any) -> Tensor:
    while not isinstance(output, Tensor):
        output = output[0] if isinstance(output, (tuple, list)) else output.sample
    return output
