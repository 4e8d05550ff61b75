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
    from dit_analyzer.measures.concordance import concordance
    from dit_analyzer.measures.depth import depth_trend, kind_contrast, roughness
    from dit_analyzer.measures.distance import distances
    from dit_analyzer.measures.paper import paper_view
    from dit_analyzer.measures.signals import branch_cosines, signals, step_cosines
    from dit_analyzer.measures.stability import stability
    from dit_analyzer.measures.variation import variation

_HOMES = {
    "distances": "distance",
    "paper_view": "paper",
    "variation": "variation",
    "signals": "signals",
    "branch_cosines": "signals",
    "step_cosines": "signals",
    "stability": "stability",
    "concordance": "concordance",
    "depth_trend": "depth",
    "kind_contrast": "depth",
    "roughness": "depth",
}
__all__ = [
    "branch_cosines",
    "concordance",
    "depth_trend",
    "distances",
    "kind_contrast",
    "paper_view",
    "roughness",
    "signals",
    "stability",
    "step_cosines",
    "variation",
]


def __getattr__(name: str) -> Any:
    """Import on first use: a command that only prints its help should not load xarray."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.measures.{_HOMES[name]}"), name)
