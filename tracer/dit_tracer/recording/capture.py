"""Picks up K, V and A where they exist, and says whose tokens they are.

K and V are taken as they enter `scaled_dot_product_attention`, which every native attention of diffusers calls through
`torch.nn.functional`; A is what the attention module returns. Hooks on the modules tell which layer is at work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry
from diffusers.models.attention_processor import Attention, MochiAttention
from torch import Tensor, nn

from dit_tracer.recording.clock import Clock
from dit_tracer.recording.families import FAMILIES, PLAIN, Family

ATTENTION = (Attention, MochiAttention, AttentionModuleMixin)
"""What diffusers itself takes for an attention layer (its hooks/_common.py)."""


class UnsupportedError(ValueError):
    """A model that cannot be recorded; the message says why."""

    exit_code = 1


Sink = Callable[["Site", str, str, Tensor], None]
"""Receives layer, stream, kind and tensor: (batch, head, token, channel), or (batch, token, channel) for A."""


@dataclass
class Site:
    """One attention module, and its type once it has run."""

    name: str
    path: str
    family: Family
    heads: int
    type: str = ""


@dataclass
class Frame:
    """An attention module at work."""

    site: Site
    hidden: int
    encoder: int | None
    seen: bool = False


class Capture:
    """Within a `with` block, hands K, V and A of every attention layer to `sink`.

    The sink must be done with a tensor, or keep it unchanged, when it returns.
    """

    def __init__(self, transformers: dict[str, nn.Module], clock: Clock, sink: Sink) -> None:
        self._clock = clock
        self._sink = sink
        self._frames: list[Frame] = []
        self._sites = {
            module: Site(f"{name}.{path}", path, FAMILIES.get(type(transformer).__name__, PLAIN), _heads(module))
            for name, transformer in transformers.items()
            for path, module in transformer.named_modules()
            if isinstance(module, ATTENTION)
        }
        if not self._sites:
            classes = ", ".join(type(t).__name__ for t in transformers.values())
            raise UnsupportedError(f"{classes}: no attention modules found; dit-trace knows those of diffusers")

    def __enter__(self) -> Capture:
        with ExitStack() as undo:
            undo.enter_context(_native_attention(self._sites))
            undo.enter_context(_intercepted(self._on_attention))
            for module in self._sites:
                undo.callback(module.register_forward_pre_hook(self._on_enter, with_kwargs=True).remove)
                undo.callback(module.register_forward_hook(self._on_leave, with_kwargs=True).remove)
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._undo.close()

    def reset(self) -> None:
        """Forget layers that an error left at work."""
        self._frames.clear()

    def _on_enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        encoder = args[1] if len(args) > 1 else kwargs.get("encoder_hidden_states")
        tokens = encoder.shape[1] if isinstance(encoder, Tensor) else None
        self._frames.append(Frame(self._sites[module], hidden.shape[1], tokens))

    def _on_attention(self, key: Tensor, value: Tensor) -> None:
        if not self._frames or self._frames[-1].seen:
            return
        frame = self._frames[-1]
        kind = self._type(frame, key.shape[2])
        if kind is None:
            return
        frame.seen = True
        frame.site.type = kind
        for name, tensor in (("k", key), ("v", value)):
            for stream, part in self._split(frame, tensor, 2):
                self._sink(frame.site, stream, name, part)

    def _on_leave(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        frame = self._frames.pop()
        if not frame.seen:
            raise RuntimeError(
                f"{frame.site.name} ({type(module).__name__}) ran without scaled dot-product attention on its tokens; "
                "this layer cannot be traced"
            )
        if frame.site.type == "joint":
            parts = zip(("latent", "text"), output)
        elif frame.site.type == "single":
            parts = self._split(frame, output, 1)
        else:
            parts = iter([("latent", output[0] if isinstance(output, tuple) else output)])
        for stream, part in parts:
            if part is not None:
                self._sink(frame.site, stream, "a", part)

    def _type(self, frame: Frame, tokens: int) -> str | None:
        """What kind of attention this is, by the number of tokens in K; None for a side call, as IP-Adapter makes."""
        if frame.encoder is not None:
            return {frame.hidden + frame.encoder: "joint", frame.encoder: "cross"}.get(tokens)
        if tokens != frame.hidden:
            return None
        return "single" if frame.site.family.is_single(frame.site.path) else "self"

    def _split(self, frame: Frame, tensor: Tensor, axis: int) -> Iterator[tuple[str, Tensor]]:
        """The parts of a tensor by stream."""
        if frame.site.type in ("self", "cross"):
            yield ("text" if frame.site.type == "cross" else "latent"), tensor
            return
        text = frame.encoder if frame.encoder is not None else self._clock.text_tokens
        latent = tensor.shape[axis] - text
        at = (text, 0) if frame.site.family.text_first else (0, latent)
        yield "latent", tensor.narrow(axis, at[0], latent)
        yield "text", tensor.narrow(axis, at[1], text)


def find_transformers(pipeline: Any) -> dict[str, nn.Module]:
    """The denoising models of a pipeline, by the name of the component."""
    found = {
        name: part
        for name, part in pipeline.components.items()
        if isinstance(part, nn.Module) and name.split("_")[0] == "transformer"
    }
    if not found:
        raise UnsupportedError(
            f"{type(pipeline).__name__} has no transformer; dit-trace records diffusion transformers"
        )
    return found


def _heads(module: nn.Module) -> int:
    return int(getattr(module, "heads", 0))


@contextmanager
def _intercepted(watch: Callable[[Tensor, Tensor], None]) -> Iterator[None]:
    """Show K and V of every call of scaled dot-product attention to `watch`."""
    functional = torch.nn.functional
    original = functional.scaled_dot_product_attention

    def watched(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        watch(key, value)
        functional.scaled_dot_product_attention = original  # diffusers' layer skipping asks whether it is the original
        try:
            return original(query, key, value, *args, **kwargs)
        finally:
            functional.scaled_dot_product_attention = watched

    functional.scaled_dot_product_attention = watched
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = original


@contextmanager
def _native_attention(modules: Any) -> Iterator[None]:
    """Attend with PyTorch's own function; the chosen backends are put back."""
    processors = {id(p): p for m in modules if hasattr(p := getattr(m, "processor", None), "_attention_backend")}
    chosen = [(processor, processor._attention_backend) for processor in processors.values()]
    active = _AttentionBackendRegistry._active_backend
    _AttentionBackendRegistry._active_backend = AttentionBackendName.NATIVE
    for processor, _ in chosen:
        processor._attention_backend = None
    try:
        yield
    finally:
        _AttentionBackendRegistry._active_backend = active
        for processor, backend in chosen:
            processor._attention_backend = backend
