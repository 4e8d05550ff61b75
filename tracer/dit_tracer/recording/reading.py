"""Says what a layer computed, whose tokens it is, and what type of layer it was.

Most is told by token numbers (`layout`); what they cannot tell is told by the family's row, or is an error.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from dit_tracer.recording.clock import Clock
from dit_tracer.recording.families import Parts
from dit_tracer.recording.layout import Attended, Tokens, Watch, joined, kind_of_attention, ragged, split
from dit_tracer.recording.sites import OVERFLOW, NonFiniteError, Site, UnsupportedError

Activation = tuple[str, str, Tensor, "list[int] | None"]
"""Stream, kind, tensor and, where elements of a batch have different lengths, how many tokens of each exist."""


@dataclass
class Frame:
    """An attention module at work: what it was given, and the attention calls it made."""

    site: Site
    hidden: Tensor
    encoder: Tensor | None
    calls: list[Attended] = field(default_factory=list)
    projected: dict[str, Tensor] = field(default_factory=dict)
    watch: Watch | None = None
    picture: bool = False
    """Whether it was given, and gives, (batch, channel, height, width)."""

    @property
    def text(self) -> int | None:
        return None if self.encoder is None else self.encoder.shape[1]


class Reader:
    """Reads frames. Remembers how tokens line up in each network, for layers that cannot tell by themselves.

    Args:
        classes: Class of each network, by the name of its component.
        kinds: What is wanted of k, v, q, o and a.
    """

    def __init__(self, clock: Clock, classes: dict[str, str], kinds: tuple[str, ...]) -> None:
        self._clock = clock
        self._kinds = kinds
        self._classes = classes
        self._tokens: dict[str, Tokens] = {}

    def reset(self) -> None:
        self._tokens.clear()

    def tokens(self, latent: int) -> Tokens:
        """How tokens line up in the network at work; `latent` tokens alone where its layers told no more."""
        return self._tokens.get(self._clock.network, Tokens((("latent", latent),)))

    def read(self, frame: Frame, output: Any) -> Iterator[Activation]:
        """Everything wanted that a layer computed."""
        site = frame.site
        if site.type == "linear":
            missing = {"k", "v"} - set(frame.projected)
            if missing:
                raise UnsupportedError(f"{site.name}: linear attention without to_k and to_v of its own (fused?)")
            outputs = frame.projected | {"a": as_tokens(_main(output))}
            yield from (("latent", kind, tensor, None) for kind, tensor in outputs.items() if kind in self._kinds)
        elif self._one_by_one(frame):
            yield from self._read_ragged(frame, output)
        else:
            yield from self._read_whole(frame, output)

    def _read_whole(self, frame: Frame, output: Any) -> Iterator[Activation]:
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
        }
        if "o" in self._kinds:
            sides["o"] = self._heads(frame, call), queries
        for name in self._wanted(*sides):
            tensor, parts = sides[name]
            yield from ((stream, name, part, None) for stream, part in split(tensor, 2, parts))
        for stream, extra in self._further(frame, call):
            found = {"k": extra.key, "v": extra.value}
            yield from ((stream, name, found[name], None) for name in self._wanted(*found))
        if "a" in self._kinds:
            whole = flattened(_main(output)) if frame.picture else output
            for stream, part in self._outputs(whole, keys if together else ((a, 0),)):
                yield stream, "a", part, None

    def _read_ragged(self, frame: Frame, output: Any) -> Iterator[Activation]:
        """Elements of the batch attended one by one, each with its own number of text tokens (Mochi)."""
        frame.site.type = "joint"
        latent = frame.hidden.shape[1]
        first = self._text_first(frame, frame.calls[0], frame.calls[0].key.shape[2] - latent)
        lengths = [call.key.shape[2] - latent for call in frame.calls]
        self._tokens[self._clock.network] = joined(latent, frame.text, first)
        parts = [joined(latent, length, first).parts for length in lengths]
        sides = {"k": "key", "v": "value", "q": "query", "o": "output"}
        for name in self._wanted(*sides):
            tensors = [getattr(call, sides[name]) for call in frame.calls]
            for stream, (tensor, _) in ragged(tensors, parts).items():
                yield stream, name, tensor, None if stream == "latent" else lengths
        if "a" in self._kinds:
            latents, texts = output
            yield "latent", "a", latents, None
            if texts is not None:
                pieces = [text[None, None, :n] for text, n in zip(texts, lengths)]
                padded, _ = ragged(pieces, [(("text", n),) for n in lengths])["text"]
                yield "text", "a", padded.squeeze(1), lengths

    def _wanted(self, *kinds: str) -> list[str]:
        return [kind for kind in kinds if kind in self._kinds]

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
        if tokens and call.key.shape[2] == tokens.total and frame.site.type == "single":
            return "single"  # as it was with the text of another prompt; this one has none
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

    def _heads(self, frame: Frame, main: Attended) -> Tensor:
        """What the heads give to the output projection: the sum of a layer's calls to several streams."""
        output = main.output
        for _, call in self._further(frame, main):
            output = output + call.output
        return output

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
        if not text:
            return False  # there is none; what other prompts have will show
        if site.family.text_first is not None:
            return site.family.text_first
        if site.text_first is None and frame.watch is not None:
            site.text_first = frame.watch.text_first(call.value, frame.hidden, frame.encoder, text)
        if site.text_first is None and not all(t.isfinite().all() for t in (call.value, frame.hidden, frame.encoder)):
            where = f"{site.name} ({type(site.module).__name__}) in step {self._clock.step}"
            raise NonFiniteError(f"values that are not finite reach {where}; {OVERFLOW}")
        if site.text_first is None:
            raise UnsupportedError(
                f"{site.name} ({type(site.module).__name__}): whether its text tokens come before or after the latent "
                f"ones cannot be seen; say so with {self._row(site, 'text_first=True')}"
            )
        return site.text_first

    def _outputs(self, output: Any, keys: Parts) -> Iterator[tuple[str, Tensor]]:
        """What the module returned, by stream: apart, joined, or latent alone."""
        if isinstance(output, (tuple, list)) and len(keys) > 1 and len(output) > 1:
            parts = [as_tokens(part) if isinstance(part, Tensor) else None for part in output[:2]]
            first, second = (part.shape[1] if part is not None else None for part in parts)
            swapped = second == dict(keys)["latent"] != first  # the rule is latent first
            for stream, part in zip(("text", "latent") if swapped else ("latent", "text"), parts):
                if part is not None:
                    yield stream, part
            return
        whole = as_tokens(_main(output))
        if len(keys) > 1 and whole.shape[1] == sum(length for _, length in keys):
            yield from split(whole, 1, keys)
        else:
            yield "latent" if len(keys) > 1 else keys[0][0], whole


def _main(output: Any) -> Tensor:
    return output[0] if isinstance(output, (tuple, list)) else output


def flattened(picture: Tensor) -> Tensor:
    """(batch, height * width, channel)."""
    return picture.flatten(2).transpose(1, 2)


def as_tokens(tensor: Tensor) -> Tensor:
    """(batch, token, channel): packed sequences are a batch of one; channels that are split by head are joined."""
    if tensor.ndim == 2:
        return tensor.unsqueeze(0)
    return tensor.flatten(2) if tensor.ndim > 3 else tensor
