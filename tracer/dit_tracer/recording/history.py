"""Keeps the activations of the previous step: where they are, on the host, or a part of them."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dit_tracer.recording.picking import offsets, picked
from dit_tracer.recording.sampling import positions

PREVIOUS = ("device", "host", "subset")
"""Ways to keep them, from fast to frugal; the first two give the same numbers."""

HELD = 1 << 18
"""Elements that are kept of an activation where only a part is: 0.5 % error of a mean change at FLUX's size."""

NEVER = -2


class Pair(NamedTuple):
    """What is to be compared, (group, ...), whole or in part: `before` is None without a step just before.

    `keep` is where a copy of the whole activation is still to be put, when `before` (often the same memory) is used up.
    """

    before: Tensor | None
    now: Tensor
    keep: Tensor | None = None


@dataclass
class _Kept:
    step: int
    tensor: Tensor
    watched: Tensor | None = None
    version: int = 0


class History:
    """The last activation of each place.

    On the device a tensor is kept by reference. Should the model write into it afterwards, its version counter tells;
    the first step is therefore copied, and a place that was written to is copied ever after. Tensors of inference mode
    have no counter and are always copied. On the host it is a copy, in memory that is used for all steps; also for what
    is computed there, since a model that cannot use its own memory again while it is in the cache is a tenth slower.

    Args:
        previous: One of `PREVIOUS`.
        by_reference: Whether to do so on a CPU too.
    """

    def __init__(self, previous: str = "device", by_reference: bool = False) -> None:
        self._previous = previous
        self._by_reference = by_reference
        self._kept: dict[Hashable, _Kept] = {}
        self._written: set[Hashable] = set()
        self._held: dict[Hashable, Tensor] = {}

    def swap(self, place: Hashable, step: int, x: Tensor) -> Pair:
        """Keep this step's activation (group, fold, head, token, channel) of a place; what it is to be compared with.

        Raises:
            RuntimeError: The model changed the kept tensor after a step in which it had left it alone.
        """
        last = self._kept.get(place)
        before = last.tensor if last is not None and last.step == step - 1 else None
        if self._previous == "subset":
            part = self._part(x)
            self._kept[place] = _Kept(step, part)
            return Pair(before, part)
        if self._previous == "host" or x.device.type == "cpu" and not self._by_reference:
            if last is None or last.tensor.shape != x.shape or last.tensor.dtype != x.dtype:
                last = self._kept[place] = _Kept(step, _likewise(x))
            last.step, own = step, last.tensor
            if before is not None and before.device != x.device:
                before = torch.empty_like(x).copy_(before, non_blocking=True)
            return Pair(before, x, own)
        self._refer(place, step, x, last)
        return Pair(before, x)

    def at(self, place: Hashable, step: int) -> Tensor | None:
        """The whole activation of a place at this step, if it is the last one kept."""
        last = self._kept.get(place)
        return last.tensor if last is not None and last.step == step and self._previous != "subset" else None

    def end(self) -> None:
        """Forget the activations of a generation, but not which places must be copied, and keep memory for the next."""
        self._kept = {place: _Kept(NEVER, kept.tensor) for place, kept in self._kept.items() if kept.watched is None}

    def clear(self) -> None:
        """Give all memory back."""
        self._kept.clear()
        self._held.clear()

    def _refer(self, place: Hashable, step: int, tensor: Tensor, last: _Kept | None) -> None:
        if last is not None and _version(last.watched) != last.version:
            if last.tensor is last.watched:
                raise RuntimeError(f"{place}: changed in place after step {last.step}; its difference is lost")
            self._written.add(place)
        if place in self._written or tensor.is_inference():
            kept = watched = tensor.detach().clone()
        else:
            kept, watched = (tensor.clone() if last is None else tensor), tensor
        self._kept[place] = _Kept(step, kept, watched, _version(watched))

    def _part(self, x: Tensor) -> Tensor:
        """(group, element) of the held positions, which are the same for all activations of one shape."""
        layout = x.device, x.shape, x.stride()
        if layout not in self._held:
            _, folds, heads, tokens, width = x.shape
            chosen = positions(folds * tokens, heads * width, HELD, 0, "held")
            token, channel = torch.from_numpy(chosen.token), torch.from_numpy(chosen.channel)
            axes = token // tokens, channel // width, token % tokens, channel % width
            self._held[layout] = offsets(x, axes)
        return picked(x, self._held[layout])


def _likewise(x: Tensor) -> Tensor:
    """Memory of the host that x fits into, laid out as x is."""
    with torch.inference_mode(False):
        return torch.empty_like(x, device="cpu", pin_memory=x.is_cuda)


def _version(tensor: Tensor) -> int:
    """How often the tensor was written to."""
    return 0 if tensor.is_inference() else tensor._version
