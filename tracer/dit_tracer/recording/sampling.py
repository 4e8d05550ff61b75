"""Chooses which positions of an activation are kept."""

from __future__ import annotations

from dataclasses import dataclass
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

RULE = "balanced scatter"


@dataclass(frozen=True)
class Positions:
    """Kept positions of one activation (token, channel), each array of length n."""

    token: NDArray[np.int64]
    channel: NDArray[np.int64]


def positions(num_tokens: int, num_channels: int, n: int, seed: int, *names: str) -> Positions:
    """Positions of one activation; the same for the same seed and names, hence at every step and for every prompt."""
    rng = np.random.default_rng([seed, *(crc32(name.encode()) for name in names)])
    return balanced_scatter(num_tokens, num_channels, n, rng)


def balanced_scatter(num_tokens: int, num_channels: int, n: int, rng: np.random.Generator) -> Positions:
    """n distinct positions spread evenly over tokens and over channels; all of them if there are no more than n.

    Position i takes its token from the i-th of n equal parts of the token axis, at random within the part, and its
    channel from random permutations of all channels, one after the other. Every element is equally likely, so plain
    means over the positions are unbiased, and a massive channel is in the sample as often as it should be.
    """
    if n >= num_tokens * num_channels:
        token, channel = np.divmod(np.arange(num_tokens * num_channels), num_channels)
        return Positions(token, channel)
    token = ((np.arange(n) + rng.random(n)) * num_tokens / n).astype(np.int64)
    rounds = np.tile(np.arange(num_channels), (-(-n // num_channels), 1))
    channel = rng.permuted(rounds, axis=1).flatten()[:n]
    return _distinct(token, channel, num_tokens, num_channels, rng)


def _distinct(
    token: NDArray[np.int64], channel: NDArray[np.int64], num_tokens: int, num_channels: int, rng: np.random.Generator
) -> Positions:
    """Give every repeated position a free channel of its token, or another place if the token has none."""
    flat = token * num_channels + channel
    _, first = np.unique(flat, return_index=True)
    repeated = np.setdiff1d(np.arange(len(flat)), first)
    for i in repeated:
        taken = channel[(token == token[i]) & (np.arange(len(token)) != i)]
        free = np.setdiff1d(np.arange(num_channels), taken)
        if len(free):
            channel[i] = rng.choice(free)
        else:  # a token that is kept whole; only where nearly everything is
            anywhere = np.setdiff1d(np.arange(num_tokens * num_channels), token * num_channels + channel)
            token[i], channel[i] = divmod(rng.choice(anywhere), num_channels)
    return Positions(token, channel)
