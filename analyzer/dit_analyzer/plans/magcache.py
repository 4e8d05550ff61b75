"""MagCache's magnitude ratios (arXiv 2506.09045) from a trace, and how many steps its rule would skip with them.

r[t] is what all blocks add at step t: output of the last block less input of the first one, latent tokens. The rule is
that of diffusers 0.42 (`hooks/mag_cache.py`); other ports compare with < instead of <=.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from dit_formats.plan import PlanError
from dit_formats.reader import Trace
from dit_formats.schema import STACK
from numpy.typing import ArrayLike, NDArray

from dit_analyzer.measures.bootstrap import drawn_shares, percentiles
from dit_analyzer.measures.jackknife import jackknife_t
from dit_analyzer.measures.signals import signals
from dit_analyzer.measures.views.given import Floats, halves, need_sites
from dit_analyzer.plans.skips import Skips

MAX_SKIP, RETENTION, THRESHOLD = 3, 0.2, 0.06
"""Defaults of diffusers: steps skipped in a row, share of the first steps that never are, accumulated error."""


@dataclass(frozen=True)
class Ratios:
    """Magnitude ratios, a value for each step; of the first step, which has none before it, 1.0 and deviations 0.

    Args:
        branches: Names of the guidance halves.
        ratios: mean over prompts of the mean over tokens of |r[t]| / |r[t - 1]|, (branch, step).
        token_std: Mean over prompts of the standard deviation of that over tokens, (branch, step).
        prompt_std: Standard deviation over prompts of the mean over tokens, (branch, step); NaN of one prompt.
        low, high: 95 % interval of `ratios` from the prompts (jackknife, logarithms), (branch, step).
        cosine: Mean over prompts of the cosine of r[t] and r[t - 1] as wholes, (branch, step).
        by_prompt: The ratio of each prompt, (prompt, branch, step).
    """

    branches: tuple[str, ...]
    ratios: Floats
    token_std: Floats
    prompt_std: Floats
    low: Floats
    high: Floats
    cosine: Floats
    by_prompt: Floats

    @property
    def joint(self) -> Floats:
        """One ratio for all branches, (step): of a batch that holds them, as they have equally many tokens."""
        return self.ratios.mean(0)

    @property
    def apart(self) -> float:
        """Largest difference between branches at a step."""
        return float(np.ptp(self.ratios, axis=0).max())

    @property
    def interleaved(self) -> Floats:
        """Branch after branch within each step, (step x branch): the order in which guided ports count."""
        return self.ratios.T.ravel()


def ratios(trace: Trace) -> Ratios:
    """The ratios of a trace.

    Raises:
        IncompleteError: No stack, or one step only.
        PlanError: At some steps nothing was recorded, or nothing was added by the blocks.
    """
    need_sites(trace, "residual")
    places = halves(trace, STACK)
    ds = signals(trace).sel(site="residual", drop=True).isel(branch=places)
    axes = ("prompt", "branch", "transition")
    arrays = (ds[name].transpose(*axes).values for name in ("ratio_mean", "ratio_std", "cosine"))
    try:
        return of_values(*arrays, branches=tuple(ds.branch.values.tolist()))
    except PlanError as error:
        raise PlanError(f"{trace.path}: {error}") from None


def of_values(ratio: ArrayLike, std: ArrayLike, cosine: ArrayLike, branches: tuple[str, ...]) -> Ratios:
    """The same from arrays (prompt, branch, transition).

    Raises:
        PlanError: A ratio is missing, infinite or 0.
    """
    ratio, std, cosine = (np.asarray(values, float) for values in (ratio, std, cosine))
    bad = ~(np.isfinite(ratio) & (ratio > 0)).all((0, 1))
    if bad.any():
        steps = ", ".join(map(str, np.flatnonzero(bad) + 1))
        raise PlanError(
            f"no magnitude ratio into step {steps}: not recorded there, or the blocks add nothing; no MagCache"
        )
    found = jackknife_t(lambda kept: ratio[kept].mean(0), len(ratio), "log")
    many = len(ratio) > 1
    return Ratios(
        branches,
        _led(ratio.mean(0), 1.0),
        _led(std.mean(0), 0.0),
        _led(ratio.std(0, ddof=1) if many else np.full(ratio.shape[1:], np.nan), 0.0),
        _led(found.low, 1.0),
        _led(found.high, 1.0),
        _led(cosine.mean(0), 1.0),
        _led(ratio, 1.0),
    )


def _led(values: Floats, first: float) -> Floats:
    """The values of transitions as those of steps, with one for the first step."""
    return np.concatenate([np.full((*values.shape[:-1], 1), first), values], -1)


def skipped(
    ratios: ArrayLike, threshold: ArrayLike, max_skip: int = MAX_SKIP, retention: float = RETENTION
) -> NDArray[np.bool_]:
    """Which steps the rule skips, (..., step), in float32 as diffusers counts.

    A step multiplies the accumulated ratio by its own and adds |1 - accumulated ratio| to the accumulated error; it is
    skipped while that is at most the threshold and no more than `max_skip` steps were skipped before it in a row; all
    starts anew when a step is computed. The first `retention` of the steps are computed.

    Args:
        ratios: (..., step), led by that of the first step.
        threshold: Of the accumulated error, one or an array (...).

    >>> skipped([1, 1.01, 1.01, 1.2], 0.05, retention=0).astype(int)
    array([0, 1, 1, 0])
    """
    values, limit = np.asarray(ratios, np.float32), np.asarray(threshold, np.float32)
    shape, steps = np.broadcast_shapes(values.shape[:-1], limit.shape), values.shape[-1]
    mask = np.zeros((*shape, steps), bool)
    product, error, run = np.ones(shape, "f4"), np.zeros(shape, "f4"), np.zeros(shape, int)
    for step in range(int(retention * steps + 0.5), steps):
        product = product * values[..., step]
        error = error + np.abs(np.float32(1) - product)
        run = run + 1
        skip = (error <= limit) & (run <= max_skip) & (step > 0)
        mask[..., step] = skip
        product, error, run = np.where(skip, product, np.float32(1)), np.where(skip, error, np.float32(0)), run * skip
    return mask


def skips(found: Ratios, threshold: float, max_skip: int = MAX_SKIP, retention: float = RETENTION) -> Skips:
    """How many steps that threshold skips with one ratio for all branches.

    The interval is what other prompts might have given (bootstrap); single prompts: calibrated on each of them alone.
    """
    by_prompt = found.by_prompt.mean(1)
    count = len(by_prompt)

    def number(values: Floats) -> NDArray[np.intp]:
        return skipped(values, threshold, max_skip, retention).sum(-1)

    low, high = percentiles(number(drawn_shares(count) @ by_prompt), count)
    alone = number(by_prompt)
    whole = int(number(found.joint))
    return Skips(threshold, whole, float(low), float(high), int(alone.min()), int(alone.max()), by_prompt.shape[1])


def threshold_for(ratios: ArrayLike, share: float, max_skip: int = MAX_SKIP, retention: float = RETENTION) -> float:
    """The middle of the lowest range of thresholds that skip this share of all steps or more.

    All thresholds of that range skip the same steps, so that rounding and < or <= do not matter.

    Args:
        ratios: (step)

    Raises:
        ValueError: No threshold skips so many.
    """
    values = np.asarray(ratios, float)
    steps = values.shape[-1]
    reached = _accumulated(values, max_skip)
    between = np.append((reached[1:] + reached[:-1]) / 2, 2 * reached[-1] + 1)
    numbers = skipped(values, between, max_skip, retention).sum(-1)
    enough = np.flatnonzero(numbers >= share * steps - 1e-9)
    if share <= 0 or not len(enough):
        most = f"{numbers.max()} of {steps} steps, at most {max_skip} in a row and none of the first {retention:.0%}"
        raise ValueError(f"share {share:.0%}: give more than 0, and up to {numbers.max() / steps:.0%} ({most})")
    return float(between[enough[0]])


def _accumulated(ratios: Floats, max_skip: int) -> Floats:
    """All errors that can be accumulated from some step on, ascending, each once, with 0."""
    errors = [0.0]
    for first in range(1, len(ratios)):
        errors += np.cumsum(np.abs(1 - np.cumprod(ratios[first : first + max_skip]))).tolist()
    return np.unique(errors)
