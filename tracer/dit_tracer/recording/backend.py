"""Makes every attention of a pipeline pass through one function while it is recorded, and shows what passes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry
from diffusers.models.attention_processor import (
    AttnProcessor,
    AttnProcessor2_0,
    SlicedAttnProcessor,
    XFormersAttnProcessor,
)
from torch import Tensor, nn

BY_HAND = (AttnProcessor, SlicedAttnProcessor, XFormersAttnProcessor)
"""Processors that compute what AttnProcessor2_0 does without PyTorch's function, as attention slicing sets them."""

Watcher = Callable[[Tensor, Tensor, Tensor, Tensor], None]
"""Receives query, key, value and output of one call."""


@contextmanager
def eager() -> Iterator[None]:
    """Run what torch.compile has compiled as it is written; a compiled block would keep its activations to itself."""
    with torch.compiler.set_stance("force_eager"):
        yield


@contextmanager
def intercepted(watch: Watcher) -> Iterator[None]:
    """Show every call of scaled dot-product attention to `watch`."""
    functional = torch.nn.functional
    original = functional.scaled_dot_product_attention

    def watched(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        functional.scaled_dot_product_attention = original  # diffusers' layer skipping asks whether it is the original
        try:
            output = original(query, key, value, *args, **kwargs)
        finally:
            functional.scaled_dot_product_attention = watched
        watch(query, key, value, output)
        return output

    functional.scaled_dot_product_attention = watched
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = original


@contextmanager
def native(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Attend with PyTorch's own function; the chosen backends and processors are put back."""
    modules = list(modules)
    by_hand = [(module, module.processor) for module in modules if type(getattr(module, "processor", None)) in BY_HAND]
    processors = {id(p): p for m in modules if hasattr(p := getattr(m, "processor", None), "_attention_backend")}
    chosen = [(processor, processor._attention_backend) for processor in processors.values()]
    active = _AttentionBackendRegistry._active_backend
    _AttentionBackendRegistry._active_backend = AttentionBackendName.NATIVE
    for processor, _ in chosen:
        processor._attention_backend = None
    for module, _ in by_hand:
        module.processor = AttnProcessor2_0()
    try:
        yield
    finally:
        _AttentionBackendRegistry._active_backend = active
        for processor, backend in chosen:
            processor._attention_backend = backend
        for module, processor in by_hand:
            module.processor = processor
