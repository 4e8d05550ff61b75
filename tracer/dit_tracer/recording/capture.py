"""Picks up activations where they exist.

Q, K, V and the heads' outputs are taken as they enter and leave `scaled_dot_product_attention`, which every native
attention of diffusers calls through `torch.nn.functional`; A is what the attention module returns, F what a
feed-forward network returns. Hooks on the modules tell which layer is at work.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn

from dit_tracer.recording.backend import eager, intercepted, native
from dit_tracer.recording.clock import Clock
from dit_tracer.recording.families import Parts
from dit_tracer.recording.layout import Attended, Tokens, Watch, split
from dit_tracer.recording.reading import Frame, Reader, as_tokens, flattened
from dit_tracer.recording.sites import (
    Site,
    UnsupportedError,
    find_aside,
    find_attention,
    find_feed_forward,
    module_tree,
)

Sink = Callable[[str, str, str, Tensor, "list[int] | None"], None]
"""Receives layer, stream, kind, tensor and, where elements of a batch have different lengths, how many tokens of each
exist. Tensors are (batch, head, token, channel), or (batch, token, channel)."""

ENCODER = ("encoder_hidden_states", "norm_encoder_hidden_states", "context", "cond")
TEXT_FEED_FORWARD = ("ff_context", "txt_mlp", "ff_t")
PROJECTIONS = {"to_q": "q", "to_k": "k", "to_v": "v"}


class Capture:
    """Within a `with` block, hands the activations of every layer to `sink`.

    The sink must be done with a tensor, or keep it unchanged, when it returns.

    Args:
        kinds: What to hand over: q, k, v, o, a, f.
        attention: Patterns of the modules to take for attention layers, instead of those of diffusers' classes.
    """

    def __init__(
        self,
        networks: dict[str, nn.Module],
        clock: Clock,
        sink: Sink,
        kinds: tuple[str, ...] = ("k", "v", "a"),
        attention: tuple[str, ...] = (),
    ) -> None:
        self._networks = networks
        self._clock = clock
        self._chosen = bool(attention)
        self._at_work, self._aside = False, 0
        self._sink = sink
        self._kinds = kinds
        self._frames: list[Frame] = []
        self.sites = find_attention(networks, attention)
        self.feed_forward = find_feed_forward(networks, self.sites) if "f" in kinds else []
        self._at = {site.module: site for site in (*self.sites, *self.feed_forward)}
        classes = {name: type(network).__name__ for name, network in networks.items()}
        self._reader = Reader(clock, classes, kinds)
        self._parameters = {site.module: _parameters(site.module) for site in self.sites}
        self.fired: dict[str, Site] = {}
        self.on_layer: Callable[[Site, Tensor], None] | None = None
        """Called with a layer and the latent tokens it was given, when it has run."""

    def __enter__(self) -> Capture:
        with ExitStack() as undo:
            undo.enter_context(eager())
            undo.enter_context(native([site.module for site in self.sites]))
            undo.enter_context(intercepted(self._on_attention))
            for site in self.sites:
                undo.callback(site.module.register_forward_pre_hook(self._on_enter, with_kwargs=True).remove)
                undo.callback(site.module.register_forward_hook(self._on_leave).remove)
                for name, part in site.module.named_children() if site.type == "linear" else ():
                    if name in PROJECTIONS:
                        undo.callback(part.register_forward_hook(self._on_projection).remove)
            for site in self.feed_forward:
                undo.callback(site.module.register_forward_hook(self._on_feed_forward).remove)
            for network in self._networks.values():
                undo.callback(network.register_forward_pre_hook(self._on_network).remove)
                undo.callback(network.register_forward_hook(self._after_network).remove)
                for module in find_aside(network):
                    undo.callback(module.register_forward_pre_hook(self._on_aside).remove)
                    undo.callback(module.register_forward_hook(self._after_aside).remove)
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._drop_frames()
        self._undo.close()

    def reset(self) -> None:
        """Forget what an earlier generation left."""
        self._drop_frames()
        self._reader.reset()
        self.fired = {}

    def _drop_frames(self) -> None:
        """Forget layers that an error left at work."""
        for frame in self._frames:
            if frame.watch is not None:
                frame.watch.off()
        self._frames.clear()
        self._at_work = False

    @property
    def silent(self) -> list[str]:
        """Layers that have not run since the last reset."""
        return [site.name for site in self._at.values() if site.name not in self.fired]

    def tokens(self, latent: int) -> Tokens:
        """How tokens line up in the network at work; `latent` tokens alone where its layers tell no more."""
        return self._reader.tokens(latent)

    # Hooks -------------------------------------------------------------------

    def _on_network(self, network: nn.Module, args: tuple[Any, ...]) -> None:
        self._at_work, self._aside = True, 0

    def _after_network(self, network: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._at_work = False

    def _on_aside(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self._aside += 1

    def _after_aside(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._aside -= 1

    def _on_enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        site = self._at[module]
        given = dict(zip(self._parameters[module], args)) | kwargs
        tensors = [value for value in given.values() if isinstance(value, Tensor) and value.ndim >= 2]
        if not tensors:
            raise UnsupportedError(f"{site.name} ({type(module).__name__}) was given no tensor of tokens")
        hidden = given.get("hidden_states", tensors[0])
        picture = hidden.ndim == 4
        frame = Frame(site, flattened(hidden) if picture else hidden, _encoder(given), picture=picture)
        order_open = site.text_first is None and site.family.text_first is None and site.type in ("", "joint")
        if frame.encoder is not None and order_open:
            frame.watch = Watch().on(module)
        self._frames.append(frame)

    def _on_attention(self, query: Tensor, key: Tensor, value: Tensor, output: Tensor) -> None:
        if self._frames:
            tensors = (t.unsqueeze(1) if t.ndim == 3 else t for t in (query, key, value, output))
            self._frames[-1].calls.append(Attended(*tensors))
        elif self._at_work and not self._aside and not self._chosen:
            network = next(n for name, n in self._networks.items() if name == self._clock.network)
            raise UnsupportedError(
                f"{type(network).__name__} attends outside of the layers that were found; name all of them with "
                f"attention=[...] (--attention). Its modules are:\n{module_tree(network)}"
            )

    def _on_projection(self, part: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        frame = self._frames[-1]
        name = next(name for name, child in frame.site.module.named_children() if child is part)
        frame.projected[PROJECTIONS[name]] = output

    def _on_leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        frame = self._frames.pop()
        if frame.watch is not None:
            frame.watch.off()
        if any(call.changed for call in frame.calls):
            raise RuntimeError(
                f"{frame.site.name}: K or V was changed in place after the attention; it cannot be traced"
            )
        for stream, kind, tensor, lengths in self._reader.read(frame, output):
            self._sink(frame.site.name, stream, kind, tensor, lengths)
        self.fired[frame.site.name] = frame.site
        if self.on_layer is not None:
            self.on_layer(frame.site, frame.hidden)

    def _on_feed_forward(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        site = self._at[module]
        output = as_tokens(output[0] if isinstance(output, tuple) else output)
        tokens = self.tokens(output.shape[1])
        name = site.path.rpartition(".")[2]
        if name in TEXT_FEED_FORWARD:
            parts: Parts = (("text", output.shape[1]),)
        elif name.startswith("audio"):
            parts = (("audio", output.shape[1]),)
        else:
            parts = tokens.parts if output.shape[1] == tokens.total else (("latent", output.shape[1]),)
        for stream, part in split(output, 1, parts):
            self._sink(site.name, stream, "f", part, None)
        self.fired[site.name] = site


def _encoder(given: dict[str, Any]) -> Tensor | None:
    """The tokens that an attention module was given beside its own; the first of several (IP-Adapter, Cosmos)."""
    for name in ENCODER:
        value = given.get(name)
        first = value[0] if isinstance(value, (tuple, list)) and value else value
        if isinstance(first, Tensor):
            return first.flatten(1, -2) if first.ndim > 3 else first
    return None


def _parameters(module: nn.Module) -> list[str]:
    """Names of the arguments of a module's forward."""
    return list(inspect.signature(type(module).forward).parameters)[1:]
