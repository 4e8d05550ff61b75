"""What the scripts published with the paper compute (xdit-project/DiTCacheAnalysis at 457c316), so that numbers can say
how it differs from what the paper describes."""

from __future__ import annotations

import math
from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

SCRIPT_PROMPTS = 10
"""Prompts that exp_1 and exp_2 read; the paper speaks of 1000, and of 100 for Mochi."""

SCRIPT_LAYERS = {"cogvideox-5b": 30}
"""Layers that both read of a model, where it has more."""


def curve_weights(num_prompts: int, missing: Collection[int] = ()) -> NDArray[np.float64]:
    """The weight of each prompt in a curve of exp_2's figures, which a mean would give 1 / num_prompts, (prompt).

    exp_2 keeps a running mean whose factors, (b - 1) / b and 1 / b, are those of b prompts where there are b + 1, and
    passes over files that are missing.

    >>> curve_weights(3).tolist()
    [0.0, 0.5, 0.5]
    >>> curve_weights(3, missing=[0, 1]).tolist()
    [0.0, 0.0, 0.5]
    """
    weights = np.zeros(num_prompts)
    for prompt in range(num_prompts):
        if prompt in missing:
            continue
        if prompt:
            weights *= (prompt - 1) / prompt
        weights[prompt] = 1 / prompt if prompt else 1.0
    return weights


def population_bias(num_prompts: int) -> float:
    """Expected error of a population standard deviation, as a share of the true one, for normal values.

    E[s0] / sigma - 1 with E[s0] = sigma sqrt(2 / N) G(N / 2) / G((N - 1) / 2).

    Raises:
        ValueError: Fewer than two prompts.
    """
    if num_prompts < 2:
        raise ValueError(f"{num_prompts} prompts have no standard deviation; take two or more")
    log = math.lgamma(num_prompts / 2) - math.lgamma((num_prompts - 1) / 2)
    return math.sqrt(2 / num_prompts) * math.exp(log) - 1


def half_precision_error(significant_bits: int) -> float:
    """Largest relative error of rounding a mean once to so many significant bits: 11 in float16, 8 in bfloat16."""
    return 2.0**-significant_bits
