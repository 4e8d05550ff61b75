"""`stability` of two runs that have no prompt in common, as two models traced with prompts of their own.

D^2 and S are as there, with the noise of each run's prompts taken off on its own:

    D^2 = <a^2> + <b^2> - 2 mean (a b),    <a^2> the mean of a_p a_q over all pairs of different prompts p and q.

Its error is the root of the sum of squares of what leaving out one's prompts, and the other's, makes it move; the
interval is Student's with the degrees of freedom of the run with fewer prompts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xarray as xr
from scipy.special import stdtrit

from dit_analyzer.measures.axes import Floats
from dit_analyzer.measures.jackknife import from_replicates
from dit_analyzer.measures.stability import ALIKE, CONFIDENCE, TAU, Shapes, by_kind
from dit_analyzer.measures.unbiased import mean_square, mean_square_without_each, products


def unpaired(one: xr.Dataset, other: xr.Dataset, axis: str = "step") -> xr.Dataset:
    """How alike the curves of two runs over different prompts are.

    Args:
        one: `paper_view` of a run; so is `other`.

    Returns:
        What `stability` returns; p_value is NaN, since there is nothing to flip, and the verdict is "different" where
        the interval of D^2 lies above 0. `prompts` is the smaller of both numbers.

    Raises:
        ComparisonError: As `stability`, but for prompts.
    """
    return by_kind(one, other, axis, _compared)


def _compared(pair: Shapes) -> dict[str, object]:
    both = _Both(products(pair.one), products(pair.other), pair.one @ pair.other.T / pair.one.shape[1])
    s, *s_ends = both.estimate(of_shape=True)
    square, *ends = both.estimate(of_shape=False)
    d, d_low, d_high = (float(np.sqrt(max(value, 0.0))) if value == value else value for value in (square, *ends))
    verdict = "equivalent" if d_high < ALIKE else "different" if ends[0] > 0 else "undecided"
    s_low, s_high = (float(np.clip(end, -1, 1)) for end in s_ends)
    return {
        "s": min(s, 1.0), "s_low": s_low, "s_high": s_high, "d": d, "d_low": d_low, "d_high": d_high,
        "level": float(np.exp(pair.level)), "p_value": np.nan, "verdict": verdict,
    }  # fmt: skip


@dataclass(frozen=True)
class _Both:
    """Products of the prompts of one run, of the other, and of one with the other (prompt, prompt)."""

    one: Floats
    other: Floats
    cross: Floats

    def estimate(self, *, of_shape: bool) -> tuple[float, float, float]:
        """S, or D^2, with both ends of its interval; NaN of fewer than three prompts."""
        a, b, ab = mean_square(self.one), mean_square(self.other), self.cross.mean()
        value = float(_number(a, b, ab, of_shape))
        counts = self.cross.shape
        if min(counts) < 3:
            return value, float("nan"), float("nan")
        rest_of_one = (self.cross.sum() - self.cross.sum(1)) / (self.cross.size - counts[1])
        rest_of_other = (self.cross.sum() - self.cross.sum(0)) / (self.cross.size - counts[0])
        without = (
            _number(mean_square_without_each(self.one), b, rest_of_one, of_shape),
            _number(a, mean_square_without_each(self.other), rest_of_other, of_shape),
        )
        error = np.hypot(*(float(from_replicates(value, each).error) for each in without))
        half = stdtrit(min(counts) - 1, (1 + CONFIDENCE) / 2) * error
        return value, value - half, value + half


def _number(a: Floats | float, b: Floats | float, ab: Floats | float, of_shape: bool) -> Floats:
    square = np.asarray(a + b - 2 * ab)
    if not of_shape:
        return square
    return 1 - square / (np.maximum(a, 0) + np.maximum(b, 0) + 2 * TAU**2)
