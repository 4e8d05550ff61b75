"""A curve of L1 over transitions as the measures of its shape read it: its log, and what its transitions are called."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class Axis:
    """What a transition is called: its number, the number of steps, and the noise levels if known."""

    transitions: NDArray[np.int64]
    num_steps: int
    sigma: NDArray[np.float64] | None

    def names(self, place: int) -> dict[str, int | float | None]:
        transition = int(self.transitions[place])
        sigma = None if self.sigma is None else float(self.sigma[place])
        return {"transition": transition, "paper_step": self.num_steps - 2 - transition, "sigma": sigma}


def read_curve(
    curve: ArrayLike | xr.DataArray, sigma: ArrayLike | None, num_steps: int | None, dimensions: int
) -> tuple[NDArray[np.float64], Axis]:
    """The L1 with the transition last, and what its transitions are called."""
    numbers: NDArray[np.int64] | None = None
    if isinstance(curve, xr.DataArray):
        if "transition" not in curve.dims:
            raise ValueError(f"the curve has dimensions {list(curve.dims)}; change points need a dimension transition")
        curve = curve.transpose(..., "transition")
        numbers = np.asarray(curve["transition"].values, np.int64) if "transition" in curve.coords else None
        if sigma is None and "sigma" in curve.coords and curve["sigma"].dims == ("transition",):
            sigma = curve["sigma"].values
    l1 = np.asarray(curve, np.float64)
    if l1.ndim != dimensions:
        wanted = "one curve over transitions, the mean over prompts" if dimensions == 1 else "(layer, transition)"
        raise ValueError(f"shape {l1.shape} has {l1.ndim} dimensions; expected {wanted}")
    numbers = np.arange(l1.shape[-1]) if numbers is None else numbers
    return l1, Axis(numbers, _steps(numbers, num_steps), _sigmas(sigma, l1.shape[-1]))


def _steps(transitions: NDArray[np.int64], num_steps: int | None) -> int:
    needed = int(transitions[-1]) + 2 if len(transitions) else 0
    if num_steps is not None and num_steps < needed:
        raise ValueError(f"num_steps {num_steps} with a transition {needed - 2}; that takes {needed} steps or more")
    return needed if num_steps is None else num_steps


def _sigmas(sigma: ArrayLike | None, n: int) -> NDArray[np.float64] | None:
    if sigma is None:
        return None
    values = np.asarray(sigma, np.float64)
    if values.shape not in {(n,), (n + 1,)}:
        raise ValueError(f"sigma has shape {values.shape}; expected {n} values (transitions) or {n + 1} (steps)")
    return values[:n]


def log_of(l1: NDArray[np.float64]) -> NDArray[np.float64]:
    usable = np.isfinite(l1) & (l1 > 0)
    return np.where(usable, np.log(np.where(usable, l1, 1.0)), np.nan)


def unusable(l1: NDArray[np.float64], axis: Axis) -> dict[int, str]:
    reasons = {int(t): _reason(float(value)) for t, value in zip(axis.transitions, l1)}
    return {transition: reason for transition, reason in reasons.items() if reason}


def _reason(value: float) -> str:
    if not np.isfinite(value):
        return f"not finite ({value})"
    return "" if value > 0 else "constant: L1 is zero" if value == 0 else f"negative ({value:g})"
