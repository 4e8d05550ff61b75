"""The sums of `statistics`, on a GPU: two kernels an activation, which read every element once. Needs Triton.

Torch brings Triton along where it was built for CUDA or ROCm. Elsewhere, and where the kernels do not compile or do not
give the numbers that torch gives (tried once a device), `usable` says no.
"""

from __future__ import annotations

import functools
import warnings
from typing import Any

import torch
from torch import Tensor

from dit_tracer.recording import statistics
from dit_tracer.recording.chunked import in_rows

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None

BLOCK, BLOCKS = 1024, 16
"""Elements that a program looks at at once, and how often; its sums are float32, those over programs float64."""

MAX_ROWS = 65535
"""A launch has no more programs along its second and third axis."""


def measure(x: Tensor, previous: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Step sums of x and transition sums from previous to x, as `statistics` gives them; does not wait for the device.

    Args:
        x, previous: Activations of shape (group, ...), of any strides.
    """
    now, before = in_rows(x, previous)
    if now.shape[1] > MAX_ROWS:
        now = now.reshape(len(now), 1, -1)
        before = None if before is None else before.reshape(len(now), 1, -1)
    groups, rows, length = now.shape
    programs = -(-length // (BLOCK * BLOCKS))
    partial = torch.empty(groups, rows * programs, 8, device=x.device)
    found = torch.empty(groups, 9, dtype=torch.float64, device=x.device)
    other = now if before is None else before
    with _on(x.device):
        _partial_sums[programs, rows, groups](
            now, other, partial, length, *now.stride()[:2], *other.stride()[:2], before is not None, BLOCK, BLOCKS
        )
        _total_sums[(groups,)](partial, found, rows * programs, rows * length, BLOCK)
    return found[:, :5], None if before is None else found[:, 5:]


@functools.cache
def usable(device: torch.device) -> bool:
    """Whether `measure` works on this device; tried on a few numbers."""
    if triton is None or device.type != "cuda":
        return False
    try:
        return agrees(device)
    except Exception as error:  # compilers fail in many ways, and torch's own kernels do
        warnings.warn(f"Triton does not work on {device} ({error}); tracing takes longer", stacklevel=2)
        return False


def agrees(device: torch.device) -> bool:
    """Whether the kernels give what torch gives, for two steps of a few thousand elements, some not finite."""
    generator = torch.Generator().manual_seed(0)
    previous, x = torch.randn(2, 2, 3, 40, 300, generator=generator).to(device, torch.bfloat16)
    x, previous = (t[..., :256].transpose(1, 2) for t in (x, previous))
    x[0, 0, 0, 0], previous[1, 1, 1, 1] = torch.inf, torch.nan
    found = measure(x, previous)
    expected = statistics.step_sums(x), statistics.transition_sums(previous, x)
    alone = measure(x, None)[0]
    pairs = zip((*found, alone), (*expected, expected[0]))
    return all(torch.allclose(one, other, rtol=1e-5, atol=1e-2) for one, other in pairs)


def _on(device: torch.device) -> Any:
    return torch.cuda.device(device) if device.type == "cuda" else torch.no_grad()


if triton is not None:

    @triton.jit
    def _partial_sums(
        x,
        previous,
        partial,
        length,
        x_group,
        x_row,
        previous_group,
        previous_row,
        compared: tl.constexpr,
        block: tl.constexpr,
        blocks: tl.constexpr,
    ):
        """Sums over `blocks` blocks of one row: |x|, x^2, max |x|, not finite, |d|, d^2, products, pairs not finite."""
        program, row, group = tl.program_id(0), tl.program_id(1), tl.program_id(2)
        x += group.to(tl.int64) * x_group + row.to(tl.int64) * x_row
        previous += group.to(tl.int64) * previous_group + row.to(tl.int64) * previous_row
        zeros = tl.zeros([block], dtype=tl.float32)
        sum_abs, sum_square, max_abs, bad = zeros, zeros, zeros, zeros
        change_abs, change_square, product, bad_pairs = zeros, zeros, zeros, zeros
        infinity = float("inf")
        for i in range(blocks):
            at = program * block * blocks + i * block + tl.arange(0, block)
            inside = at < length
            now = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
            finite = tl.abs(now) < infinity  # false for NaN
            clean = tl.where(finite, now, 0.0)
            sum_abs += tl.abs(clean)
            sum_square += clean * clean
            max_abs = tl.maximum(max_abs, tl.abs(clean))
            bad += tl.where(finite, 0.0, 1.0)
            if compared:
                before = tl.load(previous + at, mask=inside, other=0.0).to(tl.float32)
                change = now - before
                pair = tl.abs(change) < infinity
                change = tl.where(pair, change, 0.0)
                change_abs += tl.abs(change)
                change_square += change * change
                product += clean * tl.where(tl.abs(before) < infinity, before, 0.0)
                bad_pairs += tl.where(pair, 0.0, 1.0)
        out = partial + ((group * tl.num_programs(1) + row) * tl.num_programs(0) + program).to(tl.int64) * 8
        tl.store(out, tl.sum(sum_abs))
        tl.store(out + 1, tl.sum(sum_square))
        tl.store(out + 2, tl.max(max_abs))
        tl.store(out + 3, tl.sum(bad))
        tl.store(out + 4, tl.sum(change_abs))
        tl.store(out + 5, tl.sum(change_square))
        tl.store(out + 6, tl.sum(product))
        tl.store(out + 7, tl.sum(bad_pairs))

    @triton.jit
    def _total_sums(partial, found, programs, size, block: tl.constexpr):
        """The sums of one group: five of the step, four of the transition."""
        group = tl.program_id(0)
        partial += group.to(tl.int64) * programs * 8
        found += group * 9
        zeros = tl.zeros([block], dtype=tl.float64)
        sum_abs, sum_square, max_abs, bad = zeros, zeros, zeros, zeros
        change_abs, change_square, product, bad_pairs = zeros, zeros, zeros, zeros
        for start in range(0, programs, block):
            row = start + tl.arange(0, block)
            inside = row < programs
            at = partial + row * 8
            sum_abs += tl.load(at, mask=inside, other=0.0).to(tl.float64)
            sum_square += tl.load(at + 1, mask=inside, other=0.0).to(tl.float64)
            max_abs = tl.maximum(max_abs, tl.load(at + 2, mask=inside, other=0.0).to(tl.float64))
            bad += tl.load(at + 3, mask=inside, other=0.0).to(tl.float64)
            change_abs += tl.load(at + 4, mask=inside, other=0.0).to(tl.float64)
            change_square += tl.load(at + 5, mask=inside, other=0.0).to(tl.float64)
            product += tl.load(at + 6, mask=inside, other=0.0).to(tl.float64)
            bad_pairs += tl.load(at + 7, mask=inside, other=0.0).to(tl.float64)
        missing, missing_pairs = tl.sum(bad), tl.sum(bad_pairs)
        tl.store(found, tl.sum(sum_abs))
        tl.store(found + 1, tl.sum(sum_square))
        tl.store(found + 2, tl.max(max_abs))
        tl.store(found + 3, size - missing)
        tl.store(found + 4, missing)
        tl.store(found + 5, tl.sum(change_abs))
        tl.store(found + 6, tl.sum(change_square))
        tl.store(found + 7, tl.sum(product))
        tl.store(found + 8, size - missing_pairs)
