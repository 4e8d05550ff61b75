"""Keeps the activations of the previous step: where they are, on the host, or a part of them."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import torch
from torch import Tensor

from dit_tracer.recording.picking import offsets, picked
from dit_tracer.recording.sampling import positions

PREVIOUS = ("device", "host", "subset")
"""Ways to keep them, from fast to frugal; the first two give the same numbers."""

HELD = 1 << 18
"""Elements that are kept of an activation where only a part is: 0.5 % error of a mean change at FLUX's size."""


@dataclass
class _Kept:
    step: int
    tensor: Tensor
    watched: Tensor
    version: int


class History:
    """The last activation of each place.

    On the device a tensor is kept by reference. Should the model write into it afterwards, its version counter tells;
    the first step is therefore copied, and a place that was written to is copied ever after. Tensors of inference mode
    have no counter and are always copied. On the host, or in part, it is always a copy.

    Args:
        previous: One of `PREVIOUS`.
    """

    def __init__(self, previous: str = "device") -> None:
        self._previous = previous
        self._kept: dict[Hashable, _Kept] = {}
        self._copied: set[Hashable] = set()
        self._held: dict[Hashable, Tensor] = {}

    def swap(self, place: Hashable, step: int, tensor: Tensor) -> tuple[Tensor, Tensor] | None:
        """Keep this step's activation (group, fold, head, token, channel) of a place.

        Returns:
            The elements of the step just before, if there is one, and of this step that are to be compared; all, or
            those that are held, (group, ...).

        Raises:
            RuntimeError: The model changed the kept tensor after a step in which it had left it alone.
        """
        last = self._kept.get(place)
        follows = last is not None and last.step == step - 1
        if self._previous == "host":
            before = torch.empty_like(tensor).copy_(last.tensor, non_blocking=True) if follows else None
            self._keep(place, step, self._on_host(last, tensor))
            return (before, tensor) if follows else None
        if self._previous == "subset":
            part = self._part(tensor)
            self._keep(place, step, part)
            return (last.tensor, part) if follows else None
        self._refer(place, step, tensor, last)
        return (last.tensor, tensor) if follows else None

    def at(self, place: Hashable, step: int) -> Tensor | None:
        """The whole activation of a place at this step, if it is the last one kept."""
        last = self._kept.get(place)
        return last.tensor if last is not None and last.step == step and self._previous != "subset" else None

    def clear(self) -> None:
        """Forget the activations, but not which places must be copied."""
        self._kept.clear()

    def _refer(self, place: Hashable, step: int, tensor: Tensor, last: _Kept | None) -> None:
        if last is not None and _version(last.watched) != last.version:
            if last.tensor is last.watched:
                raise RuntimeError(f"{place}: changed in place after step {last.step}; its difference is lost")
            self._copied.add(place)
        if place in self._copied or tensor.is_inference():
            kept = watched = tensor.detach().clone()
        else:
            kept, watched = (tensor.clone() if last is None else tensor), tensor
        self._kept[place] = _Kept(step, kept, watched, _version(watched))

    def _keep(self, place: Hashable, step: int, own: Tensor) -> None:
        self._kept[place] = _Kept(step, own, own, 0)

    @staticmethod
    def _on_host(last: _Kept | None, tensor: Tensor) -> Tensor:
        """A copy in pinned memory, in that of the step before where it fits; the device orders reading and writing."""
        if last is not None and last.tensor.shape == tensor.shape and last.tensor.dtype == tensor.dtype:
            return last.tensor.copy_(tensor, non_blocking=True)
        pinned = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
        return pinned.copy_(tensor, non_blocking=True)

    def _part(self, tensor: Tensor) -> Tensor:
        """(group, element) of the held positions, which are the same for all activations of one shape."""
        layout = tensor.device, tensor.shape, tensor.stride()
        if layout not in self._held:
            _, folds, heads, tokens, width = tensor.shape
            chosen = positions(folds * tokens, heads * width, HELD, 0, "held")
            token, channel = torch.from_numpy(chosen.token), torch.from_numpy(chosen.channel)
            axes = token // tokens, channel // width, token % tokens, channel % width
            self._held[layout] = offsets(tensor, axes)
        return picked(tensor, self._held[layout])


def _version(tensor: Tensor) -> int:
    """How often the tensor was written to."""
    return 0 if tensor.is_inference() else tensor._version
