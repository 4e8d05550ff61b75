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
    from dit_analyzer.measures.changepoints import ChangePoint, ChangePoints, Dip, change_points
    from dit_analyzer.measures.changes import changes, points
    from dit_analyzer.measures.components import components
    from dit_analyzer.measures.concordance import concordance
    from dit_analyzer.measures.depth import depth_trend, kind_contrast, roughness
    from dit_analyzer.measures.distance import distances
    from dit_analyzer.measures.jackknife import jackknife_t
    from dit_analyzer.measures.jointly import JointChangePoints, joint_change_points
    from dit_analyzer.measures.paper import paper_view
    from dit_analyzer.measures.published import as_published
    from dit_analyzer.measures.sampled import left_out_positions, mean_curves, position_error, position_errors
    from dit_analyzer.measures.shapes import Shape, shape_of
    from dit_analyzer.measures.signals import branch_cosines, signals, step_cosines
    from dit_analyzer.measures.stability import stability
    from dit_analyzer.measures.variation import variation
    from dit_analyzer.measures.words import words

_HOMES = {
    "audit": "audit",
    "ChangePoint": "changepoints",
    "ChangePoints": "changepoints",
    "Dip": "changepoints",
    "change_points": "changepoints",
    "changes": "changes",
    "points": "changes",
    "components": "components",
    "concordance": "concordance",
    "depth_trend": "depth",
    "kind_contrast": "depth",
    "roughness": "depth",
    "distances": "distance",
    "jackknife_t": "jackknife",
    "JointChangePoints": "jointly",
    "joint_change_points": "jointly",
    "paper_view": "paper",
    "as_published": "published",
    "left_out_positions": "sampled",
    "mean_curves": "sampled",
    "position_error": "sampled",
    "position_errors": "sampled",
    "Shape": "shapes",
    "shape_of": "shapes",
    "branch_cosines": "signals",
    "signals": "signals",
    "step_cosines": "signals",
    "stability": "stability",
    "variation": "variation",
    "words": "words",
}
__all__ = [
    "ChangePoint",
    "ChangePoints",
    "Dip",
    "JointChangePoints",
    "Shape",
    "as_published",
    "audit",
    "branch_cosines",
    "change_points",
    "changes",
    "components",
    "concordance",
    "depth_trend",
    "distances",
    "jackknife_t",
    "joint_change_points",
    "kind_contrast",
    "left_out_positions",
    "mean_curves",
    "paper_view",
    "points",
    "position_error",
    "position_errors",
    "roughness",
    "shape_of",
    "signals",
    "stability",
    "step_cosines",
    "variation",
    "words",
]


def __getattr__(name: str) -> Any:
    """Import on first use: a command that only prints its help should not load xarray."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.measures.{_HOMES[name]}"), name)
