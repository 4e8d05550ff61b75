"""Says whose tokens are where in what an attention module computes, from token numbers and, once, from values.

Streams line up along the token axis. Most of it can be seen from outside: a module that gets 4096 latent and 512 text
tokens and attends to 4608 joins them, and where the rows of V are rows that some part of the module computed from the
latent tokens, there the latent tokens stand.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from dit_tracer.recording.families import Parts


@dataclass(frozen=True)
class Tokens:
    """How the tokens of one element of a batch line up where a layer joins several streams."""

    parts: Parts

    @property
    def total(self) -> int:
        return sum(length for _, length in self.parts)

    @property
    def latent(self) -> int:
        return dict(self.parts).get("latent", 0)

    @property
    def start(self) -> int:
        """Where the latent tokens start."""
        place = [stream for stream, _ in self.parts].index("latent")
        return sum(length for _, length in self.parts[:place])


def joined(latent: int, text: int, text_first: bool) -> Tokens:
    parts = (("latent", latent), ("text", text))
    return Tokens(parts[::-1] if text_first else parts)


@dataclass
class Attended:
    """One call of scaled dot-product attention: tensors (batch, head, token, channel)."""

    query: Tensor
    key: Tensor
    value: Tensor
    output: Tensor

    def __post_init__(self) -> None:
        self._versions = self._written()

    @property
    def changed(self) -> bool:
        """Whether K or V was written to since."""
        return self._written() != self._versions

    def _written(self) -> tuple[int, ...]:
        return tuple(0 if t.is_inference() else t._version for t in (self.key, self.value))

    @property
    def tokens(self) -> tuple[int, int]:
        return self.query.shape[2], self.key.shape[2]


@dataclass
class Watch:
    """What the parts of an attention module got and gave, for the one call that shows how streams line up."""

    seen: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    handles: list[Any] = field(default_factory=list)

    def on(self, module: nn.Module) -> Watch:
        for part in module.modules():
            if part is not module:
                self.handles.append(part.register_forward_hook(self._note))
        return self

    def off(self) -> None:
        for handle in self.handles:
            handle.remove()

    def _note(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if args and isinstance(args[0], Tensor) and isinstance(output, Tensor) and output.ndim == args[0].ndim == 3:
            self.seen.append((args[0].detach(), output.detach()))

    def text_first(self, value: Tensor, hidden: Tensor, encoder: Tensor, text: int) -> bool | None:
        """Whether text comes first in V, by where rows are found that parts computed; None if they are not.

        Args:
            value: V of both streams, (batch, head, token, channel), with `text` text tokens.
            hidden, encoder: What the module was given, (batch, token, channel).
        """
        if value.is_meta:
            return False  # no numbers to look at, and none will be recorded
        latent = value.shape[2] - text
        first_latent = {False: value[0, :, 0], True: value[0, :, text]}
        first_text = {False: value[0, :, latent], True: value[0, :, 0]}
        for given, output in self.seen:
            if _starts_with(given, hidden) and given.shape[1] == hidden.shape[1]:
                found = [first for first, row in first_latent.items() if _holds(output[0, 0], row)]
            elif _starts_with(given, encoder) and given.shape[1] == encoder.shape[1]:
                found = [first for first, row in first_text.items() if _holds(output[0, 0], row)]
            elif given.shape[1] == hidden.shape[1] + encoder.shape[1]:
                found = [first for first, whole in {False: hidden, True: encoder}.items() if _starts_with(given, whole)]
            else:
                continue
            if len(found) == 1:
                return found[0]
        return None


def _starts_with(given: Tensor, whole: Tensor) -> bool:
    """Whether the first token of a part's input is the first token of what the module was given."""
    return given.shape[-1] == whole.shape[-1] and torch.equal(given[0, 0], whole[0, 0])


def _holds(row: Tensor, values: Tensor) -> bool:
    """Whether all values of a row of V are among those of a part's output; fused projections give more."""
    return bool(torch.isin(values.reshape(-1), row).all())


def kind_of_attention(hidden: int, encoder: int | None, same: bool, call: Attended) -> str | None:
    """Type of a layer by token numbers: `joint`, `cross`, `self`; None for a side call, as IP-Adapter makes.

    Args:
        hidden, encoder: Tokens that the module was given; encoder is None where it was given one sequence.
        same: Whether both are one and the same tensor.
    """
    queries, keys = call.tokens
    if encoder is None or same:
        return "self" if keys == hidden else None
    if keys == hidden + encoder:
        return "joint"
    return "cross" if keys == encoder and queries == hidden else None


def split(tensor: Tensor, axis: int, parts: Parts) -> Iterator[tuple[str, Tensor]]:
    """The parts of a tensor by stream, latent first."""
    start, found = 0, {}
    for stream, length in parts:
        found[stream] = tensor.narrow(axis, start, length)
        start += length
    yield from sorted(found.items())


def ragged(tensors: list[Tensor], parts: list[Parts]) -> dict[str, tuple[Tensor, list[int]]]:
    """Elements of a batch that were attended one by one, put together by stream, shorter ones padded with NaN.

    Args:
        tensors: (1, head, token, channel) each.
        parts: Streams of each.

    Returns:
        By stream the tensor (batch, head, token, channel), and how many tokens of each element exist.
    """
    found: dict[str, list[Tensor]] = {}
    for tensor, one in zip(tensors, parts):
        for stream, part in split(tensor, 2, one):
            found.setdefault(stream, []).append(part)
    return {stream: (_stacked(pieces), [piece.shape[2] for piece in pieces]) for stream, pieces in found.items()}


def _stacked(pieces: list[Tensor]) -> Tensor:
    longest = max(piece.shape[2] for piece in pieces)
    if all(piece.shape[2] == longest for piece in pieces):
        return torch.cat(pieces)
    fill = float("nan")
    return torch.cat([nn.functional.pad(p, (0, 0, 0, longest - p.shape[2]), value=fill) for p in pieces])
