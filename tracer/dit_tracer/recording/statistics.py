"""Exact sums over whole activations, on the device where they are.

Operands are float32, totals float64. Non-finite elements are left out of every sum and counted. Nothing here waits for
the device.
"""

from __future__ import annotations

import torch
from torch import Tensor


def step_sums(x: Tensor) -> Tensor:
    """Per group: sum |x|, sum x^2, max |x|, count, non-finite count, as float64 (group, statistic).

    Args:
        x: Activations of shape (group, ...), the first axis being guidance branch and image.
    """
    axes = tuple(range(1, x.ndim))
    x, bad = _finite(x.float(), axes)
    size = x[0].numel()
    magnitude = x.abs()
    columns = (_total(magnitude, axes), _total(x * x, axes), magnitude.amax(axes).double(), size - bad, bad)
    return torch.stack(columns, dim=1)


def transition_sums(previous: Tensor, current: Tensor) -> Tensor:
    """Per group: sum |d|, sum d^2, sum of previous * current, count of finite pairs, as float64 (group, statistic)."""
    axes = tuple(range(1, current.ndim))
    previous, current = previous.float(), current.float()
    d, bad = _finite(current - previous, axes)
    product = _clean(previous) * _clean(current)
    columns = (_total(d.abs(), axes), _total(d * d, axes), _total(product, axes), d[0].numel() - bad)
    return torch.stack(columns, dim=1)


def _finite(x: Tensor, axes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """x with zeros in place of what is not finite, and how many those were, per group."""
    clean = _clean(x)
    return clean, (clean != x).sum(axes).double()


def _clean(x: Tensor) -> Tensor:
    return torch.nan_to_num(x, nan=0.0, posinf=0.0, neginf=0.0)


def _total(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    return x.sum(axes, dtype=torch.float64)
