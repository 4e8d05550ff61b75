"""Is the sample what it says it is? Its distances against the exact ones, in units of its standard error.

For each cell, z = (l1 of the sample - exact l1) / SE. If positions were drawn as they say, z is about standard normal.
The positions of a layer and kind are the same at all steps, prompts and branches, so their z stray together: what the
mean of z may be off by comes from the layers and kinds, each taken as one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xarray as xr
from dit_formats.console import plural
from dit_formats.reader import Trace

from dit_analyzer.measures.distance import distances

NORMAL = 1.96
"""A standard normal variable is within -1.96 to 1.96 in 95 % of all cases."""

ROUNDING = 1e-3
"""Relative difference that sums in other orders, or half precision, may leave where the sample holds all elements."""

PROMPTS = 8
"""Prompts that are looked at, evenly spread: positions are common, so more of them tell little more."""


@dataclass(frozen=True)
class Worst:
    """A cell that strays far."""

    z: float
    prompt: int
    branch: str
    stream: str
    kind: str
    layer: int
    name: str
    transition: int

    def __str__(self) -> str:
        where = f"layer {self.layer} ({self.name}), {self.kind}, {self.stream} {self.branch}"
        return f"z {self.z:+.1f} at {where}, prompt {self.prompt}, transition {self.transition}"


@dataclass(frozen=True)
class Audit:
    """How the sample agrees with the exact statistics.

    Args:
        cells: How many have a z; `whole` further ones hold all elements, and have no error but rounding.
        mean, mean_error, spread, inside: Of z: mean, its standard error, standard deviation, and share within +-1.96.
        sampled: Activations (stream, kind, layer) that have a z.
        worst: The largest |z|, one of each activation.
        off: Largest relative difference among the cells that hold all elements.
    """

    prompts: int
    cells: int
    whole: int
    sampled: int
    mean: float
    mean_error: float
    spread: float
    inside: float
    off: float
    worst: tuple[Worst, ...]

    @property
    def plausible(self) -> bool:
        """Whether z may well be standard normal; that its mean and spread stray somewhat is no wonder, for the cells of
        an activation stray together."""
        if not self.cells:
            return self.off < ROUNDING
        return not (self.inside < 0.85 or abs(self.mean) > 4 * self.mean_error) and self.off < ROUNDING

    def __str__(self) -> str:
        if not self.cells:
            return (
                f"holds all elements; exact values differ by {self.off:.1g} of them at most"
                if self.whole
                else "is empty"
            )
        off = "" if np.isnan(self.mean_error) else f" ± {self.mean_error:.2f}"
        of = f"{plural(self.sampled, 'activation')} of {plural(self.prompts, 'prompt')}"
        told = f"z {self.mean:+.2f}{off}, spread {self.spread:.2f}, {self.inside:.1%} within ±{NORMAL}"
        return f"against exact, {told}; {of}"


def audit(trace: Trace, *, prompts: int = PROMPTS, worst: int = 3) -> Audit:
    """The sampled distances of some prompts against the exact ones.

    Args:
        prompts: How many prompts to look at, at most.
        worst: How many cells to name.

    Raises:
        IncompleteError: The trace has one step, or holds no samples.
    """
    places = np.unique(np.linspace(0, len(trace.prompts) - 1, min(prompts, len(trace.prompts))).astype(int)).tolist()
    sample, exact = (distances(trace, source=source, prompts=places) for source in ("sample", "exact"))
    return audit_of(sample, exact, worst)


def audit_of(sample: xr.Dataset, exact: xr.Dataset, worst: int = 3) -> Audit:
    """The same of `distances` by both sources, of the same prompts.

    Where exact statistics were taken over a part of the elements, their own error is added.
    """
    difference = sample["l1"] - exact["l1"]
    error = np.hypot(sample["l1_se"], exact["l1_se"])
    z = (difference / error.where(error > 0)).rename("z")
    values = z.values[np.isfinite(z.values)]
    whole = (error == 0) & difference.notnull()
    off = abs(difference / exact["l1"].where(exact["l1"] > 0)).where(whole)
    clusters = _activations(z.mean(("prompt", "branch", "transition")))
    known = len(values) > 0
    return Audit(
        prompts=z.sizes["prompt"],
        cells=len(values),
        whole=int(whole.sum()),
        sampled=len(clusters),
        mean=float(values.mean()) if known else float("nan"),
        mean_error=float(clusters.std(ddof=1) / np.sqrt(len(clusters))) if len(clusters) > 1 else float("nan"),
        spread=float(np.sqrt((values**2).mean() - values.mean() ** 2)) if known else float("nan"),
        inside=float((abs(values) <= NORMAL).mean()) if known else float("nan"),
        off=float(off.max()) if whole.any() and off.notnull().any() else 0.0,
        worst=_worst(z, worst),
    )


def _activations(z: xr.DataArray) -> np.ndarray:
    """The mean z of each stream, kind and layer that has one."""
    return z.values[np.isfinite(z.values)]


def _worst(z: xr.DataArray, number: int) -> tuple[Worst, ...]:
    """The cells that stray most, the first of each activation."""
    z = z.transpose("stream", "kind", "layer", "prompt", "branch", "transition")
    size = np.where(np.isfinite(z.values), abs(z.values), -1.0)
    flat = size.reshape(*size.shape[:3], -1)
    order = np.argsort(-flat.max(-1), axis=None, kind="stable")[:number]
    found = []
    for place in order:
        activation = np.unravel_index(place, flat.shape[:3])
        inner = np.unravel_index(flat[activation].argmax(), size.shape[3:])
        cell = z[(*activation, *inner)]
        if size[(*activation, *inner)] >= 0:
            at = {axis: str(cell[axis].item()) for axis in ("branch", "stream", "kind")}
            numbers = {axis: int(cell[axis]) for axis in ("prompt", "layer", "transition")}
            found.append(Worst(float(cell), name=str(cell.layer_name.item()), **at, **numbers))
    return tuple(found)
