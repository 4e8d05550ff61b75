"""Mean squares of a mean over prompts from which the noise of the prompts is taken off, and intervals of such numbers.

Of values x_p (prompt, cell), mean over cells of (mean_p x)^2 - var_p(x) / P is the mean of x_p x_q over all pairs of
different prompts p and q. So the products of the prompts tell it, also without each prompt in turn.
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

FLIPS = 4999
ALL_FLIPS = 12
"""Up to so many prompts have their signs flipped in all 2^11 ways that differ."""


def products(values: Floats) -> Floats:
    """Mean over cells of x_p x_q, (prompt, prompt)."""
    return values @ values.T / values.shape[1]


def mean_square(product: Floats) -> float:
    """Mean over cells of the squared mean over prompts, without their noise; of one prompt, with it."""
    prompts = len(product)
    if prompts == 1:
        return float(product[0, 0])
    return float((product.sum() - np.trace(product)) / (prompts * (prompts - 1)))


def mean_square_without_each(product: Floats) -> Floats:
    """The same without each prompt in turn, (prompt); NaN of fewer than 3, for then there is no pair left."""
    prompts, own = len(product), np.diag(product)
    if prompts < 3:
        return np.full(prompts, np.nan)
    rest = product.sum() - 2 * product.sum(1) + own
    return (rest - (own.sum() - own)) / ((prompts - 1) * (prompts - 2))


def sign_flip(product: Floats) -> float:
    """p-value of "the mean over prompts is 0 in every cell": how often flipped signs give as large a mean square.

    All ways up to 12 prompts, else 4999 random ones of a fixed seed beside the one that was found. NaN of one prompt.
    """
    prompts = len(product)
    if prompts < 2:
        return float("nan")
    if prompts <= ALL_FLIPS:
        signs = np.array([(1, *rest) for rest in itertools.product((1, -1), repeat=prompts - 1)], float)
    else:
        signs = np.random.default_rng(0).choice([1.0, -1.0], (FLIPS + 1, prompts))
        signs[0] = 1
    found = np.einsum("sp,pq,sq->s", signs, product, signs, optimize=True)
    return float((found >= found[0] * (1 - 1e-9)).mean())
