"""How much the curves of different prompts differ: the coefficient of variation, with an interval.

Notation: N prompts; s is the standard deviation over prompts with N - 1 degrees of freedom; a cell is one layer and
transition (and branch and stream, before `paper_view`) of a kind.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dit_analyzer.measures.design import CROSSED, crossed
from dit_analyzer.measures.jackknife import Estimate, from_replicates

Floats = NDArray[np.float64]

REASONS = ("used", "constant", "zero", "nonfinite")
"""What became of a cell: it is used; or left out, because l1 is 0 for every prompt (nothing changes there, as text in
cross-attention), 0 for some, or not a finite number for some. Place of the word in `reason`; -1 was not recorded."""

USED, CONSTANT, ZERO, NONFINITE = range(len(REASONS))

MOST_VALUES = 1 << 22
"""Values of l1 that are looked at together."""


def variation(ds: xr.Dataset, without: xr.Dataset | None = None) -> xr.Dataset:
    """Coefficient of variation (CV) of `l1` over prompts, per cell and per kind.

    Cells where some prompt's l1 is zero or not finite are counted and left out, never changed: see `REASONS` and
    `left_out`. If the same texts were run under several seeds, CVs are over texts at each seed, as the paper's are at
    its only one, and seed is one more dimension of a cell; what seeds do, `components` tells.

    Args:
        ds: `distances` or `paper_view`, with N prompts.
        without: The same from `left_out_positions`, of the sampled tensors with one group of positions left out,
            (group, ...). The interval then holds the error of sampling too.

    Returns:
        cell_cv, as l1 without prompt: (1 + 1 / 4N) s / mean, which is nearly free of bias; reason, of the same shape.
        Per kind:
        cv, the mean of cell_cv, with cv_low and cv_high, its 95 % interval (leave-one-prompt-out jackknife of log CV,
        Student's t; NaN with two prompts), and cv_error, the standard error of log cv, which is never taken smaller
        than it would be of normal values;
        cv_position_error, the part of it that sampled positions cause, with the bias that they bring (0 if they are not
        asked for);
        cv_published, as the paper's script computes Table 2 (arXiv 2411.13588): the mean of the cells' s / mean with N
        degrees of freedom, not corrected, which at N = 10 is 7 % too low;
        cv_median, median of cell_cv, and cv_ratio, mean s / mean l1 over cells: both little moved by cells near zero;
        cells, cells_left_out, and cells_constant, cells_zero, cells_nonfinite.

    Raises:
        ValueError: Fewer than two prompts.
    """
    ds, design = _by_seed(ds)
    l1 = ds["l1"].transpose("prompt", "kind", ...)
    prompts = l1.sizes["prompt"]
    if prompts < 2:
        raise ValueError("a coefficient of variation needs two prompts or more; trace more with -n")
    reason = _reasons(l1, ds.get("count"))
    cells = [_Kind(l1.isel(kind=kind), reason.isel(kind=kind)) for kind in range(l1.sizes["kind"])]
    sampled = None if without is None else _by_seed(without)[0]["l1"].transpose("group", "prompt", "kind", ...)
    found = [
        cell.numbers(None if sampled is None else sampled.isel(kind=kind).transpose("group", *cell.axes))
        for kind, cell in enumerate(cells)
    ]
    variables = {name: ("kind", np.array([row[name] for row in found])) for name in found[0]} if found else {}
    counted = {f"cells_{name}": _count(reason == place) for place, name in enumerate(REASONS) if place}
    counts = {"cells": _count(reason == USED), "cells_left_out": _count(reason > USED)} | counted
    cell_cv = xr.concat([cell.cell_cv for cell in cells], "kind") if cells else l1.isel(prompt=0, drop=True)
    return xr.Dataset(
        {"cell_cv": cell_cv.assign_coords(kind=l1["kind"]), "reason": reason} | variables | counts,
        attrs=ds.attrs | {"prompts": prompts, "design": design, "reasons": ", ".join(REASONS)},
    )


@dataclass(frozen=True)
class LeftOut:
    """One or more transitions of a layer that have no CV, and why: `layer 3 (blocks.3.attn2), v: 0 to 26, constant`."""

    kind: str
    layer: int
    name: str
    why: str
    transitions: tuple[int, ...]
    where: str = ""
    """Branch, stream and seed, if they are apart."""

    def __str__(self) -> str:
        name = f" ({self.name})" if self.name else ""
        where = f", {self.where}" if self.where else ""
        return f"layer {self.layer}{name}, {self.kind}{where}: transitions {_ranges(self.transitions)}, {self.why}"


def left_out(found: xr.Dataset) -> list[LeftOut]:
    """The cells that `variation` left out, in order of kinds and layers."""
    reason = found["reason"].transpose("kind", "layer", ..., "transition")
    others = [axis for axis in reason.dims if axis not in ("kind", "layer", "transition")]
    names = found["layer_name"].values.tolist() if "layer_name" in found.coords else [""] * reason.sizes["layer"]
    rows = []
    for at in np.ndindex(*reason.shape[:-1]):
        line = reason[at]
        where = " ".join(f"{axis} {line[axis].item()}" for axis in others)
        for place in range(1, len(REASONS)):
            steps = tuple(line.transition.values[line.values == place].tolist())
            if steps:
                kind, layer = str(line.kind.item()), int(line.layer)
                rows.append(LeftOut(kind, layer, names[at[1]], REASONS[place], steps, where))
    return rows


class _Kind:
    """The cells of one kind, whose sums over prompts give everything with any prompt left out."""

    def __init__(self, l1: xr.DataArray, reason: xr.DataArray) -> None:
        self.axes = l1.dims
        self.used = reason.values == USED
        self.values = l1.values[:, self.used]  # (prompt, cell)
        self.n = len(self.values)
        self.mean = self.values.mean(0)
        self.squares = _but_rounding(((self.values - self.mean) ** 2).sum(0), self.n * self.mean**2, 1e-30)
        ratio = np.full(reason.shape, np.nan)
        ratio[self.used] = cell_cvs(self.mean, self.squares, self.n)
        self.cell_cv = xr.DataArray(ratio, reason.coords, reason.dims)

    def numbers(self, sampled: xr.DataArray | None) -> dict[str, float]:
        """What `variation` gives for a kind, with `sampled` (group, prompt, ...)."""
        if not self.used.any():
            names = ("cv", "cv_low", "cv_high", "cv_error", "cv_position_error")
            return dict.fromkeys((*names, "cv_published", "cv_median", "cv_ratio"), float("nan"))
        cells = cell_cvs(self.mean, self.squares, self.n)
        found, position_error = self._interval(sampled)
        return {
            "cv": float(found.value),
            "cv_low": float(found.low),
            "cv_high": float(found.high),
            "cv_error": float(found.error),
            "cv_position_error": position_error,
            "cv_published": float((np.sqrt(self.squares / self.n) / self.mean).mean()),
            "cv_median": float(np.median(cells)),
            "cv_ratio": float(np.sqrt(self.squares / (self.n - 1)).mean() / self.mean.mean()),
        }

    def _interval(self, sampled: xr.DataArray | None) -> tuple[Estimate, float]:
        """The CV with its interval, and the error that sampled positions cause.

        Half the width on the log scale is the root of the sum of squares of what prompts and what positions ask for.
        """
        value = cell_cvs(self.mean, self.squares, self.n).mean()
        found = from_replicates(value, self.without_each(), "log", least=self.normal_error())
        if sampled is None:
            return found, 0.0
        groups = np.array([self._cv_of(group[:, self.used]) for group in sampled.values])
        of_positions = from_replicates(value, groups, "log", bias=True)
        if value == 0:
            return found, float(of_positions.error)
        half = np.hypot(np.log(found.high / value), np.log(of_positions.high / value))
        low, high = value * np.exp(-half), value * np.exp(half)
        error = np.hypot(found.error, of_positions.error)
        return replace(found, error=error, low=low, high=high), float(of_positions.error)

    def _cv_of(self, values: Floats) -> float:
        """The CV of (prompt, cell)."""
        mean = values.mean(0)
        return float(cell_cvs(mean, ((values - mean) ** 2).sum(0), self.n).mean())

    def normal_error(self) -> float:
        """Standard error of log CV if values were normal.

        Two cells' standard deviations then covary by rho^2 s s' / 2 (N - 1), with rho their correlation over prompts,
        from whose square what chance makes is taken away. Where few prompts happen to be alike, the jackknife alone
        finds too small an error: at 10 prompts that costs 2 % of coverage (benchmarks/variation.py).
        """
        if self.n < 3 or not self.squares.any():
            return 0.0
        spread = np.sqrt(self.squares / (self.n - 1))
        share = spread / self.mean / (spread / self.mean).sum()
        standard = (self.values - self.mean) / np.where(spread > 0, spread, 1)
        square = ((standard * share @ standard.T / (self.n - 1)) ** 2).sum()
        square = max((square * (self.n - 1) - 1) / (self.n - 2), 0.0)
        return float(np.sqrt(square / (2 * (self.n - 1))))

    def without_each(self) -> Floats:
        """The CV with each prompt left out, (prompt); NaN where a single one would be left."""
        n = self.n
        if n < 3:
            return np.full(n, np.nan)
        result = np.empty(n)
        together = max(MOST_VALUES // max(self.values.shape[1], 1), 1)
        for first in range(0, n, together):
            x = self.values[first : first + together]
            rest = (n * self.mean - x) / (n - 1)
            squares = _but_rounding(self.squares - n / (n - 1) * (x - self.mean) ** 2, self.squares, 1e-13)
            result[first : first + together] = cell_cvs(rest, squares, n - 1).mean(-1)
        return result


def cell_cvs(mean: Floats, squares: Floats, n: int) -> Floats:
    """(1 + 1 / 4N) s / mean, from the mean of N values and the sum of squares about it."""
    return (1 + 1 / (4 * n)) * np.sqrt(squares / (n - 1)) / mean


def _by_seed(ds: xr.Dataset) -> tuple[xr.Dataset, str]:
    """With seeds apart if they are crossed with texts, and the design in words."""
    apart, design = crossed(ds[[name for name in ("l1", "count") if name in ds]])
    return (apart if design == CROSSED else ds), design


def _but_rounding(squares: Floats, of: Floats, share: float) -> Floats:
    """Sums of squares, 0 where they are so small a share of what they were taken from that only rounding is left."""
    return np.where(squares > share * of, squares, 0.0)


def _reasons(l1: xr.DataArray, count: xr.DataArray | None) -> xr.DataArray:
    """Place in `REASONS` of each cell, -1 where nothing was recorded: no prompt has a count, or else a value."""
    values = l1.values
    finite, zero = np.isfinite(values).all(0), values == 0
    some = np.where(zero.any(0), ZERO, USED)
    code = np.where(zero.all(0), CONSTANT, np.where(finite, some, NONFINITE))
    there = l1 if count is None else count.transpose(*l1.dims)
    code = np.where(np.isnan(there.values).all(0), -1, code).astype(np.int8)
    first = l1.isel(prompt=0, drop=True)
    return xr.DataArray(code, first.coords, first.dims)


def _count(where: xr.DataArray) -> xr.DataArray:
    return where.sum([axis for axis in where.dims if axis != "kind"])


def _ranges(places: tuple[int, ...]) -> str:
    """`0 to 4, 7`."""
    runs: list[list[int]] = []
    for place in places:
        if runs and runs[-1][-1] == place - 1:
            runs[-1].append(place)
        else:
            runs.append([place])
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
