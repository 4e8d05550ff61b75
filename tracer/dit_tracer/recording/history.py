"""Keeps the activations of the previous step, without copying where that is safe."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

from torch import Tensor


@dataclass
class _Kept:
    step: int
    tensor: Tensor
    watched: Tensor
    version: int


class History:
    """The last activation of each place.

    A tensor is kept by reference. Should the model write into it afterwards, its version counter tells; the first step
    is therefore copied, and a place that was written to is copied ever after. Tensors of inference mode have no counter
    and are always copied.
    """

    def __init__(self) -> None:
        self._kept: dict[Hashable, _Kept] = {}
        self._copied: set[Hashable] = set()

    def swap(self, place: Hashable, step: int, tensor: Tensor) -> Tensor | None:
        """Keep this step's activation of a place; returns that of the step just before, if there is one.

        Raises:
            RuntimeError: The model changed the kept tensor after a step in which it had left it alone.
        """
        last = self._kept.get(place)
        if last is not None and _version(last.watched) != last.version:
            if last.tensor is last.watched:
                raise RuntimeError(f"{place}: changed in place after step {last.step}; its difference is lost")
            self._copied.add(place)
        if place in self._copied or tensor.is_inference():
            kept = watched = tensor.detach().clone()
        else:
            kept, watched = (tensor.clone() if last is None else tensor), tensor
        self._kept[place] = _Kept(step, kept, watched, _version(watched))
        return last.tensor if last is not None and last.step == step - 1 else None

    def at(self, place: Hashable, step: int) -> Tensor | None:
        """The activation of a place at this step, if it is the last one kept."""
        last = self._kept.get(place)
        return last.tensor if last is not None and last.step == step else None

    def clear(self) -> None:
        """Forget the activations, but not which places must be copied."""
        self._kept.clear()


def _version(tensor: Tensor) -> int:
    """How often the tensor was written to."""
    return 0 if tensor.is_inference() else tensor._version
