"""Chooses which positions of an activation are kept."""

from __future__ import annotations

from dataclasses import dataclass
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

RULE, MIX = "balanced scatter", "neyman mix"

DENSE = 0.8
"""Share of the positions that go where changes vary most; the rest goes everywhere alike."""


@dataclass(frozen=True)
class Positions:
    """Kept positions of one activation (token, channel), each array of length n.

    Args:
        weight: Sum to 1; None where all are equal.
    """

    token: NDArray[np.int64]
    channel: NDArray[np.int64]
    weight: NDArray[np.float64] | None = None

    @property
    def weights(self) -> NDArray[np.float64]:
        n = len(self.token)
        return np.full(n, 1 / max(n, 1)) if self.weight is None else self.weight


@dataclass(frozen=True)
class Allotment:
    """How many positions the channels of an activation get.

    Args:
        group: Which group each channel is in, from 0; channels of one group are sampled alike.
        count: Positions of each group.
    """

    group: NDArray[np.int64]
    count: NDArray[np.int64]


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


def allot(spread: NDArray[np.float64], num_tokens: int, n: int) -> Allotment:
    """The Neyman mix: n_c = 0.8 n S_c / sum S + 0.2 n / C positions for channel c, as integers that sum to n.

    With fewer positions than channels, neighbours in the order of S share them: groups of about one position each.

    Args:
        spread: S_c, the standard deviation of |d| within each channel.
    """
    channels = len(spread)
    n = min(n, num_tokens * channels)
    spread = np.where(np.isfinite(spread), spread, 0)
    share = spread / spread.sum() if spread.sum() > 0 else np.full(channels, 1 / channels)
    wanted = n * (DENSE * share + (1 - DENSE) / channels)
    group = np.arange(channels) if n >= channels else _groups(wanted, n)
    count = _whole(np.bincount(group, wanted), np.bincount(group) * num_tokens, n)
    return Allotment(group, count)


def neyman_mix(allotment: Allotment, num_tokens: int, rng: np.random.Generator) -> Positions:
    """Distinct positions as allotted, with weights that make weighted means unbiased.

    A group has its channels in turn, in random order. Its tokens spread evenly over the token axis; those of groups
    with few positions do so together. Of C channels, a group of C_g with n_g positions weighs C_g / (C n_g) each.
    """
    group, count = allotment.group, allotment.count
    members = np.bincount(group, minlength=len(count))
    order, starts = np.argsort(group, kind="stable"), np.cumsum(members) - members
    mine = np.repeat(np.arange(len(count)), count)
    rank = np.arange(len(mine)) - (np.cumsum(count) - count)[mine]
    channel = order[starts[mine]]
    for one in np.flatnonzero((members > 1) & (count > 0)):
        rounds = np.tile(order[starts[one] :][: members[one]], (-(-count[one] // members[one]), 1))
        channel[mine == one] = rng.permuted(rounds, axis=1).flatten()[: count[one]]
    few = count[mine] < 4
    parts = np.where(few, max(few.sum(), 1), count[mine])
    rank[few] = rng.permutation(few.sum())
    token = ((rank + rng.random(len(rank))) * num_tokens / parts).astype(np.int64)
    _move_repeated(token, channel, num_tokens, rng)
    weight = (members / len(group) / np.maximum(count, 1))[mine]
    order = np.lexsort((channel, token))
    return Positions(token[order], channel[order], weight[order])


def _groups(wanted: NDArray[np.float64], n: int) -> NDArray[np.int64]:
    """The group of each channel: neighbours in size whose wanted positions sum to about one, at most n groups."""
    group, sum_of, last = np.zeros(len(wanted), np.int64), 0.0, 0
    for channel in np.argsort(-wanted, kind="stable"):
        if sum_of and sum_of + wanted[channel] / 2 >= 1 and last + 1 < n:
            last, sum_of = last + 1, 0.0
        group[channel] = last
        sum_of += wanted[channel]
    return group


def _whole(wanted: NDArray[np.float64], most: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """Integers near to what is wanted, at least 1 and at most `most`, that sum to n."""
    count = np.clip(np.floor(wanted), 1, most).astype(np.int64)
    while (missing := n - int(count.sum())) > 0:
        by_need = np.argsort(np.where(count < most, count - wanted, np.inf), kind="stable")
        count[by_need[: min(missing, int((count < most).sum()))]] += 1
    while (extra := int(count.sum()) - n) > 0:
        by_excess = np.argsort(np.where(count > 1, wanted - count, np.inf), kind="stable")
        count[by_excess[: min(extra, int((count > 1).sum()))]] -= 1
    return count


def _move_repeated(
    token: NDArray[np.int64], channel: NDArray[np.int64], num_tokens: int, rng: np.random.Generator
) -> None:
    """Give every repeated position another token of its channel."""
    _, first = np.unique(channel * num_tokens + token, return_index=True)
    for i in np.setdiff1d(np.arange(len(token)), first):
        free = np.setdiff1d(np.arange(num_tokens), token[channel == channel[i]])
        token[i] = rng.choice(free)
