"""TeaCache's polynomial (arXiv 2411.19108) from a trace, with what it is worth, and how many steps it would skip.

x[t] is the relative L1 change of the first block's modulated input from step t to t + 1, y[t] that of an output, both
mean |d| / mean |at step t| (equation 4), by prompt and guidance half. A polynomial of degree 4 gives y from x; steps
are skipped while the sum of its values stays below a threshold.

Which output y is of, TeaCache says in words only ("model output"; it ships no calibration), and what all ports keep and
add again is the stack's residual. vllm-omni's `coefficient_estimator.py` takes the state after the last block. So there
is a choice: `residual` by default, for its change is the error that skipping makes; `last`; or `prediction`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from dit_formats.plan import PlanError
from dit_formats.reader import Trace
from dit_formats.schema import STACK
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import nnls
from scipy.special import comb

from dit_analyzer.measures.jackknife import jackknife_t
from dit_analyzer.measures.signals import signals
from dit_analyzer.measures.views.given import Floats, halves, need_sites
from dit_analyzer.plans.skips import Skips

DEGREE = 4
FOLDS = 5
FLOOR = 0.5
"""R^2 on held-out prompts below which a polynomial is refused."""

Solve = Callable[[Floats, Floats], Floats]
OUTPUTS = ("residual", "last", "prediction")
MOST_THRESHOLDS = 400
"""Thresholds that are looked at, at most, for a share."""


class FitError(PlanError):
    """A polynomial that tells too little; the message says how little."""

    exit_code = 1


@dataclass(frozen=True)
class Pairs:
    """Changes of the modulated input, x, and of an output, y, (prompt, branch, transition); NaN where not recorded."""

    output: str
    branches: tuple[str, ...]
    x: Floats
    y: Floats


@dataclass(frozen=True)
class Rule:
    """How a port skips.

    Args:
        last: Whether the last step is always computed, as the first always is.
        absolute: Whether a negative value of the polynomial counts as positive.
    """

    last: bool = True
    absolute: bool = False


@dataclass(frozen=True)
class Fit:
    """A polynomial and its worth.

    Args:
        coefficients: Highest power first, (5).
        output: What y is of.
        r_squared, rmse: On prompts that had no part in the fit: each fifth of the prompts is predicted from the others
            (of fewer than five, each one). R^2 is against the mean of those others; NaN of one prompt, and where y is
            constant.
        within: R^2 on all points, the polynomial being from all of them; this is what is usually told.
        low, high: Range of x; beyond it the polynomial was never seen.
        monotone: Whether it nowhere falls in that range, and is nowhere negative.
        points, prompts: From how many.
    """

    coefficients: Floats
    output: str
    r_squared: float
    rmse: float
    within: float
    low: float
    high: float
    monotone: bool
    points: int
    prompts: int


def pairs(trace: Trace, output: str = "residual") -> Pairs:
    """The changes of a trace.

    Raises:
        ValueError: No such output.
        IncompleteError: No stack or not these sites, or one step only.
    """
    if output not in OUTPUTS:
        raise ValueError(f"output {output!r}: give one of {', '.join(OUTPUTS)}")
    need_sites(trace, "modulated", output)
    ds = signals(trace)["rel_l1"].isel(branch=halves(trace, STACK)).transpose("prompt", "branch", "transition", "site")
    x, y = (ds.sel(site=site).values for site in ("modulated", output))
    return Pairs(output, tuple(ds.branch.values.tolist()), x, y)


def fit(found: Pairs, *, monotone: bool = False) -> Fit:
    """The polynomial of all prompts, branches and transitions, by least squares.

    Args:
        monotone: Only one that nowhere falls and is nowhere negative between the smallest and the largest x: its
            Bernstein coefficients there ascend from 0 or more. That suffices for a polynomial to ascend, but some that
            do are left out.

    Raises:
        FitError: Too few different points.
    """
    x, y, prompt = _points(found)
    if len(np.unique(x)) <= DEGREE + 1:
        what = f"{len(np.unique(x))} different changes of the modulated input, a polynomial of degree {DEGREE}"
        raise FitError(f"{what} needs {DEGREE + 2} or more; trace more steps or prompts")
    solve = _ascending if monotone else _least_squares
    coefficients, low, high = solve(x, y), float(x.min()), float(x.max())
    residual, spread, size = *_held_out(x, y, prompt, solve), float(np.abs(y).max())
    return Fit(
        coefficients,
        found.output,
        _r_squared(residual, spread, size),
        float(np.sqrt(np.mean(residual**2))) if len(residual) else np.nan,
        _r_squared(y - np.polyval(coefficients, x), y - y.mean(), size),
        low,
        high,
        _ascends(coefficients, low, high),
        len(x),
        len(np.unique(prompt)),
    )


def require(found: Fit, *, force: bool = False) -> Fit:
    """The fit, if it tells enough or is forced.

    Raises:
        FitError: R^2 on held-out prompts is below `FLOOR`, or there is none.
    """
    if force or found.r_squared >= FLOOR:
        return found
    told = f"the polynomial explains too little of the change of the {found.output}: R^2 {found.r_squared:.2f}"
    if np.isnan(found.r_squared):
        told = f"nothing tells what the polynomial of {found.output} is worth: one prompt, or all changes are equal"
    raise FitError(f"{told} on held-out prompts, {FLOOR} is the floor; --force writes it all the same")


def skipped(coefficients: ArrayLike, x: ArrayLike, threshold: ArrayLike, rule: Rule = Rule()) -> NDArray[np.bool_]:
    """Which steps are skipped, (..., step), there being one more than transitions.

    A step is skipped while the sum of the polynomial's values since the last computed step is below the threshold.

    Args:
        x: (..., transition); NaN makes a step computed.
        threshold: One, or an array (...).

    >>> skipped([1, 0], [0.1, 0.1, 0.1, 0.1], 0.25).astype(int)
    array([0, 1, 1, 0, 0])
    """
    values = np.polyval(np.asarray(coefficients, float), np.asarray(x, float))
    values = np.abs(values) if rule.absolute else values
    limit = np.asarray(threshold, float)
    shape, steps = np.broadcast_shapes(values.shape[:-1], limit.shape), values.shape[-1] + 1
    mask, total = np.zeros((*shape, steps), bool), np.zeros(shape)
    for step in range(1, steps - rule.last):
        total = total + values[..., step - 1]
        mask[..., step] = total < limit
        total = np.where(mask[..., step], total, 0.0)
    return mask


def skips(coefficients: ArrayLike, x: Floats, threshold: float, rule: Rule = Rule()) -> Skips:
    """How many steps are skipped on average over prompts and branches.

    The interval is of that mean (jackknife); single prompts, as each is decided at run time.

    Args:
        x: (prompt, branch, transition)
    """
    numbers = skipped(coefficients, x, threshold, rule).sum(-1).mean(1)
    found = jackknife_t(lambda kept: numbers[kept].mean(), len(numbers))
    return Skips(
        threshold,
        float(found.value),
        max(float(found.low), 0.0) if np.isfinite(found.low) else np.nan,
        min(float(found.high), float(x.shape[-1] + 1)) if np.isfinite(found.high) else np.nan,
        float(numbers.min()),
        float(numbers.max()),
        x.shape[-1] + 1,
    )


def threshold_for(coefficients: ArrayLike, x: Floats, share: float, rule: Rule = Rule()) -> float:
    """The smallest of 400 thresholds that skips this share of all steps or more, on average over prompts and branches.

    Raises:
        ValueError: No threshold skips so many.
    """
    steps = x.shape[-1] + 1
    tried = reached(np.polyval(np.asarray(coefficients, float), x))
    numbers = skipped(coefficients, x[..., None, :], tried, rule).sum(-1).mean((0, 1))
    enough = np.flatnonzero(numbers >= share * steps - 1e-9)
    if share <= 0 or not len(enough):
        most = f"{numbers.max():.3g} of {steps} steps"
        raise ValueError(f"share {share:.0%}: give more than 0, and up to {numbers.max() / steps:.0%} ({most})")
    return float(tried[enough[0]])


def reached(values: Floats) -> Floats:
    """Thresholds between the smallest step and the sum of all, ascending: quantiles of sums from some step on."""
    rows = np.abs(values).reshape(-1, values.shape[-1])
    sums = np.concatenate([np.cumsum(rows[:, first:], 1).ravel() for first in range(rows.shape[1])])
    sums = sums[np.isfinite(sums)]
    ends = np.quantile(sums, np.linspace(0, 1, MOST_THRESHOLDS)) if len(sums) else np.ones(1)
    return np.append(np.unique(ends) * (1 + 1e-9), 2 * ends[-1] + 1)


def _points(found: Pairs) -> tuple[Floats, Floats, NDArray[np.intp]]:
    """x, y and the place of the prompt, of what is finite, (point)."""
    finite = np.isfinite(found.x) & np.isfinite(found.y)
    prompt = np.broadcast_to(np.arange(len(found.x))[:, None, None], found.x.shape)
    return found.x[finite], found.y[finite], prompt[finite]


def _least_squares(x: Floats, y: Floats) -> Floats:
    """What `numpy.polyfit` gives, computed where it is well conditioned."""
    found = np.polynomial.Polynomial.fit(x, y, DEGREE).convert().coef
    return np.pad(found, (0, DEGREE + 1 - len(found)))[::-1]


def _ascending(x: Floats, y: Floats) -> Floats:
    """The least squares among polynomials whose Bernstein coefficients on the range of x ascend from 0 or more."""
    low, width = x.min(), np.ptp(x)
    u = ((x - low) / width)[:, None]
    powers = np.arange(DEGREE + 1)
    bernstein = comb(DEGREE, powers) * u**powers * (1 - u) ** (DEGREE - powers)
    rises, _ = nnls(np.cumsum(bernstein[:, ::-1], 1)[:, ::-1], y)
    at = np.linspace(0, 1, DEGREE + 1)[:, None]
    values = (comb(DEGREE, powers) * at**powers * (1 - at) ** (DEGREE - powers)) @ np.cumsum(rises)
    return _least_squares(low + width * at[:, 0], values)


def _held_out(
    x: Floats, y: Floats, prompt: NDArray[np.intp], solve: Callable[[Floats, Floats], Floats]
) -> tuple[Floats, Floats]:
    """Errors of the prediction of prompts from others, and their distances from the others' mean, (point)."""
    names = np.unique(prompt)
    folds = min(FOLDS, len(names))
    residual, spread = [np.empty(0)], [np.empty(0)]
    for fold in range(folds if folds > 1 else 0):
        out = np.isin(prompt, names[fold::folds])
        if len(np.unique(x[~out])) > DEGREE + 1:
            residual.append(y[out] - np.polyval(solve(x[~out], y[~out]), x[out]))
            spread.append(y[out] - y[~out].mean())
    return np.concatenate(residual), np.concatenate(spread)


def _r_squared(residual: Floats, spread: Floats, size: float) -> float:
    """NaN where the spread is nothing but rounding of values of that size."""
    if not len(spread) or np.abs(spread).max() <= 1e-12 * size:
        return np.nan
    return float(1 - (residual**2).sum() / (spread**2).sum())


def _ascends(coefficients: Floats, low: float, high: float) -> bool:
    """Whether the polynomial nowhere falls from low to high, but for rounding, and is not negative there."""
    slope, bend = np.polyder(coefficients), np.polyder(coefficients, 2)
    turns = np.roots(bend)
    turns = turns[np.isreal(turns)].real if len(turns) else turns
    at = np.concatenate([[low, high], turns[(turns > low) & (turns < high)]])
    ends = np.polyval(coefficients, [low, high])
    rounding = 1e-9 * max(np.abs(ends).max(), 1e-300)
    return bool(np.polyval(slope, at).min() * (high - low) >= -rounding and ends[0] >= -rounding)
