"""A curve of L1 over transitions in words: what it does, and for how many of the prompts it does the same."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

TURN = np.log(1.25)
"""A rise or fall of less is no move."""
DEVIATIONS = 5
"""Nor is one of fewer standard deviations of the noise: the range of 30 to 60 values of noise alone is 4 to 5."""
BIG = np.log(2)
"""Rise or fall of a fluctuation or a spike."""
SHARP = 0.6
"""Share of a rise within two transitions from which on it is sharp."""
REVERSALS = 3
EARLY, LATE = 0.4, 0.75
"""Shares of the curve: fluctuations before the first, a spike's onset after the second."""
FEWEST = 4
WORDS = {
    "": "flat",
    "-": "decreasing",
    "+": "increasing",
    "-+": "U-shaped",
    "+-": "mid bump",
    "-+-": "decrease-increase-decrease",
}


@dataclass(frozen=True)
class Move:
    """From transition `start` to `stop` the L1 changes by `factor`."""

    start: int
    stop: int
    factor: float


@dataclass(frozen=True)
class Shape:
    """What `shape_of` says of a curve.

    Attributes:
        word: flat, decreasing, increasing, U-shaped, mid bump, decrease-increase-decrease, decreasing with a sharp
            rise, early fluctuation, late spike, or irregular, where none of these is true.
        phrase: The moves in one line, as in "falls x0.35 to transition 9, jumps x2.2 in 1 transition, falls
            x0.7 to transition 26".
        moves: The moves themselves, alternately down and up.
        noise: Standard deviation of the log curve's noise that was used: given, from the prompts, or from second
            differences.
        agreement: Share of curves over resampled prompts that get the same word; NaN with fewer than two prompts.
        left_out: Transitions that were left out: L1 zero, negative or not finite (in some prompt).
    """

    word: str
    phrase: str
    moves: tuple[Move, ...]
    noise: float
    agreement: float
    left_out: tuple[int, ...] = ()


def shape_of(curve: ArrayLike | xr.DataArray, noise: float | None = None, resamples: int = 200, seed: int = 0) -> Shape:
    """The word for a curve of L1, and its moves: the zigzag of its log over turns larger than the noise.

    Args:
        curve: L1 over transitions, or (prompt, transition), of which the mean is described and the prompts resampled.
        noise: Relative standard deviation of the (mean) curve; by default from the prompts, of three or more, about
            their mean shape, else from second differences.

    Raises:
        ValueError: Other dimensions, or fewer than four usable transitions.
    """
    l1, numbers = _read(curve)
    usable = (np.isfinite(l1) & (l1 > 0)).all(0)
    if usable.sum() < FEWEST:
        raise ValueError(
            f"{usable.sum()} of {len(usable)} transitions have a positive, finite L1; a shape needs {FEWEST}"
        )
    l1, kept = l1[:, usable], numbers[usable]
    y = np.log(l1.mean(0))
    noise = _noise(l1, y) if noise is None else noise
    word, corners = _describe(y, noise)
    moves = tuple(
        Move(int(kept[i]), int(kept[j]), float(np.exp(y[j] - y[i]))) for i, j in zip(corners[:-1], corners[1:])
    )
    agreement = _agreement(l1, noise, word, resamples, seed)
    left_out = tuple(int(t) for t in numbers[~usable])
    return Shape(word, _phrase(y, moves, kept), moves, float(noise), agreement, left_out)


def _read(curve: ArrayLike | xr.DataArray) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The L1 as (prompt, transition), and the numbers of the transitions."""
    numbers: NDArray[np.int64] | None = None
    if isinstance(curve, xr.DataArray):
        if not {"transition"} <= set(curve.dims) <= {"prompt", "transition"}:
            raise ValueError(f"dimensions {list(curve.dims)}; expected transition, with or without prompt")
        curve = curve.transpose(..., "transition")
        numbers = np.asarray(curve["transition"].values, np.int64) if "transition" in curve.coords else None
    l1 = np.asarray(curve, np.float64)
    if l1.ndim not in {1, 2} or not l1.size:
        raise ValueError(f"shape {l1.shape}; expected one curve over transitions or (prompt, transition)")
    l1 = np.atleast_2d(l1)
    return l1, np.arange(l1.shape[1]) if numbers is None else numbers


def _noise(l1: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Of the mean log curve: from prompts about their mean shape, each prompt's level removed; else from its bends."""
    if len(l1) >= 3:
        log = np.log(l1)
        rest = log - log.mean(0) - log.mean(1, keepdims=True) + log.mean()
        freedom = (len(l1) - 1) * (l1.shape[1] - 1)
        return float(np.sqrt((rest**2).sum() / freedom / len(l1)))
    bends = np.diff(y, 2)
    return float(1.4826 * np.median(abs(bends)) / np.sqrt(6))


