"""What an interval says of a claim with a margin, and what several such answers say together."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

from scipy.special import ndtri

SUPPORTED, REFUTED, UNDERPOWERED, NOT_TESTED = "supported", "refuted", "underpowered", "not tested"

FEWEST = 3
"""Prompts without which there is no interval, and no verdict."""


class Row(NamedTuple):
    """One test of a claim: of which trace or traces and kind, the effect with its interval, and the verdict."""

    of: str
    kind: str
    effect: float
    low: float
    high: float
    verdict: str
    note: str = ""
    prompts: int = 0


def above(low: float, high: float, margin: float) -> str:
    """Of the claim that a number is above the margin: whether its whole interval is, or is below, or neither.

    >>> above(1.2, 1.9, 1.0), above(0.2, 0.9, 1.0), above(0.9, 1.1, 1.0), above(math.nan, math.nan, 1.0)
    ('supported', 'refuted', 'underpowered', 'underpowered')
    """
    if low > margin:
        return SUPPORTED
    return REFUTED if high < margin else UNDERPOWERED


def below(low: float, high: float, margin: float) -> str:
    """Of the claim that a number is below the margin.

    >>> below(0.2, 0.9, 1.0)
    'supported'
    """
    return above(-high, -low, -margin)


def near(low: float, high: float, value: float, factor: float) -> str:
    """Of the claim that a positive number is `value`, up to a factor.

    >>> near(0.09, 0.11, 0.1, 1.25), near(0.2, 0.3, 0.1, 1.25), near(0.05, 0.2, 0.1, 1.25)
    ('supported', 'refuted', 'underpowered')
    """
    inside = above(low, high, value / factor), below(low, high, value * factor)
    return for_all(inside)


def prompts_needed(value: float, low: float, high: float, margin: float, prompts: int) -> int | None:
    """About how many prompts would make the interval end at the margin, if the number stays what it is.

    Half an interval shrinks with the root of the number of prompts. None where it takes a hundred times as many, or
    where there is no interval.

    >>> prompts_needed(1.2, 0.8, 1.6, 1.0, 10)
    40
    """
    half = (value - low) if value > margin else (high - value)
    away = abs(value - margin)
    if not (half > 0 and away > 0):
        return None
    needed = math.ceil(prompts * (half / away) ** 2 * (1 - 1e-12))
    return needed if needed <= 100 * prompts else None


def stands_among(row: Row, margin: float | None, cases: int) -> bool:
    """Whether a case is on its side of the margin still when its 95 % interval is widened for so many cases.

    By Bonferroni, as of a normal number: z(1 - 0.025 / cases) / z(0.975) times as wide. Without a margin it stands.

    >>> row = Row("", "", 1.06, 1.002, 1.118, REFUTED)
    >>> stands_among(row, 1.0, 1), stands_among(row, 1.0, 18)
    (True, False)
    """
    if margin is None or not math.isfinite(row.low):
        return True
    near = row.low if row.effect > margin else row.high
    wider = ndtri(1 - 0.025 / max(cases, 1)) / ndtri(0.975)
    return bool(abs(row.effect - near) * wider < abs(row.effect - margin))


def for_all(verdicts: Iterable[str]) -> str:
    """Of a claim about all cases: one that is refuted refutes it; supported where all that were tested are.

    >>> for_all(["supported", "underpowered", "not tested"]), for_all(["supported", "refuted"]), for_all([])
    ('underpowered', 'refuted', 'not tested')
    """
    return _first((REFUTED, UNDERPOWERED, SUPPORTED), verdicts)


def for_some(verdicts: Iterable[str]) -> str:
    """Of a claim about some cases: one that is supported supports it; refuted where all that were tested are.

    >>> for_some(["supported", "refuted"]), for_some(["refuted", "underpowered"]), for_some(["refuted", "not tested"])
    ('supported', 'underpowered', 'refuted')
    """
    return _first((SUPPORTED, UNDERPOWERED, REFUTED), verdicts)


def _first(order: tuple[str, ...], verdicts: Iterable[str]) -> str:
    there = set(verdicts)
    return next((one for one in order if one in there), NOT_TESTED)
