"""Picks up activations where they exist, and says whose tokens they are.

Q, K, V and the heads' outputs are taken as they enter and leave `scaled_dot_product_attention`, which every native
attention of diffusers calls through `torch.nn.functional`; A is what the attention module returns, F what a
feed-forward network returns. Hooks on the modules tell which layer is at work.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from dit_tracer.recording.backend import eager, intercepted, native
from dit_tracer.recording.clock import Clock
from dit_tracer.recording.families import Parts
from dit_tracer.recording.layout import Attended, Tokens, Watch, joined, kind_of_attention, ragged, split
from dit_tracer.recording.sites import Site, UnsupportedError, find_attention, find_feed_forward

Sink = Callable[[str, str, str, Tensor, "list[int] | None"], None]
"""Receives layer, stream, kind, tensor and, where elements of a batch have different lengths, how many tokens of each
exist. Tensors are (batch, head, token, channel), or (batch, token, channel)."""

ENCODER = ("encoder_hidden_states", "norm_encoder_hidden_states", "context", "cond")
TEXT_FEED_FORWARD = ("ff_context", "txt_mlp", "ff_t")
PROJECTIONS = {"to_q": "q", "to_k": "k", "to_v": "v"}


@dataclass
class Frame:
    """An attention module at work: what it was given, and the attention calls it made."""

    site: Site
    hidden: Tensor
    encoder: Tensor | None
    calls: list[Attended] = field(default_factory=list)
    projected: dict[str, Tensor] = field(default_factory=dict)
    watch: Watch | None = None

    @property
    def text(self) -> int | None:
        return None if self.encoder is None else self.encoder.shape[1]


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
        self._clock = clock
        self._sink = sink
        self._kinds = kinds
        self._frames: list[Frame] = []
        self.sites = find_attention(networks, attention)
        self.feed_forward = find_feed_forward(networks, self.sites) if "f" in kinds else []
        self._at = {site.module: site for site in (*self.sites, *self.feed_forward)}
        self._classes = {name: type(network).__name__ for name, network in networks.items()}
        self._parameters = {site.module: _parameters(site.module) for site in self.sites}
        self._tokens: dict[str, Tokens] = {}
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
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._drop_frames()
        self._undo.close()

    def reset(self) -> None:
        """Forget what an earlier generation left."""
        self._drop_frames()
        self._tokens.clear()
        self.fired = {}

    def _drop_frames(self) -> None:
        """Forget layers that an error left at work."""
        for frame in self._frames:
            if frame.watch is not None:
                frame.watch.off()
        self._frames.clear()

    @property
    def silent(self) -> list[str]:
        """Layers that have not run since the last reset."""
        return [site.name for site in self._at.values() if site.name not in self.fired]

    def tokens(self, latent: int) -> Tokens:
        """Latent and text tokens of the network at work; `latent` tokens alone where its layers tell no more."""
        return self._tokens.get(self._clock.network, Tokens((("latent", latent),)))

    # Hooks -------------------------------------------------------------------

    def _on_enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        site = self._at[module]
        given = dict(zip(self._parameters[module], args)) | kwargs
        tensors = [value for value in given.values() if isinstance(value, Tensor) and value.ndim >= 2]
        if not tensors:
            raise UnsupportedError(f"{site.name} ({type(module).__name__}) was given no tensor of tokens")
        frame = Frame(site, given.get("hidden_states", tensors[0]), _encoder(given))
        order_open = site.text_first is None and site.family.text_first is None and site.type in ("", "joint")
        if frame.encoder is not None and order_open:
            frame.watch = Watch().on(module)
        self._frames.append(frame)

    def _on_attention(self, query: Tensor, key: Tensor, value: Tensor, output: Tensor) -> None:
        if self._frames:
            tensors = (t.unsqueeze(1) if t.ndim == 3 else t for t in (query, key, value, output))
            self._frames[-1].calls.append(Attended(*tensors))

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
        for stream, kind, tensor, lengths in self._read(frame, output):
            if kind in self._kinds:
                self._sink(frame.site.name, stream, kind, tensor, lengths)
        self.fired[frame.site.name] = frame.site
        if self.on_layer is not None:
            self.on_layer(frame.site, frame.hidden)

    def _on_feed_forward(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        site = self._at[module]
        output = _as_tokens(output[0] if isinstance(output, tuple) else output)
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

    # Reading a frame ---------------------------------------------------------

    def _read(self, frame: Frame, output: Any) -> Iterator[tuple[str, str, Tensor, list[int] | None]]:
        """Stream, kind, tensor and lengths of everything a layer computed."""
        site = frame.site
        if site.type == "linear":
            missing = {"k", "v"} - set(frame.projected)
            if missing:
                raise UnsupportedError(f"{site.name}: linear attention without to_k and to_v of its own (fused?)")
            outputs = frame.projected | {"a": _as_tokens(_main(output))}
            yield from (("latent", kind, tensor, None) for kind, tensor in outputs.items())
        elif self._one_by_one(frame):
            yield from self._read_ragged(frame, output)
        else:
            yield from self._read_whole(frame, output)

    def _read_whole(self, frame: Frame, output: Any) -> Iterator[tuple[str, str, Tensor, list[int] | None]]:
        call, kind = self._main_call(frame)
        site = frame.site
        site.type = kind
        kv, a = site.family.streams_of(site.path) or ("text" if kind == "cross" else "latent", "latent")
        keys: Parts = ((kv, call.key.shape[2]),)
        if kind in ("joint", "single"):
            tokens = self._joined(frame, call, kind)
            self._tokens[self._clock.network] = tokens
            keys = tokens.parts
        together = len(keys) > 1
        queries = keys if together and call.query.shape[2] == call.key.shape[2] else ((a, call.query.shape[2]),)
        sides = {
            "k": (call.key, keys),
            "v": (call.value, keys),
            "q": (call.query, queries),
            "o": (call.output, queries),
        }
        for name, (tensor, parts) in sides.items():
            yield from ((stream, name, part, None) for stream, part in split(tensor, 2, parts))
        for stream, extra in self._further(frame, call):
            yield from ((stream, name, tensor, None) for name, tensor in (("k", extra.key), ("v", extra.value)))
        for stream, part in self._outputs(output, keys if together else ((a, 0),)):
            yield stream, "a", part, None

    def _read_ragged(self, frame: Frame, output: Any) -> Iterator[tuple[str, str, Tensor, list[int] | None]]:
        """Elements of the batch attended one by one, each with its own number of text tokens (Mochi)."""
        frame.site.type = "joint"
        latent = frame.hidden.shape[1]
        first = self._text_first(frame, frame.calls[0], frame.calls[0].key.shape[2] - latent)
        lengths = [call.key.shape[2] - latent for call in frame.calls]
        self._tokens[self._clock.network] = joined(latent, frame.text, first)
        parts = [joined(latent, length, first).parts for length in lengths]
        sides = {"k": "key", "v": "value", "q": "query", "o": "output"}
        for name in (kind for kind in sides if kind in self._kinds):
            tensors = [getattr(call, sides[name]) for call in frame.calls]
            for stream, (tensor, _) in ragged(tensors, parts).items():
                yield stream, name, tensor, None if stream == "latent" else lengths
        latents, texts = output
        yield "latent", "a", latents, None
        if texts is not None:
            pieces = [text[None, None, :n] for text, n in zip(texts, lengths)]
            padded, _ = ragged(pieces, [(("text", n),) for n in lengths])["text"]
            yield "text", "a", padded.squeeze(1), lengths

    def _one_by_one(self, frame: Frame) -> bool:
        """Whether the elements of the batch were attended apart, each with its own text tokens."""
        if frame.encoder is None or len(frame.calls) != len(frame.hidden) or frame.site.family.type(frame.site.path):
            return False
        latent, text = frame.hidden.shape[1], frame.encoder.shape[1]
        lengths = [call.key.shape[2] - latent for call in frame.calls]
        alone = all(len(call.key) == 1 and call.query.shape[2] == call.key.shape[2] for call in frame.calls)
        exist = all(0 <= n <= text for n in lengths) and max(lengths) > 0  # an empty text may have no token at all
        return alone and exist and (len(lengths) > 1 or lengths[0] != text)

    def _main_call(self, frame: Frame) -> tuple[Attended, str]:
        """The attention call that is the layer's own, and the layer's type."""
        site, hidden, text = frame.site, frame.hidden.shape[1], frame.text
        wanted = site.family.type(site.path)
        if wanted and frame.calls:
            return frame.calls[-1], wanted
        for call in frame.calls:
            kind = kind_of_attention(hidden, text, frame.encoder is frame.hidden, call)
            if kind == "self":
                return call, self._refined(frame, call)
            if kind:
                return call, kind
        if self._cross_in_parts(frame):
            return frame.calls[-1], "cross"
        what = f"{site.name} ({type(site.module).__name__})"
        if not frame.calls:
            raise UnsupportedError(
                f"{what} ran without scaled dot-product attention: a sparse or flex backend cannot be traced; linear "
                "attention can, once declared: " + self._row(site, 'types={"*.attn": "linear"}')
            )
        numbers = ", ".join("{} queries to {} keys".format(*call.tokens) for call in frame.calls)
        raise UnsupportedError(
            f"{what} was given {hidden} and {text or 'no'} further tokens, and attended {numbers}: "
            f"it is not known whose tokens those are; say so with {self._row(site, 'types=..., streams=...')}"
        )

    def _row(self, site: Site, fields: str) -> str:
        """How to tell what cannot be seen of a network's class."""
        network = self._classes[site.name.partition(".")[0]]
        return f'dit_tracer.FAMILIES["{network}"] = dit_tracer.Family({fields})'

    def _refined(self, frame: Frame, call: Attended) -> str:
        """`single` if the sequence has the tokens of both streams of earlier layers; by place for folded axes."""
        tokens = self._tokens.get(self._clock.network)
        if tokens and call.key.shape[2] == tokens.total != tokens.latent:
            return "single"
        if len(call.key) > self._clock.batch:
            return "temporal" if "temporal" in frame.site.path or "motion" in frame.site.path else "spatial"
        return "self"

    def _cross_in_parts(self, frame: Frame) -> bool:
        """Whether the layer attends to its further tokens in several calls, as Wan does to an image and a text."""
        queries = {call.query.shape[2] for call in frame.calls}
        keys = sum(call.key.shape[2] for call in frame.calls)
        return len(frame.calls) > 1 and queries == {frame.hidden.shape[1]} and keys == frame.text

    def _further(self, frame: Frame, main: Attended) -> Iterator[tuple[str, Attended]]:
        """Further calls of a cross-attention layer that attend to tokens of another stream."""
        stream = "image" if self._cross_in_parts(frame) else frame.site.family.further
        if stream and frame.site.type == "cross":
            yield from ((stream, call) for call in frame.calls if call is not main)

    def _joined(self, frame: Frame, call: Attended, kind: str) -> Tokens:
        """How the streams line up in a layer that attends to several."""
        keys = call.key.shape[2]
        if kind == "joint":
            text = frame.text
            return joined(keys - text, text, self._text_first(frame, call, text))
        parts = self._clock.parts(frame.site.family, keys)
        known = Tokens(parts) if parts else self._tokens.get(self._clock.network)
        if known is None or known.total != keys or min(length for _, length in known.parts) < 0:
            raise UnsupportedError(
                f"{frame.site.name}: {keys} tokens, and it is not known which of them are text; say so with "
                + self._row(frame.site, "parts=...")
            )
        return known

    def _text_first(self, frame: Frame, call: Attended, text: int) -> bool:
        """Whether text comes first, as the family says or, asked once a layer, as the values of V show."""
        site = frame.site
        if site.family.text_first is not None:
            return site.family.text_first
        if site.text_first is None and frame.watch is not None:
            site.text_first = frame.watch.text_first(call.value, frame.hidden, frame.encoder, text)
        if site.text_first is None:
            raise UnsupportedError(
                f"{site.name} ({type(site.module).__name__}): whether its text tokens come before or after the latent "
                f"ones cannot be seen; say so with {self._row(site, 'text_first=True')}"
            )
        return site.text_first

    def _outputs(self, output: Any, keys: Parts) -> Iterator[tuple[str, Tensor]]:
        """What the module returned, by stream: apart, joined, or latent alone."""
        if isinstance(output, (tuple, list)) and len(keys) > 1 and len(output) > 1:
            for stream, part in zip(("latent", "text"), output):
                if isinstance(part, Tensor):
                    yield stream, _as_tokens(part)
            return
        whole = _as_tokens(_main(output))
        if len(keys) > 1 and whole.shape[1] == sum(length for _, length in keys):
            yield from split(whole, 1, keys)
        else:
            yield "latent" if len(keys) > 1 else keys[0][0], whole


def _encoder(given: dict[str, Any]) -> Tensor | None:
    """The tokens that an attention module was given beside its own; the first of several (IP-Adapter, Cosmos)."""
    for name in ENCODER:
        value = given.get(name)
        first = value[0] if isinstance(value, (tuple, list)) and value else value
        if isinstance(first, Tensor):
            return first.flatten(1, -2) if first.ndim > 3 else first
    return None


def _main(output: Any) -> Tensor:
    return output[0] if isinstance(output, (tuple, list)) else output


def _as_tokens(tensor: Tensor) -> Tensor:
    """(batch, token, channel): packed sequences are a batch of one; channels that are split by head are joined."""
    if tensor.ndim == 2:
        return tensor.unsqueeze(0)
    return tensor.flatten(2) if tensor.ndim > 3 else tensor


def _parameters(module: nn.Module) -> list[str]:
    """Names of the arguments of a module's forward."""
    return list(inspect.signature(type(module).forward).parameters)[1:]