def _describe(y: NDArray[np.float64], noise: float) -> tuple[str, list[int]]:
    """The word and the corners of a log curve."""
    turn = max(TURN, DEVIATIONS * noise)
    corners = _zigzag(y, turn)
    if _fluctuates_early(y, noise):
        return "early fluctuation", corners
    if _spikes_late(y, noise):
        return "late spike", corners
    if np.ptp(_smoothed(y)) < TURN or len(corners) < 2:
        return "flat", corners if len(corners) < 2 else [corners[0], corners[-1]]
    signs = "".join("+" if y[j] > y[i] else "-" for i, j in zip(corners[:-1], corners[1:]))
    if signs == "-+-" and _sharpness(y, corners[1], corners[2]) >= SHARP:
        return "decreasing with a sharp rise", corners
    return WORDS.get(signs, "irregular"), corners


def _zigzag(y: NDArray[np.float64], turn: float) -> list[int]:
    """Corners of the curve: ends and turning points between moves of at least `turn`; one corner if it never moves."""
    low = high = 0
    corners: list[int] = []
    rising = 0
    for i, value in enumerate(y):
        low, high = (i if value < y[low] else low), (i if value > y[high] else high)
        if rising >= 0 and value <= y[high] - turn:
            corners.append(high)
            rising, low, high = -1, i, i
        elif rising <= 0 and value >= y[low] + turn:
            corners.append(low)
            rising, low, high = 1, i, i
    return [0] if not rising else _to_the_ends(corners, len(y))


def _to_the_ends(corners: list[int], n: int) -> list[int]:
    return sorted({0, *corners[1:], n - 1})


def _fluctuates_early(y: NDArray[np.float64], noise: float) -> bool:
    corners = np.array(_zigzag(y, max(BIG, DEVIATIONS * noise))[1:-1])
    early = int((corners < EARLY * len(y)).sum())
    return early >= REVERSALS and len(corners) - early <= 1


def _spikes_late(y: NDArray[np.float64], noise: float) -> bool:
    """The last fifth stands out of a quiet rest, and it comes at once."""
    n = len(y)
    head, tail = y[: int(LATE * n)], y[-max(n // 5, 1) :]
    quiet = np.ptp(_smoothed(head)) < max(BIG, DEVIATIONS * noise)
    if not quiet or tail.max() - np.median(head) < BIG:
        return False
    onset = int(np.argmax(y > np.median(head) + BIG / 2))
    return onset >= LATE * n and y[min(onset + 1, n - 1)] - y[onset - 1] >= BIG / 2


def _sharpness(y: NDArray[np.float64], start: int, stop: int) -> float:
    """The share of the rise from start to stop within two transitions."""
    steps = np.diff(y[start : stop + 1])
    most = np.convolve(steps, np.ones(2)).max() if len(steps) > 1 else steps[0]
    return float(most / (y[stop] - y[start]))


def _smoothed(y: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.convolve(y, np.ones(3) / 3, "valid") if len(y) >= 3 else y


def _agreement(l1: NDArray[np.float64], noise: float, word: str, resamples: int, seed: int) -> float:
    """The share of bootstrap samples of prompts whose mean curve gets the word."""
    if len(l1) < 2 or resamples < 1:
        return float("nan")
    draws = np.random.default_rng(seed).integers(0, len(l1), (resamples, len(l1)))
    words = Counter(_describe(np.log(l1[draw].mean(0)), noise)[0] for draw in draws)
    return words[word] / resamples


def _phrase(y: NDArray[np.float64], moves: tuple[Move, ...], kept: NDArray[np.int64]) -> str:
    """The moves as text; one of two transitions or fewer is a jump or a drop."""
    if not moves:
        return f"stays within x{np.exp(np.ptp(y)):.2f}"
    place = {int(t): k for k, t in enumerate(kept)}
    return ", ".join(_sentence(y, place[move.start], place[move.stop], move) for move in moves)


def _sentence(y: NDArray[np.float64], start: int, stop: int, move: Move) -> str:
    length = move.stop - move.start
    within = f"in {length} transition{'s' * (length > 1)}"
    if length <= 2:
        return f"{'jumps' if y[stop] > y[start] else 'drops'} x{move.factor:.2g} {within}"
    return f"{'rises' if y[stop] > y[start] else 'falls'} x{move.factor:.2g} to transition {move.stop}"
