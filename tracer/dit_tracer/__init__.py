"""Runs a diffusion pipeline and records its attention activations. The only room that knows torch and diffusers.

Example:

    with dit_tracer.record(pipe, "flux.trace") as recorder:
        with recorder.prompt(text, seed=42):
            pipe(text, generator=torch.Generator().manual_seed(42))
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dit_tracer.recording.families import FAMILIES, Family
    from dit_tracer.recording.recorder import Recorder, record
    from dit_tracer.recording.settings import Sample, What

_HOMES = {
    "record": "recorder",
    "Recorder": "recorder",
    "Sample": "settings",
    "What": "settings",
    "FAMILIES": "families",
    "Family": "families",
}
__all__ = ["FAMILIES", "Family", "Recorder", "Sample", "What", "record"]


def __getattr__(name: str) -> Any:
    """Import on first use: a command that only prints its help should not load torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.recording.{_HOMES[name]}"), name)
