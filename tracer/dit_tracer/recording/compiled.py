"""The sums of `statistics`, on a CPU with a C++ compiler: torch.compile makes one loop of them, as fast as memory is.

Worth its few seconds of compilation for large activations only. `chunked` needs no compiler, and takes twice as long.
"""

from __future__ import annotations

import functools
import warnings
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.exc import FailOnRecompileLimitHit

from dit_tracer.recording.chunked import as_rows

LARGE = 1 << 18
"""Elements of an activation from which on compiling pays."""

LONGEST, SHORTEST = 8192, 256
"""Elements summed in float32 before float64 takes over: a divisor of the row's length between these."""


def measure(x: Tensor, previous: Tensor | None, keep: Tensor | None = None) -> tuple[Tensor, Tensor | None] | None:
    """Step sums of x and transition sums from previous to x, as `statistics` gives them; None if x is none for this.

    Args:
        x, previous: Activations of shape (group, ...).
        keep: Where to put a copy of x; `previous`, if there is one.
    """
    if x.numel() < LARGE or not usable():
        return None
    rows = as_rows(x, None, previous)
    length = _divisor(rows[0].shape[2])
    if length is None or previous is not None and rows[2] is None:
        return None
    now, before = (None if t is None else t.unflatten(2, (-1, length)) for t in (rows[0], rows[2]))
    try:
        with torch.compiler.set_stance("default"):  # a recorder makes everything else run as it is written
            partial = _compiled()(now, before, keep is not None)
    except FailOnRecompileLimitHit:  # more layouts than torch.compile keeps apart
        return None
    if previous is None and keep is not None:
        keep.copy_(x)
    sums = torch.stack([column.sum((1, 2), dtype=torch.float64) for column in partial], dim=1)
    sums[:, 2] = partial[2].amax((1, 2))
    size = rows[0][0].numel()
    steps = torch.cat([sums[:, :3], size - sums[:, 3:4], sums[:, 3:4]], dim=1)
    return steps, None if previous is None else torch.cat([sums[:, 4:7], size - sums[:, 7:]], dim=1)


def _sums(now: Tensor, before: Tensor | None, keep: bool) -> tuple[Tensor, ...]:
    """The eight numbers that `chunked` has of a group, of every piece of (group, row, piece, element).

    Args:
        keep: Whether to put a copy of `now` where `before` is.
    """
    x = now.float()
    finite = x.abs() < torch.inf  # false for NaN
    clean = torch.where(finite, x, 0.0)
    size = clean.abs()
    columns = [size.sum(3), (clean * clean).sum(3), size.amax(3), (~finite).float().sum(3)]
    if before is not None:
        y = before.float()
        change = x - y
        pair = change.abs() < torch.inf
        change = torch.where(pair, change, 0.0)
        product = clean * torch.where(y.abs() < torch.inf, y, 0.0)
        columns += [change.abs().sum(3), (change * change).sum(3), product.sum(3), (~pair).float().sum(3)]
        if keep:
            before.copy_(now)
    return tuple(columns)


@functools.cache
def _compiled() -> Any:
    return torch.compile(_sums, dynamic=True, fullgraph=True)


@functools.cache
def usable() -> bool:
    """Whether torch.compile works on this machine; tried on a few numbers."""
    x = (torch.arange(2.0 * LONGEST) % 7).view(1, 1, 2, LONGEST)
    try:
        with torch.compiler.set_stance("default"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = _compiled()(x, x.clone(), True)
        return all(map(torch.equal, found, _sums(x, x, False)))
    except Exception:  # compilers fail in many ways
        return False


def _divisor(length: int) -> int | None:
    """The largest part of a row that fits into it whole."""
    return next((part for part in range(min(LONGEST, length), SHORTEST - 1, -1) if length % part == 0), None)
