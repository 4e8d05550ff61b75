"""The earlier observations that `dit-analyze figures --view` draws: a row for each.

Loads nothing heavy: a command that prints its help reads the names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class View:
    """One view.

    Args:
        paper: Whose observation it is, and of what. Numbers of figures are left out, for they could not be checked.
        home: Module of `dit_analyzer.measures.views` that has the function.
        name: Of the function there that measures a trace, and of the one in `dit_analyzer.show.views` that draws it.
        needs: Options of `dit-trace run` without which it is refused, or drawn in part.
    """

    paper: str
    home: str
    name: str
    needs: str = ""

    @property
    def measure(self) -> Callable[..., Any]:
        """`measure(trace, source)`, an xarray Dataset with what the paper plotted."""
        return getattr(import_module(f"dit_analyzer.measures.views.{self.home}"), self.name)

    @property
    def draw(self) -> Callable[..., Any]:
        """`draw(dataset, title)`, a matplotlib Figure."""
        return getattr(import_module("dit_analyzer.show.views"), self.name)


VIEWS = {
    "l2c": View("Learning-to-Cache (arXiv 2406.01733), changes of layers' outputs", "layers", "l2c", "--kinds k,v,a,f"),
    "tgate": View(
        "T-GATE (arXiv 2404.02747), change of cross-attention's output",
        "layers",
        "tgate",
        "--kinds k,v,o,a for the heads themselves",
    ),
    "pab": View("PAB (arXiv 2408.12588), attention differences", "layers", "pab"),
    "ditfastattn": View(
        "DiTFastAttn (arXiv 2406.08552), similarity of attention outputs",
        "cosines",
        "ditfastattn",
        "samples, or --step-pairs all; --halves of a guided model",
    ),  # fmt: skip
    "smoothcache": View(
        "SmoothCache (arXiv 2411.10510), error curves",
        "layers",
        "smoothcache",
        "--kinds k,v,a,f; samples for lags beyond 1",
    ),  # fmt: skip
    "magcache": View("MagCache (arXiv 2506.09045), magnitude ratio", "stack", "magcache", "the stack (no --no-stack)"),
    "teacache": View(
        "TeaCache (arXiv 2411.19108), input and output differences", "stack", "teacache", "the stack (no --no-stack)"
    ),  # fmt: skip
    "delta-dit": View(
        "Delta-DiT (arXiv 2406.01125), offsets of block groups",
        "stack",
        "delta_dit",
        "the stack and samples (no --no-stack, no --stats-only)",
    ),  # fmt: skip
    "stale-kv": View(
        "PipeFusion (arXiv 2405.14430), K and V one step stale", "stale", "stale_kv", "--kinds with k and v"
    ),
}
