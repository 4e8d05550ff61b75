"""The network's prediction along a generation, and how far a plan ends from where it would have ended.

What is left out adds an error to the latents at its step; errors of several steps may add up or cancel. To first order
the final latents are off by their sum, w[t] (y[t] - x[t]) over the steps t that are left out, position by position; it
is linear in x, so that a plan is a vector of coefficients.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Track:
    """The guided prediction of one prompt at sampled positions.

    Args:
        weights: Of positions, divided by the mean size of the final latents and the number of elements, (position).
        values: (position, step)
        moved: How far an error moves the latents, (step).
    """

    weights: NDArray[np.float32]
    values: NDArray[np.float32]
    moved: Floats

    def error(self, compute: NDArray[np.bool_], levels: Floats, linear: bool) -> float:
        """Relative L1 of the final latents under a plan, to first order."""
        sums = coefficients(compute, levels, self.moved, linear)
        return float(self.weights.astype(float) @ np.abs(self.values.astype(float) @ sums))


def coefficients(compute: NDArray[np.bool_], levels: Floats, moved: Floats, linear: bool) -> Floats:
    """What the sum of a plan's errors takes of the prediction at each step, (step).

    >>> coefficients(np.array([True, True, False]), np.array([2.0, 1, 0]), np.ones(3), True).tolist()
    [-1.0, 2.0, -1.0]
    """
    sums = np.zeros(len(levels))
    before = last = 0
    for step, computed in enumerate(compute):
        if computed:
            before, last = (last, step) if step else (0, 0)
            continue
        known = linear and before != last
        ahead = (levels[step] - levels[last]) / (levels[last] - levels[before]) if known else 0.0
        for at, part in ((last, 1 + ahead), (before, -ahead), (step, -1.0)):
            sums[at] += moved[step] * part
    return sums
