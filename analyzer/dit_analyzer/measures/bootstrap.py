"""Intervals of what moves in jumps, a number of steps for one: draw prompts with replacement, and see what comes out.

The jackknife needs a statistic that moves smoothly; a count does not. Percentile intervals of the bootstrap (Efron,
Annals of Statistics 7, 1979) are too short where prompts are few.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

REPLICATES, SEED = 1000, 0


def drawn_shares(num: int, replicates: int = REPLICATES) -> NDArray[np.float64]:
    """How often each of `num` prompts was drawn among as many, as a share, (replicate, prompt); rows sum to 1.

    `drawn_shares(num) @ values` are means over drawn prompts. The same numbers give the same draws.

    Raises:
        ValueError: No prompt.
    """
    if num < 1:
        raise ValueError("a bootstrap of no prompts; give one or more")
    rng = np.random.default_rng(SEED)
    return rng.multinomial(num, np.full(num, 1 / num), replicates) / num


def percentiles(replicates: ArrayLike, num: int, level: float = 0.95) -> tuple[NDArray, NDArray]:
    """Ends of the interval of what each draw gave, (replicate, ...): values that occurred; NaN of one prompt."""
    values = np.asarray(replicates, float)
    if num < 2:
        return np.full(values.shape[1:], np.nan), np.full(values.shape[1:], np.nan)
    ends = np.quantile(values, [(1 - level) / 2, (1 + level) / 2], axis=0, method="inverted_cdf")
    return ends[0], ends[1]
