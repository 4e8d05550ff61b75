"""Turns traces into numbers and figures. Runs anywhere and never imports torch.

Example:

    with dit_formats.open_trace("flux.trace") as trace:
        ds = dit_analyzer.distances(trace)
        dit_analyzer.paper_view(ds)["l1"].mean("prompt")
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dit_analyzer.measures.audit import audit
    from dit_analyzer.measures.components import components
    from dit_analyzer.measures.distance import distances
    from dit_analyzer.measures.jackknife import jackknife_t
    from dit_analyzer.measures.paper import paper_view
    from dit_analyzer.measures.published import as_published
    from dit_analyzer.measures.sampled import left_out_positions, mean_curves, position_error, position_errors
    from dit_analyzer.measures.signals import branch_cosines, signals, step_cosines
    from dit_analyzer.measures.variation import variation

_HOMES = {
    "distances": "distance",
    "paper_view": "paper",
    "variation": "variation",
    "components": "components",
    "jackknife_t": "jackknife",
    "left_out_positions": "sampled",
    "mean_curves": "sampled",
    "position_error": "sampled",
    "position_errors": "sampled",
    "audit": "audit",
    "as_published": "published",
    "signals": "signals",
    "branch_cosines": "signals",
    "step_cosines": "signals",
}
__all__ = [
    "as_published",
    "audit",
    "branch_cosines",
    "components",
    "distances",
    "jackknife_t",
    "left_out_positions",
    "mean_curves",
    "paper_view",
    "position_error",
    "position_errors",
    "signals",
    "step_cosines",
    "variation",
]


def __getattr__(name: str) -> Any:
    """Import on first use: a command that only prints its help should not load xarray."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.measures.{_HOMES[name]}"), name)
