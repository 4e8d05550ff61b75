"""Takes single elements out of an activation, in one read, whatever its strides."""

from __future__ import annotations

import torch
from torch import Tensor

from dit_tracer.recording import compiled


def offsets(x: Tensor, axes: tuple[Tensor, ...]) -> Tensor:
    """Places in memory of some elements of every group, (group, position), counted from the first element.

    Args:
        x: An activation (group, ...).
        axes: Index of each position along the axes after the first, on the host.
    """
    within = sum((axis * stride for axis, stride in zip(axes, x.stride()[1:])), torch.zeros(1, dtype=torch.int64))
    groups = torch.arange(len(x)) * x.stride(0)
    return (groups[:, None] + within).to(x.device)


def picked(x: Tensor, at: Tensor) -> Tensor:
    """The elements at these offsets, of their shape."""
    if not at.numel():
        return x.new_empty(at.shape)
    found = compiled.picked(x, at)
    if found is not None:
        return found
    extent = 1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride()))
    return x.as_strided((extent,), (1,)).index_select(0, at.flatten()).view(at.shape)
