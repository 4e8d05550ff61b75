"""Noise levels of the paper's models without running them: what its step counts and its scheduler change could show.

A grid is sigma before each step, (step), from noise to image, as the pipelines of diffusers set it.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Grid = NDArray[np.float64]

FLUX_SHIFTS = {"base_tokens": 256, "most_tokens": 4096, "base": 0.5, "most": 1.15}
"""FLUX.1-dev's scheduler: logarithm of the shift at the fewest and at the most latent tokens."""

SD3_SHIFT = 3.0


def flux_shift(tokens: int = 4096) -> float:
    """FLUX's shift at so many latent tokens: the exponential of a line between the two ends of `FLUX_SHIFTS`.

    >>> round(flux_shift(), 3)
    3.158
    """
    few, many, low, high = FLUX_SHIFTS.values()
    return math.exp(low + (high - low) * (tokens - few) / (many - few))


def shifted(num_steps: int, shift: float) -> Grid:
    """Evenly spaced levels from 1 to 1 / num_steps, shifted towards noise: s u / (1 + (s - 1) u) (arXiv 2403.03206,
    section 5.3.2).

    >>> shifted(4, 3.0).round(3).tolist()
    [1.0, 0.9, 0.75, 0.5]
    """
    even = 1 - np.arange(num_steps) / num_steps
    return shift * even / (1 + (shift - 1) * even)


def linear_quadratic(num_steps: int, threshold: float = 0.025) -> Grid:
    """Mochi's levels: a line from 1 to 1 - threshold in the first half of the steps,
    then a parabola to 0, without kink.
    """
    half = num_steps // 2
    rest = num_steps - half
    slope = threshold / half
    curve = (1 - threshold - slope * rest) / rest**2
    step = np.arange(num_steps)
    late = np.maximum(step - half, 0)
    return 1 - slope * step - curve * late**2


def bfloat16(values: Grid) -> Grid:
    """The values rounded to bfloat16, half to even."""
    bits = np.asarray(values, np.float32).view(np.uint32).astype(np.uint64)
    bits = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16 << 16
    return bits.astype(np.uint32).view(np.float32).astype(np.float64)


def contrast(one: Grid, other: Grid) -> tuple[float, int]:
    """max |d sigma| of two grids of equal length, and the step where it is.

    Raises:
        ValueError: They have different numbers of steps, or none.
    """
    if len(one) != len(other) or not len(one):
        raise ValueError(f"grids of {len(one)} and {len(other)} steps; compare schedules at the same number of steps")
    apart = np.abs(one - other)
    return float(apart.max()), int(apart.argmax())


def from_paper_step(step: int, num_steps: int) -> int:
    """The transition that the paper draws at `step`, which it counts down: step 16 of 28 is transition 10.

    >>> from_paper_step(16, 28), from_paper_step(34, 56)
    (10, 20)
    """
    return num_steps - 2 - step


def equal_pairs(grid: Grid) -> list[int]:
    """Transitions over which the level stays the same."""
    return np.flatnonzero(grid[1:] == grid[:-1]).tolist()
