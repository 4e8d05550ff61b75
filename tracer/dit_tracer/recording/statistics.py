"""Exact sums over whole activations, on the device where they are.

Operands are float32, totals float64. Non-finite elements are left out of every sum and counted. Nothing here waits for
the device. This is what the numbers mean, in plain torch; `chunked` and `fused` compute them faster.
"""

from __future__ import annotations

import torch
from torch import Tensor


def measure(x: Tensor, previous: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Step sums of x and transition sums from previous to x."""
    return step_sums(x), None if previous is None else transition_sums(previous, x)


def step_sums(x: Tensor, missing: Tensor | None = None) -> Tensor:
    """Per group: sum |x|, sum x^2, max |x|, count, non-finite count, as float64 (group, statistic).

    Args:
        x: Activations of shape (group, ...), the first axis being guidance branch and image.
        missing: Elements of each group that do not exist and are NaN; they are no non-finite ones.
    """
    axes = tuple(range(1, x.ndim))
    x, bad = _finite(x.float(), axes)
    size = x[0].numel()
    if missing is not None:
        bad, size = bad - missing, size - missing
    magnitude = x.abs()
    largest = magnitude.amax(axes).double() if x.numel() else bad  # of nothing, 0
    columns = (_total(magnitude, axes), _total(x * x, axes), largest, size - bad, bad)
    return torch.stack(columns, dim=1)


def transition_sums(previous: Tensor, current: Tensor) -> Tensor:
    """Per group: sum |d|, sum d^2, sum of previous * current, count of finite pairs, as float64 (group, statistic)."""
    axes = tuple(range(1, current.ndim))
    previous, current = previous.float(), current.float()
    d, bad = _finite(current - previous, axes)
    product = _clean(previous) * _clean(current)
    columns = (_total(d.abs(), axes), _total(d * d, axes), _total(product, axes), d[0].numel() - bad)
    return torch.stack(columns, dim=1)


def products(one: Tensor, other: Tensor) -> Tensor:
    """Per group: sum of one * other over the elements in which both are finite, as float64 (group)."""
    axes = tuple(range(1, one.ndim))
    return _total(_clean(one.float()) * _clean(other.float()), axes)


def token_norms(x: Tensor) -> Tensor:
    """Norm over channels of every token, float32 (group, token), of an activation (group, ..., channel)."""
    return x.float().norm(dim=-1).flatten(1)


def norm_ratios(previous: Tensor, current: Tensor) -> Tensor:
    """Per group: mean and standard deviation over tokens of |x[t + 1]| / |x[t]|, as float64 (group, 2).

    MagCache's ratio (arXiv 2506.09045, equation 4); tokens of norm 0 are left out.

    Args:
        previous, current: Norms as `token_norms` gives them.
    """
    ratio = (current / previous).double()
    usable = torch.isfinite(ratio)
    count = usable.sum(1)
    ratio = torch.where(usable, ratio, 0.0)
    mean = ratio.sum(1) / count
    square = torch.where(usable, (ratio - mean[:, None]) ** 2, 0.0).sum(1) / count
    return torch.stack([mean, square.sqrt()], dim=1)


def _finite(x: Tensor, axes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """x with zeros in place of what is not finite, and how many those were, per group."""
    clean = _clean(x)
    return clean, (clean != x).sum(axes).double()


def _clean(x: Tensor) -> Tensor:
    return torch.nan_to_num(x, nan=0.0, posinf=0.0, neginf=0.0)


def _total(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    return x.sum(axes, dtype=torch.float64)
