"""Standard errors and intervals of any statistic: leave some of the data out, and see how much it moves.

With T_i the statistic without unit i of n, on a scale g where its distribution is about symmetric,

    SE^2 = (n - 1) / n * sum_i (g(T_i) - mean_j g(T_j))^2,    interval g(T) -+ t_{n - 1} SE,

drawn back through g (Efron and Stein, Annals of Statistics 9, 1981; Tukey, 1958, for t). Units are prompts, or groups
of sampled positions. It needs a statistic that moves smoothly with the data: of a median the error is wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtrit

Floats = NDArray[np.float64]
Scale = tuple[Callable[[Floats], Floats], Callable[[Floats], Floats]]


def _unchanged(x: Floats) -> Floats:
    return x


def _root(x: Floats) -> Floats:
    """A square may come out negative where noise was subtracted; the distance itself is then 0."""
    return np.sqrt(np.maximum(x, 0))


SCALES: dict[str, Scale] = {
    "none": (_unchanged, _unchanged),
    "log": (np.log, np.exp),
    "atanh": (np.arctanh, np.tanh),
    "square": (lambda x: x * np.abs(x), _root),
}
"""For differences; what is positive (CV, a factor); what lies in -1..1 (a correlation, S); and a distance of 0 or more,
whose statistic may return -sqrt(-D^2) where its estimate of D^2 is negative."""


@dataclass(frozen=True)
class Estimate:
    """A number or an array of them, with its error.

    Args:
        value: Of all data.
        error: Standard error on the scale on which the interval was made; on a log scale it is a relative error.
        bias: On that scale, what the value is too large by, as far as replicates tell: (n - 1) (mean_i g(T_i) - g(T)).
        low, high: Ends of the interval, on the scale of `value`.
        replicates: How many parts were left out, one at a time; the interval is Student's with one degree less.
    """

    value: Floats
    error: Floats
    low: Floats
    high: Floats
    bias: Floats
    replicates: int


def jackknife_t(
    statistic: Callable[[NDArray[np.intp]], ArrayLike],
    num: int,
    transform: str = "none",
    *,
    groups: ArrayLike | None = None,
    level: float = 0.95,
) -> Estimate:
    """The statistic of `num` units, with an interval from leaving out each of them.

    Where it never moves the error is 0; where it cannot be had without some unit, or there is one unit only, error and
    interval are NaN.

    Args:
        statistic: From the places of the units that are kept, ascending, to a number or an array of fixed shape.
        transform: One of `SCALES`.
        groups: Label of each unit, where whole groups are left out instead of units.

    Raises:
        ValueError: No such scale, no unit, or labels that are not one for each unit.

    >>> x = np.array([1.0, 2, 3, 4])
    >>> found = jackknife_t(lambda kept: x[kept].mean(), 4)
    >>> print(round(float(found.error), 3), round(float(x.std(ddof=1) / 2), 3))
    0.645 0.645
    """
    if num < 1:
        raise ValueError("a jackknife of no units; give one or more")
    labels = np.arange(num) if groups is None else np.asarray(groups)
    if labels.shape != (num,):
        raise ValueError(f"groups of shape {labels.shape} for {num} units; give one label for each")
    places = np.arange(num)
    names = np.unique(labels)
    whole = np.asarray(statistic(places), float)
    rest = [np.asarray(statistic(places[labels != name]), float) for name in names] if len(names) > 1 else []
    return from_replicates(whole, np.array(rest).reshape(len(rest), *whole.shape), transform, level=level)


def from_replicates(
    whole: ArrayLike,
    without: ArrayLike,
    transform: str = "none",
    *,
    level: float = 0.95,
    bias: bool = False,
    least: ArrayLike = 0.0,
) -> Estimate:
    """The same where the statistic was computed already.

    Args:
        whole: Of all data, of any shape.
        without: With each unit left out, (unit, ...).
        bias: Whether the error shall hold the bias too, as the root of the sum of squares. A CV, say, is the larger the
            fewer positions it comes from.
        least: Error on the scale that is known to be there at least.
    """
    value, rest = np.asarray(whole, float), np.asarray(without, float)
    n = len(rest)
    if n < 2:
        nothing = np.full(value.shape, np.nan)
        return Estimate(value, nothing, nothing, nothing, nothing, n)
    error, off = _error(value, rest, transform)
    error = np.maximum(np.hypot(error, off) if bias else error, least)
    _, back = _scale(transform)
    low, high = (back(end) for end in _ends(value, stdtrit(n - 1, (1 + level) / 2) * error, transform))
    return Estimate(value, error, low, high, off, n)


def _error(value: Floats, rest: Floats, transform: str) -> tuple[Floats, Floats]:
    """Standard error and bias on the scale, from values with each unit left out; NaN where one is not finite."""
    there, _ = _scale(transform)
    n = len(rest)
    with np.errstate(divide="ignore", invalid="ignore"):
        moved = there(rest)
        error = np.sqrt((n - 1) / n * ((moved - moved.mean(0)) ** 2).sum(0))
        bias = (n - 1) * (moved.mean(0) - there(value))
    still = (rest == value).all(0)  # also at 0 on a log scale, and at 1 on that of atanh
    return np.where(still, 0.0, error), np.where(still, 0.0, bias)


def _ends(value: Floats, half: Floats, transform: str) -> tuple[Floats, Floats]:
    """Ends on the scale; where there is no error, both are the value, be it infinite there."""
    there, _ = _scale(transform)
    with np.errstate(divide="ignore", invalid="ignore"):
        middle = there(value)
        return np.where(half == 0, middle, middle - half), np.where(half == 0, middle, middle + half)


def _scale(transform: str) -> Scale:
    if transform not in SCALES:
        raise ValueError(f"scale {transform!r}: give one of {', '.join(SCALES)}")
    return SCALES[transform]
