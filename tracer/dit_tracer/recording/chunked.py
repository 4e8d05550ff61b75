"""The sums of `statistics`, on a CPU: every activation is read once, in pieces that stay in the processor's cache.

Some six times as fast as one operation of torch after the other over the whole tensor. A piece's sums are float32
(sums of many small sums, relative error about 1e-7), totals are float64. Elements that are not finite make a sum that
is not; then, and only then, the slow way tells them apart.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator

import torch
from torch import Tensor

from dit_tracer.recording import statistics

CHUNK = 1 << 16
"""Elements of a piece: few enough to stay in the cache, and two threads have something to do."""

_SCRATCH = threading.local()


def measure(x: Tensor, previous: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Step sums of x and transition sums from previous to x, as `statistics` gives them.

    Args:
        x, previous: Activations of shape (group, ...), of any strides.
    """
    steps, changes = [], []
    xs, before = as_rows(x, previous)
    for group in range(len(x)):
        one = xs[group]
        sums = _group_sums(one, None if before is None else before[group])
        if all(map(math.isfinite, sums)):
            count = float(one.numel())
            steps.append([*sums[:3], count, 0.0])
            changes.append([*sums[3:], count])
        else:
            part = slice(group, group + 1)
            steps.append(statistics.step_sums(x[part])[0].tolist())
            if previous is not None:
                changes.append(statistics.transition_sums(previous[part], x[part])[0].tolist())
    found = torch.tensor(steps, dtype=torch.float64)
    return found, None if previous is None else torch.tensor(changes, dtype=torch.float64)


def _group_sums(x: Tensor, previous: Tensor | None) -> list[float]:
    """Sum |x|, sum x^2, max |x| and, if there is a previous, sum |d|, sum d^2, sum of products; of (row, element)."""
    sums = [0.0] * (3 if previous is None else 6)
    for rows, part in _pieces(*x.shape):
        now = _flat(x[rows, part], 0)
        work = _buffer(2, now.numel())
        sums[1] += torch.mul(now, now, out=work).sum().item()  # BLAS would sum without pairing: 100 times the error
        sums[0] += torch.abs(now, out=work).sum().item()
        largest = work.amax().item()
        sums[2] = largest if not largest <= sums[2] else sums[2]  # NaN too
        if previous is not None:
            before = _flat(previous[rows, part], 1)
            sums[5] += torch.mul(now, before, out=work).sum().item()
            change = torch.sub(now, before, out=_buffer(3, now.numel()))
            sums[4] += torch.mul(change, change, out=work).sum().item()
            sums[3] += change.abs_().sum().item()
    return sums


def as_rows(x: Tensor, previous: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Both as (group, row, element), elements in the order in which x lies in memory; not copied, if that can be.

    Sums do not depend on the order of elements, only on the same order in both.
    """
    order = sorted(range(1, x.ndim), key=lambda axis: -x.stride(axis))
    both = [None if t is None else t.permute(0, *order) for t in (x, previous)]
    for start in range(1, x.ndim):
        rows = [None if t is None else _merged(t, start) for t in both]
        if rows[0] is not None and (previous is None or rows[1] is not None):
            return rows[0], rows[1]
    return x.reshape(len(x), 1, -1), None if previous is None else previous.reshape(len(x), 1, -1)


def _merged(x: Tensor, start: int) -> Tensor | None:
    """(group, row, element), the axes from `start` on being the element; None if that needs a copy."""
    if x.ndim == 1 or x.stride(-1) != 1 and x.shape[-1] > 1:
        return None
    try:
        return x.view(len(x), math.prod(x.shape[1:start]), math.prod(x.shape[start:]))
    except RuntimeError:
        return None


def _pieces(rows: int, length: int) -> Iterator[tuple[slice, slice]]:
    """Parts of long rows, or several short ones."""
    if length >= CHUNK:
        for row in range(rows):
            for start in range(0, length, CHUNK):
                yield slice(row, row + 1), slice(start, start + CHUNK)
    elif length:
        several = CHUNK // length
        for row in range(0, rows, several):
            yield slice(row, row + several), slice(None)


def _flat(piece: Tensor, place: int) -> Tensor:
    """A piece as one row of float32: itself, or a copy in a buffer."""
    if piece.dtype == torch.float32 and piece.is_contiguous():
        return piece.view(-1)
    buffer = _buffer(place, piece.numel())
    buffer.view(piece.shape).copy_(piece)
    return buffer


def _buffer(place: int, length: int) -> Tensor:
    """One of four pieces of memory of this thread; it never leaves `_group_sums`."""
    if getattr(_SCRATCH, "length", 0) != CHUNK:
        _SCRATCH.length = CHUNK
        with torch.inference_mode(False):
            _SCRATCH.buffers = torch.empty(4, CHUNK)
    return _SCRATCH.buffers[place, :length]
