"""The sums of `statistics`, on a CPU with a C++ compiler: torch.compile makes one loop of them, as fast as memory is.

Worth its few seconds of compilation for large models only. `chunked` needs no compiler, and takes twice as long.
"""

from __future__ import annotations

import functools
import math
import warnings
from typing import Any

import torch
from torch import Tensor

from dit_tracer.recording.chunked import as_rows

WORTH = 1 << 24
"""Parameters of a model from which on compiling pays. The model alone decides, so that runs repeat to the bit."""

LARGE = 1 << 14
"""Elements of an activation from which on a call pays."""

LONGEST, SHORTEST = 2048, 256
"""Elements summed in float32 before float64 takes over: a divisor of the row's length between these."""


def measure(x: Tensor, previous: Tensor | None) -> tuple[Tensor, Tensor | None] | None:
    """Step sums of x and transition sums from previous to x, as `statistics` gives them.

    None if x is none for this: too small, of a length that has no good parts, or not finite.

    Args:
        x, previous: Activations of shape (group, ...).
    """
    if x.numel() < LARGE or not usable():
        return None
    now, before = as_rows(x, previous)
    length = _divisor(now.shape[2])
    if length is None:
        return None
    try:
        with torch.compiler.set_stance("default"):  # a recorder makes everything else run as it is written
            partial = _compiled()(
                now.unflatten(2, (-1, length)), None if before is None else before.unflatten(2, (-1, length))
            )
    except _limit():  # more layouts than torch.compile keeps apart
        return None
    sums = partial.sum((2, 3), dtype=torch.float64).T.tolist()
    if not all(math.isfinite(number) for row in sums for number in row):
        return None
    largest, count = partial[2].amax((1, 2)).tolist(), float(now[0].numel())
    steps = [[row[0], row[1], most, count, 0.0] for row, most in zip(sums, largest)]
    changes = [[*row[3:], count] for row in sums]
    return _tensor(steps), None if previous is None else _tensor(changes)


def _sums(now: Tensor, before: Tensor | None) -> Tensor:
    """Of every piece: sum |x|, sum x^2, max |x| and, with a `before`, sum |d|, sum d^2, sum of products.

    Args:
        now, before: (group, row, piece, element).

    Returns:
        (number, group, row, piece).
    """
    x = now.float()
    size = x.abs()
    columns = [size.sum(3), (x * x).sum(3), size.amax(3)]
    if before is not None:
        y = before.float()
        change = x - y
        columns += [change.abs().sum(3), (change * change).sum(3), (x * y).sum(3)]
    return torch.stack(columns)


def _tensor(rows: list[list[float]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


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
            found = _compiled()(x, x.clone())
        return torch.equal(found, _sums(x, x))
    except Exception:  # compilers fail in many ways
        return False


@functools.cache
def _limit() -> type[Exception]:
    """What torch.compile raises at its limit; the import takes a second, so it waits until something is compiled."""
    from torch._dynamo.exc import FailOnRecompileLimitHit

    return FailOnRecompileLimitHit


def _divisor(length: int) -> int | None:
    """The largest part of a row that fits into it whole."""
    return next((part for part in range(min(LONGEST, length), SHORTEST - 1, -1) if length % part == 0), None)
